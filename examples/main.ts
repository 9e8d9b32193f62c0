/** Runs the examples: a failure is printed as one line, and Ctrl-C closes every resource. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Cause, Console, Effect, Exit } from "effect"
import { DatabaseError } from "effect-db"

/** Returns the message of an error. The message of a database error is complete; another error may only wrap its cause. */
export const explain = (error: unknown): string => {
  if (!(error instanceof Error)) return String(error)
  return error.cause instanceof Error && !DatabaseError.isDatabaseError(error) ? explain(error.cause) : error.message
}

/** Drops a table at the end, and prints an error if it could not, for example because the server is down. */
export const dropped = <E, R>(table: string, self: Effect.Effect<unknown, E, R>) =>
  self.pipe(
    Effect.interruptible,
    Effect.timeout("2 seconds"),
    Effect.catchAll((error) => Console.error(`error: table ${table} was not dropped: ${explain(error)}`))
  )

/**
 * Runs a program with `NodeRuntime.runMain`, which releases its layers on Ctrl-C, and prints an error as one line. For a server, Ctrl-C is
 * the normal end and no failure.
 */
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

/** Runs plain code. On Ctrl-C the signal aborts, and the code must end by itself. A second Ctrl-C ends the process at once. */
export const main = (program: (signal: AbortSignal) => Promise<unknown>): void => {
  const controller = new AbortController()
  for (const name of ["SIGINT", "SIGTERM"]) process.once(name, () => controller.abort())
  program(controller.signal).catch((error) => {
    process.exitCode = controller.signal.aborted ? 130 : 1
    if (!controller.signal.aborted) console.error(`error: ${explain(error)}`)
  })
}
