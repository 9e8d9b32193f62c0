/**
 * The transaction slot of `@effect/sql`: the part of a fiber's context that holds its transaction
 * context.
 *
 * `SqlResolver` passes on only the slot, so the schema scopes and the causal session of a fiber are
 * in its slot as well.
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import { CurrentSession } from "../../Consistency.js"
import { CurrentScopes } from "../edge/currentSchemaScopes.js"
import { scopesIn } from "./ambientScopes.js"
import { contextOf, ScopedContext, type TransactionContext } from "./context.js"
import { causalSessionOf } from "./currentCausalSession.js"

/**
 * Returns the value of the slot for a transaction context that is put into `context`, with the
 * scopes and session of `context`.
 */
export const slotOf = (context: Context.Context<never>, ambient: TransactionContext): TransactionContext["slot"] => {
  const around = contextOf(context)
  const scopes = scopesIn(context, around)
  const session = causalSessionOf(context, around)
  const hasBoth =
    (scopes === undefined || scopes === ambient.scopes) && (session === undefined || session === ambient.session)
  return hasBoth ? ambient.slot : new ScopedContext(ambient, scopes, session).slot
}

/** Returns a context without transactions and units of work, but with the same scopes and session. */
export const withoutSlot = <R>(context: Context.Context<R>): Context.Context<R> => {
  // the casts: the keys that are read and removed here are no part of R
  const plain = context as Context.Context<never>
  const outside = Context.omit(TransactionConnection)(context) as Context.Context<R>
  const ambient = contextOf(plain)
  const scopes = scopesIn(plain, ambient)
  const session = ambient?.session
  const scoped = scopes === undefined ? outside : Context.add(outside, CurrentScopes, scopes)
  return session === undefined || session === plain.unsafeMap.get(CurrentSession.key)
    ? scoped
    : Context.add(scoped, CurrentSession, session)
}
