/**
 * Child processes: start, signals, and programs that run to their end.
 */
import { type ChildProcess, spawn } from "node:child_process"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberId from "effect/FiberId"
import { thrownMessage } from "../protocol/thrownValue.js"
import { withinRealTime } from "./realClock.js"

/** Operating system user that runs PostgreSQL if Node runs as root. */
export interface Identity {
  readonly name: string
  readonly uid: number
  readonly gid: number
}

/** Working directory and user of a process. */
export interface ProcessLocation {
  readonly cwd: string
  readonly user?: Identity | undefined
}

/** Error of a program that did not start or ended with an error. */
export class CommandFailed extends Data.TaggedError("CommandFailed")<{
  readonly reason: string
  readonly output: ReadonlyArray<string>
  readonly cause?: unknown
}> {}

// No other variables are inherited: PG* and LC_* would change the behaviour of the server, and
// further variables may be secrets.
const inherited = ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"]

const environment = (): Record<string, string> => {
  const env: Record<string, string> = { LC_ALL: "C", TZ: "UTC" }
  for (const name of inherited) {
    const value = process.env[name]
    if (value !== undefined) env[name] = value
  }
  return env
}

const lines = (text: string): ReadonlyArray<string> => text.split(/\r?\n/).filter((line) => line !== "")

/**
 * Starts a process in a new session, so that the terminal's Ctrl-C does not reach it. `attach` runs
 * before the first event of the process, so its listeners miss no event.
 */
export const launch = <A>(
  file: string,
  args: ReadonlyArray<string>,
  options: ProcessLocation & { readonly stdio: ReadonlyArray<"pipe" | "ignore"> },
  attach: (child: ChildProcess, pid: number) => A
): Effect.Effect<A, CommandFailed> =>
  Effect.async<A, CommandFailed>((resume) => {
    const fail = (cause: unknown) =>
      resume(
        new CommandFailed({
          reason: `${file} could not be started: ${thrownMessage(cause)}`,
          output: [],
          cause
        })
      )
    try {
      const child = spawn(file, args, {
        cwd: options.cwd,
        env: environment(),
        detached: true,
        stdio: [...options.stdio],
        ...(options.user === undefined ? {} : { uid: options.user.uid, gid: options.user.gid })
      })
      child.once("error", fail)
      if (child.pid !== undefined) resume(Effect.succeed(attach(child, child.pid)))
    } catch (cause) {
      // `spawn` throws some errors (EPERM) and emits others as an event (ENOENT, EACCES)
      fail(cause)
    }
  }).pipe(Effect.uninterruptible)

/**
 * Sends a signal to a process, or only checks that it exists if `name` is 0. Returns false if there
 * is no such process, or if the signal is not permitted. A negative `pid` is a process group.
 */
export const signal = (pid: number, name: NodeJS.Signals | 0): boolean => {
  try {
    return process.kill(pid, name)
  } catch {
    return false
  }
}

/**
 * Runs a program to its end and returns its output. An interruption kills the process with its
 * children, and waits for their end, up to 5 seconds.
 */
export const run = (
  file: string,
  args: ReadonlyArray<string>,
  location: ProcessLocation
): Effect.Effect<string, CommandFailed> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(
      launch(file, args, { ...location, stdio: ["ignore", "pipe", "pipe"] }, (child, pid) => {
        const ended = Deferred.unsafeMake<string, CommandFailed>(FiberId.none)
        const written: Array<string> = []
        child.stdout?.setEncoding("utf8").on("data", (text: string) => written.push(text))
        child.stderr?.setEncoding("utf8").on("data", (text: string) => written.push(text))
        child.once("close", (code, killedBy) => {
          const output = written.join("")
          const failed = () =>
            new CommandFailed({ reason: `${file} ended with ${killedBy ?? `code ${code}`}`, output: lines(output) })
          Deferred.unsafeDone(ended, code === 0 ? Effect.succeed(output) : Effect.fail(failed()))
        })
        return { ended, pid }
      }),
      ({ ended, pid }) =>
        restore(Deferred.await(ended)).pipe(
          Effect.onInterrupt(() =>
            Effect.zipRight(
              Effect.sync(() => signal(-pid, "SIGKILL")),
              withinRealTime(ended, "5 seconds")
            )
          )
        )
    )
  )
