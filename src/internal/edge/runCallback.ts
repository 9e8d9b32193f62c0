/**
 * The running of effects of the program, such as a provider of credentials, for the callbacks of the
 * core.
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Runtime from "effect/Runtime"

/**
 * Function that runs an effect and calls `callback` once. The returned function interrupts the
 * effect and prevents the call.
 */
export type Run = <A, E>(
  effect: Effect.Effect<A, E>,
  callback: (value: A | undefined, cause: Cause.Cause<E> | undefined) => void
) => () => void

/** Returns a function that runs effects of the program outside of any transaction. */
export const makeRun = (runtime: Runtime.Runtime<never>): Run => {
  // a database may be opened inside of a transaction of another one, and an effect of its
  // settings must not run in that transaction
  const fork = Runtime.runFork(Runtime.updateContext(runtime, Context.omit(TransactionConnection)))
  return (effect, callback) => {
    let isOver = false
    // the fiber succeeds with an exit, because Effect logs a failed fiber at debug level, with the
    // message of the failure
    const fiber = fork(Effect.exit(Effect.interruptible(effect)))
    fiber.addObserver((ended) => {
      if (isOver) return
      isOver = true
      const exit = Exit.flatten(ended)
      if (Exit.isSuccess(exit)) callback(exit.value, undefined)
      else callback(undefined, exit.cause)
    })
    return () => {
      if (isOver) return
      isOver = true
      fiber.unsafeInterruptAsFork(fiber.id())
    }
  }
}
