/**
 * The dispatch of statements in a sandbox.
 */
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import type { Role } from "../../Topology.js"
import type { Exchange, Request } from "../connection/connection.js"
import { type SentNotification, sentNotificationOf } from "../sql/notifyCommand.js"
import { currentContext } from "../transaction/context.js"
import { rootOf } from "../transaction/propagation.js"
import { registerHook } from "../transaction/registerHook.js"
import { Executor } from "./executor.js"

/** Dispatcher of the statements of a sandbox, which delivers their notifications. */
export class SandboxExecutor extends Executor {
  /** Delivers a notification to the listeners of the sandbox. */
  deliver: (notification: SentNotification, processId: number) => void = () => {}
  /** The notifications that were delivered at the end of a transaction: equal ones arrive once. */
  private readonly delivered = new WeakMap<object, Set<string>>()

  override run<A>(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    kind: Role,
    request: Request,
    read: (exchange: Exchange) => A
  ): Effect.Effect<A, SqlError> {
    const result = super.run(fiber, kind, request, read)
    const sent = sentNotificationOf(request.text, request.values)
    return sent === undefined ? result : Effect.zipLeft(result, this.deliverWhenStored(sent))
  }

  /**
   * Delivers a notification when the transaction around it is stored, before the hooks of the
   * program run.
   */
  private deliverWhenStored(sent: SentNotification): Effect.Effect<void> {
    return Effect.withFiberRuntime((fiber) => {
      const transaction = currentContext(fiber)?.find(this)
      const sender = transaction === undefined || transaction === "none" ? {} : rootOf(transaction)
      const processId = this.sandbox?.level.connectionHolder.connection?.processId ?? 0
      const deliver = Effect.sync(() => {
        const key = `${sent.channel}\0${sent.payload}`
        const known = this.delivered.get(sender) ?? new Set()
        this.delivered.set(sender, known)
        if (!known.has(key)) this.deliver(sent, processId)
        known.add(key)
      })
      return registerHook(this, "whenStored", deliver)
    })
  }
}
