import * as net from "node:net"
import { createInterface } from "node:readline"
import * as Deferred from "effect/Deferred"
import type * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import { type CommandFailed, launch, type ProcessLocation } from "./childProcess.js"

/** It ended before it got there. */
export const Ended = "Ended"

/** A running server: its first process, and what can be seen of it from outside. */
export interface Postmaster {
  readonly pid: number
  /** Its port is its own. */
  readonly listening: Deferred.Deferred<void, typeof Ended>
  /** It takes connections. */
  readonly ready: Deferred.Deferred<void, typeof Ended>
  /** Every process that shared its standard error is gone: the postmaster and its children. */
  readonly ended: Deferred.Deferred<void>
  readonly alive: () => boolean
}

/** Starts `postgres`. Every line that it writes goes to `onLine`, before anything that follows from it. */
export const start = (
  postgres: string,
  args: ReadonlyArray<string>,
  where: ProcessLocation,
  onLine: (line: string) => void
): Effect.Effect<Postmaster, CommandFailed> =>
  launch(postgres, args, { ...where, stdio: ["ignore", "ignore", "pipe"] }, (child, pid) => {
    const listening = Deferred.unsafeMake<void, typeof Ended>(FiberId.none)
    const ready = Deferred.unsafeMake<void, typeof Ended>(FiberId.none)
    const ended = Deferred.unsafeMake<void>(FiberId.none)
    const { stderr } = child
    if (stderr !== null) {
      createInterface({ input: stderr }).on("line", (line) => {
        onLine(line)
        if (/listening on IPv4 address/.test(line)) Deferred.unsafeDone(listening, Exit.void)
        // a standby says "ready to accept read-only connections"
        if (/database system is ready to accept .*connections/.test(line)) Deferred.unsafeDone(ready, Exit.void)
      })
    }
    child.once("close", () => {
      Deferred.unsafeDone(listening, Exit.fail(Ended))
      Deferred.unsafeDone(ready, Exit.fail(Ended))
      Deferred.unsafeDone(ended, Exit.void)
    })
    // a program that ends without closing its scope must be able to end; its watchdog does the rest
    child.unref()
    if (stderr instanceof net.Socket) stderr.unref()
    return { pid, listening, ready, ended, alive: () => child.exitCode === null && child.signalCode === null }
  })
