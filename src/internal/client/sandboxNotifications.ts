/**
 * The notifications of a sandbox: the server would send them at COMMIT, which a sandbox never has.
 */
import * as Effect from "effect/Effect"
import type { Request } from "../connection/connection.js"
import { type SentNotification, sentNotificationOf } from "../sql/notifyCommand.js"
import { currentContext } from "../transaction/context.js"
import { rootOf } from "../transaction/propagation.js"
import { registerHook, type TransactionFactory } from "../transaction/registerHook.js"
import type { Transaction } from "../transaction/transaction.js"

/** Notifications of one sandbox. */
interface SandboxNotifications {
  /** Delivers a notification to the listeners of the sandbox. */
  deliver: (notification: SentNotification, processId: number) => void
  /** The notifications that were delivered at the end of a transaction: equal ones arrive once. */
  readonly delivered: WeakMap<object, Set<string>>
}

const bySandbox = new WeakMap<Transaction, SandboxNotifications>()

/** Sets the function that delivers the notifications of a sandbox. */
export const onSandboxNotification = (sandbox: Transaction, deliver: SandboxNotifications["deliver"]): void => {
  bySandbox.set(sandbox, { deliver, delivered: new WeakMap() })
}

/**
 * Adds to a statement in a sandbox that its notification, if it sends one, is delivered when the
 * transaction around it is stored, before the hooks of the program run.
 */
export const deliverWhenStored = <A, E>(
  origin: TransactionFactory,
  sandbox: Transaction,
  { text, values }: Request,
  self: Effect.Effect<A, E>
): Effect.Effect<A, E> => {
  const notifications = bySandbox.get(sandbox)
  const sent = notifications === undefined ? undefined : sentNotificationOf(text, values)
  if (notifications === undefined || sent === undefined) return self
  const register = Effect.withFiberRuntime<void>((fiber) => {
    const transaction = currentContext(fiber)?.find(origin)
    const sender = transaction === undefined || transaction === "none" ? {} : rootOf(transaction)
    const processId = sandbox.level.connectionHolder.connection?.processId ?? 0
    const deliver = Effect.sync(() => {
      const key = `${sent.channel}\0${sent.payload}`
      const known = notifications.delivered.get(sender) ?? new Set()
      notifications.delivered.set(sender, known)
      if (!known.has(key)) notifications.deliver(sent, processId)
      known.add(key)
    })
    return registerHook(origin, "whenStored", deliver)
  })
  // an executed statement must not lose its notification to an interruption
  return Effect.uninterruptibleMask((restore) => Effect.zipLeft(restore(self), register))
}
