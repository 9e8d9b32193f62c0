/**
 * A connection that listens. Whatever it is asked is answered within its time, or it counts as lost.
 */

import * as clock from "../concurrency/clock.js"
import type { Connection, Exchange, Failure } from "../connection/connection.js"

/** How long it may take for a sign of life, in ms. */
const pingTimeout = 1000

/** What whoever uses it is told. */
interface ListenCallbacks {
  /** It is gone, or silent. Told at least once, with what happened first. */
  readonly onLost: (line: ListenConnection, error: Error) => void
  /** It has answered, and can be asked again. */
  readonly onIdle: (line: ListenConnection) => void
}

export class ListenConnection {
  /** The channels that it hears. */
  readonly channels = new Set<string>()
  /** A channel that somebody waits for to see whether anything is heard at all. */
  probe: { readonly channel: string; readonly channels: () => void } | undefined
  /** Whether it is known to hear what others send. */
  isVerified = false
  private heartbeatTimer: clock.Timer | undefined

  constructor(
    readonly connection: Connection,
    private readonly commandTimeout: number,
    private readonly heartbeatInterval: number,
    private readonly callbacks: ListenCallbacks
  ) {
    this.scheduleHeartbeat()
  }

  get busy(): boolean {
    return this.connection.busy
  }

  /** Runs a command, one at a time. Where it is lost, only its user is told. */
  command(
    text: string,
    done: (failure: Exclude<Failure, { _tag: "lost" }> | undefined, flight: Exchange) => void
  ): void {
    this.withTimeout(this.commandTimeout, text.slice(0, text.indexOf(" ")), (settle) =>
      this.connection.run(
        [],
        { text, values: [], rows: "object", prepare: false, simple: true },
        [],
        (failure, flight) => {
          settle()
          if (failure?._tag === "lost") return this.callbacks.onLost(this, failure.error)
          done(failure, flight)
        }
      )
    )
  }

  /** Asks for no more signs of life. */
  stopHeartbeat(): void {
    clock.clear(this.heartbeatTimer)
    this.heartbeatTimer = undefined
  }

  private withTimeout(patience: number, what: string, go: (settle: () => void) => void): void {
    let last: clock.Immediate | undefined
    const giveUp = () => {
      this.callbacks.onLost(this, new Error(`no answer to ${what} within ${patience} ms`))
      this.connection.destroy("broken")
    }
    const impatient = clock.timer(patience, () => {
      // a program that was busy itself looks once more whether the answer is there
      last = clock.immediate(giveUp)
    })
    go(() => {
      clock.clear(impatient)
      clock.clearImmediate(last)
    })
  }

  private scheduleHeartbeat(): void {
    if (!Number.isFinite(this.heartbeatInterval)) return
    this.heartbeatTimer = clock.timer(this.heartbeatInterval, () => this.ping())
    // a socket keeps the process alive, what asks about it need not
    this.heartbeatTimer.unref()
  }

  private ping(): void {
    // what is under way is a sign of life, or the end
    if (this.busy) return this.scheduleHeartbeat()
    this.withTimeout(pingTimeout, "a sign of life", (settle) =>
      this.connection.ping((failure) => {
        settle()
        if (failure?._tag === "lost") return this.callbacks.onLost(this, failure.error)
        if (this.heartbeatTimer === undefined) return
        this.scheduleHeartbeat()
        this.callbacks.onIdle(this)
      })
    )
  }
}
