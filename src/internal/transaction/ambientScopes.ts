/**
 * The schema scopes of a fiber, such as those of its tenant, in its context and in the transaction
 * slot. Those of the slot are never older than those of the context.
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { SchemaInvalid } from "../../DatabaseError.js"
import type { Request } from "../connection/connection.js"
import { CurrentScopes } from "../edge/currentSchemaScopes.js"
import type { SchemaScopes, ScopeChange } from "../sql/schemaScopes.js"
import { contextOf, ScopedContext, type TransactionContext } from "./context.js"

/**
 * Returns the scopes of a context, if it has any. For a statement without scopes, this look-up is
 * the only cost.
 */
export const scopesIn = (
  context: Context.Context<never>,
  ambient: TransactionContext | undefined
): SchemaScopes | undefined => ambient?.scopes ?? context.unsafeMap.get(CurrentScopes.key)

/** Returns the scopes of a context, if it has any. */
export const scopesOf = (context: Context.Context<never>): SchemaScopes | undefined =>
  scopesIn(context, contextOf(context))

/** Returns a context with changed schema scopes. */
export const withChange = <R>(context: Context.Context<R>, change: ScopeChange): Context.Context<R> => {
  // the cast: the keys that are read here are no part of R
  const plain = context as Context.Context<never>
  const ambient = contextOf(plain)
  const scopes = change(scopesIn(plain, ambient) ?? Context.get(context, CurrentScopes))
  const inside = Context.add(context, CurrentScopes, scopes)
  return ambient === undefined
    ? inside
    : Context.add(inside, TransactionConnection, new ScopedContext(ambient, scopes, undefined).slot)
}

/** Runs an effect with changed schema scopes. */
export const inScopes = <A, E, R>(self: Effect.Effect<A, E, R>, change: ScopeChange): Effect.Effect<A, E, R> =>
  Effect.mapInputContext(self, (context: Context.Context<R>) => withChange(context, change))

/** Returns a statement with the search path of its context, or the reason why it cannot be sent. */
export const scoped = (
  context: Context.Context<never>,
  ambient: TransactionContext | undefined,
  database: string,
  request: Request
): Request | SchemaInvalid => {
  const path = scopesIn(context, ambient)?.find(database)
  if (path === undefined) return request
  if (path.rejectionReason === undefined) return { ...request, path }
  return new SchemaInvalid({
    database,
    given: path.rejectionReason,
    expected: path.expected
  })
}
