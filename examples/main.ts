/** Runs the examples: a failure is printed as one line, and Ctrl-C closes every resource. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Cause, Console, Effect, Exit } from "effect"
import { DatabaseError } from "effect-db"

/** An error of a database says all that there is to say; others may only be the wrapping of one. */
export const explain = (error: unknown): string => {
  if (!(error instanceof Error)) return String(error)
  return error.cause instanceof Error && !DatabaseError.isDatabaseError(error) ? explain(error.cause) : error.message
}

/** Drops a table at the end, and says so if it could not: a server that is down then keeps it. */
export const dropped = <E, R>(table: string, self: Effect.Effect<unknown, E, R>) =>
  self.pipe(
    Effect.interruptible,
    Effect.timeout("2 seconds"),
    Effect.catchAll((error) => Console.error(`error: table ${table} was not dropped: ${explain(error)}`))
  )

/** `NodeRuntime.runMain`, which ends the program's layers with Ctrl-C, with errors in one line. To a server Ctrl-C is its end, and no failure. */
export const runMain = <A, E>(program: Effect.Effect<A, E>, { isServer = false } = {}): void =>
  program.pipe(
    Effect.tapErrorCause((cause) =>
      Cause.isInterruptedOnly(cause) ? Effect.void : Console.error(`error: ${explain(Cause.squash(cause))}`)
    ),
    NodeRuntime.runMain({
      disableErrorReporting: true,
      teardown: (exit, done) => {
        if (Exit.isSuccess(exit)) done(0)
        else if (Cause.isInterruptedOnly(exit.cause)) done(isServer ? 0 : 130)
        else done(1)
      }
    })
  )

/** The same for plain code, which is told of Ctrl-C by a signal: how to end then is left to it. A second Ctrl-C waits for nothing. */
export const main = (program: (signal: AbortSignal) => Promise<unknown>): void => {
  const controller = new AbortController()
  for (const name of ["SIGINT", "SIGTERM"]) process.once(name, () => controller.abort())
  program(controller.signal).catch((error) => {
    process.exitCode = controller.signal.aborted ? 130 : 1
    if (!controller.signal.aborted) console.error(`error: ${explain(error)}`)
  })
}
