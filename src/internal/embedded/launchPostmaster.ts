/**
 * The postmaster process of an embedded server.
 */
import * as net from "node:net"
import { createInterface } from "node:readline"
import * as Deferred from "effect/Deferred"
import type * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberId from "effect/FiberId"
import { type CommandFailed, launch, type ProcessLocation } from "./childProcess.js"

/** The failure of a wait for the start of a server if the server has ended. */
export const Ended = "Ended"

/** Postmaster, with the state of its server as its output and exit show it. */
export interface Postmaster {
  readonly pid: number
  /** Done when the server listens on its port. */
  readonly listening: Deferred.Deferred<void, typeof Ended>
  /** Done when the server accepts connections. */
  readonly ready: Deferred.Deferred<void, typeof Ended>
  /** Done when the postmaster and its children, which share its standard error, have ended. */
  readonly ended: Deferred.Deferred<void>
  readonly isAlive: () => boolean
}

/** Starts `postgres`. `onLine` gets each line of its output before the line changes the state. */
export const start = (
  postgres: string,
  args: ReadonlyArray<string>,
  location: ProcessLocation,
  onLine: (line: string) => void
): Effect.Effect<Postmaster, CommandFailed> =>
  launch(postgres, args, { ...location, stdio: ["ignore", "ignore", "pipe"] }, (child, pid) => {
    const listening = Deferred.unsafeMake<void, typeof Ended>(FiberId.none)
    const ready = Deferred.unsafeMake<void, typeof Ended>(FiberId.none)
    const ended = Deferred.unsafeMake<void>(FiberId.none)
    const { stderr } = child
    if (stderr !== null) {
      createInterface({ input: stderr }).on("line", (line) => {
        onLine(line)
        if (/listening on IPv4 address/.test(line)) Deferred.unsafeDone(listening, Exit.void)
        // a standby logs "ready to accept read-only connections"
        if (/database system is ready to accept .*connections/.test(line)) Deferred.unsafeDone(ready, Exit.void)
      })
    }
    child.once("close", () => {
      Deferred.unsafeDone(listening, Exit.fail(Ended))
      Deferred.unsafeDone(ready, Exit.fail(Ended))
      Deferred.unsafeDone(ended, Exit.void)
    })
    // the server does not keep Node alive; if Node ends before the scope is closed, the watchdog
    // stops the server
    child.unref()
    if (stderr instanceof net.Socket) stderr.unref()
    return { pid, listening, ready, ended, isAlive: () => child.exitCode === null && child.signalCode === null }
  })
