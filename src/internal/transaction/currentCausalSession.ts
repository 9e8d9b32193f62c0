/**
 * The causal session of a fiber, in its context and in the transaction slot. That of the slot is
 * never older than that of the context.
 */
import type * as Context from "effect/Context"
import { CurrentSession, type Session } from "../../Consistency.js"
import type { TransactionContext } from "./context.js"

/** Returns the causal session of a context, if there is one. */
export const causalSessionOf = (
  context: Context.Context<never>,
  ambient: TransactionContext | undefined
): Session | undefined => ambient?.session ?? context.unsafeMap.get(CurrentSession.key)
