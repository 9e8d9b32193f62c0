/**
 * The connection that runs LISTEN. Every command and heartbeat has a timeout, after which the
 * connection counts as lost.
 */

import * as clock from "../concurrency/clock.js"
import type { Connection, Exchange, Failure } from "../connection/connection.js"

/** The timeout of a heartbeat, in ms. */
const pingTimeout = 1000

/** Callbacks of a listening connection. */
interface ListenCallbacks {
  /**
   * Called when the connection is lost or has timed out. Of several calls, the first has the cause.
   */
  readonly onLost: (listening: ListenConnection, error: Error) => void
  /** A heartbeat was answered, and the connection is free for a command. */
  readonly onIdle: (listening: ListenConnection) => void
}

/** Connection that listens to channels. */
export class ListenConnection {
  /** The channels that the server's session listens to. */
  readonly channels = new Set<string>()
  /** The probe in progress, which checks if messages arrive at all. */
  probe: { readonly channel: string; readonly onMessage: () => void } | undefined
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

  /**
   * Runs a command on the connection, which must be free. A loss is reported to `onLost`, and not
   * to `callback`.
   */
  command(
    text: string,
    callback: (failure: Exclude<Failure, { _tag: "lost" }> | undefined, exchange: Exchange) => void
  ): void {
    this.withTimeout(this.commandTimeout, text.slice(0, text.indexOf(" ")), (stopTimeout) =>
      this.connection.run(
        [],
        { text, values: [], rows: "object", prepare: false, simple: true },
        [],
        (failure, exchange) => {
          stopTimeout()
          if (failure?._tag === "lost") return this.callbacks.onLost(this, failure.error)
          callback(failure, exchange)
        }
      )
    )
  }

  /** Stops the heartbeats. */
  stopHeartbeat(): void {
    clock.clear(this.heartbeatTimer)
    this.heartbeatTimer = undefined
  }

  private withTimeout(timeout: number, awaited: string, start: (stopTimeout: () => void) => void): void {
    let pending: clock.Immediate | undefined
    const onTimeout = () => {
      this.callbacks.onLost(this, new Error(`no answer to ${awaited} within ${timeout} ms`))
      this.connection.destroy("broken")
    }
    const timer = clock.timer(timeout, () => {
      // the answer may have arrived while this process was busy, so the process first reads the
      // pending input
      pending = clock.immediate(onTimeout)
    })
    start(() => {
      clock.clear(timer)
      clock.clearImmediate(pending)
    })
  }

  private scheduleHeartbeat(): void {
    if (!Number.isFinite(this.heartbeatInterval)) return
    this.heartbeatTimer = clock.timer(this.heartbeatInterval, () => this.ping())
    // the socket keeps the process alive, so the heartbeat need not
    this.heartbeatTimer.unref()
  }

  private ping(): void {
    // a running command needs no heartbeat: its answer proves that the server is alive, and its
    // timeout ends the connection
    if (this.busy) return this.scheduleHeartbeat()
    this.withTimeout(pingTimeout, "a heartbeat", (stopTimeout) =>
      this.connection.ping((failure) => {
        stopTimeout()
        if (failure?._tag === "lost") return this.callbacks.onLost(this, failure.error)
        if (this.heartbeatTimer === undefined) return
        this.scheduleHeartbeat()
        this.callbacks.onIdle(this)
      })
    )
  }
}
