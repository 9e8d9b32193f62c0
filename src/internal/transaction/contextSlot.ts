/**
 * Where a program is, in schema scopes and in a session: by its context, and by what is in the transaction slot, if that is ours.
 * `SqlResolver` takes along that slot and nothing else, so whatever is put there has both with it; what is there is as new as the context,
 * or newer.
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { CurrentSession, type Session } from "../../Consistency.js"
import { SchemaInvalid } from "../../DatabaseError.js"
import type { Request } from "../connection/connection.js"
import { CurrentScopes } from "../edge/currentScopes.js"
import type { SchemaScopes, ScopeChange } from "../sql/schemaScopes.js"
import { contextOf, ScopedContext, type TransactionContext } from "./context.js"

/** The scopes of a place whose ambient is known, if any. Where there never were scopes, this one look is all that they cost a statement. */
const scopesAt = (context: Context.Context<never>, ambient: TransactionContext | undefined): SchemaScopes | undefined =>
  ambient?.scopes ?? context.unsafeMap.get(CurrentScopes.key)

/** The scopes of a place, where there are any. */
export const scopesOf = (context: Context.Context<never>): SchemaScopes | undefined =>
  scopesAt(context, contextOf(context))

/** The session of a place whose ambient is known, if it is in one. */
export const causalSessionOf = (
  context: Context.Context<never>,
  ambient: TransactionContext | undefined
): Session | undefined => ambient?.session ?? context.unsafeMap.get(CurrentSession.key)

/** What a place has in the transaction slot when a ambient is its own. */
export const slotOf = (context: Context.Context<never>, ambient: TransactionContext): TransactionContext["slot"] => {
  const around = contextOf(context)
  const scopes = scopesAt(context, around)
  const session = causalSessionOf(context, around)
  const isSaid =
    (scopes === undefined || scopes === ambient.scopes) && (session === undefined || session === ambient.session)
  return isSaid ? ambient.slot : new ScopedContext(ambient, scopes, session).slot
}

/** A context outside of all that is in the transaction slot, but for its scopes. */
export const withoutSlot = <R>(context: Context.Context<R>): Context.Context<R> => {
  // the slot is no part of R
  const outside = Context.omit(TransactionConnection)(context) as Context.Context<R>
  const scopes = scopesOf(context as Context.Context<never>)
  return scopes === undefined ? outside : Context.add(outside, CurrentScopes, scopes)
}

/** A context in which other scopes are in force. */
export const withChange = <R>(context: Context.Context<R>, change: ScopeChange): Context.Context<R> => {
  // what is looked at is no part of R
  const plain = context as Context.Context<never>
  const ambient = contextOf(plain)
  const scopes = change(scopesAt(plain, ambient) ?? Context.get(context, CurrentScopes))
  const inside = Context.add(context, CurrentScopes, scopes)
  return ambient === undefined
    ? inside
    : Context.add(inside, TransactionConnection, new ScopedContext(ambient, scopes, undefined).slot)
}

/** Runs an effect in other scopes. */
export const inScopes = <A, E, R>(self: Effect.Effect<A, E, R>, change: ScopeChange): Effect.Effect<A, E, R> =>
  Effect.mapInputContext(self, (context: Context.Context<R>) => withChange(context, change))

/** A statement as it is to be sent from a place, or why it cannot be. */
export const scoped = (
  context: Context.Context<never>,
  ambient: TransactionContext | undefined,
  database: string,
  request: Request
): Request | SchemaInvalid => {
  const path = scopesAt(context, ambient)?.find(database)
  if (path === undefined) return request
  if (path.rejectionReason === undefined) return { ...request, path }
  return new SchemaInvalid({
    database,
    given: path.rejectionReason,
    expected: "one or more names of 1 to 63 bytes"
  })
}
