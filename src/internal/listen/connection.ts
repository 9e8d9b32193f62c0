/**
 * A connection that listens. Whatever it is asked is answered within its time, or it counts as lost.
 */

import * as clock from "../concurrency/clock.js"
import type { Connection, Exchange, Failure } from "../connection/connection.js"

/** How long it may take for a sign of life, in ms. */
const longestPing = 1000

/** What whoever uses it is told. */
interface User {
  /** It is gone, or silent. Told at least once, with what happened first. */
  readonly lost: (line: ListenConnection, error: Error) => void
  /** It has answered, and can be asked again. */
  readonly idle: (line: ListenConnection) => void
}

export class ListenConnection {
  /** The channels that it hears. */
  readonly heard = new Set<string>()
  /** A channel that somebody waits for to see whether anything is heard at all. */
  echo: { readonly channel: string; readonly heard: () => void } | undefined
  /** Whether it is known to hear what others send. */
  sound = false
  private beat: clock.Timer | undefined

  constructor(
    readonly connection: Connection,
    private readonly patience: number,
    private readonly heartbeat: number,
    private readonly user: User
  ) {
    this.rest()
  }

  get busy(): boolean {
    return this.connection.busy
  }

  /** Runs a command, one at a time. Where it is lost, only its user is told. */
  command(
    text: string,
    done: (failure: Exclude<Failure, { _tag: "lost" }> | undefined, flight: Exchange) => void
  ): void {
    this.within(this.patience, text.slice(0, text.indexOf(" ")), (settle) =>
      this.connection.run(
        [],
        { text, values: [], rows: "object", prepare: false, simple: true },
        [],
        (failure, flight) => {
          settle()
          if (failure?._tag === "lost") return this.user.lost(this, failure.error)
          done(failure, flight)
        }
      )
    )
  }

  /** Asks for no more signs of life. */
  leave(): void {
    clock.clear(this.beat)
    this.beat = undefined
  }

  private within(patience: number, what: string, go: (settle: () => void) => void): void {
    let last: clock.Immediate | undefined
    const giveUp = () => {
      this.user.lost(this, new Error(`no answer to ${what} within ${patience} ms`))
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

  private rest(): void {
    if (!Number.isFinite(this.heartbeat)) return
    this.beat = clock.timer(this.heartbeat, () => this.ping())
    // a socket keeps the process alive, what asks about it need not
    this.beat.unref()
  }

  private ping(): void {
    // what is under way is a sign of life, or the end
    if (this.busy) return this.rest()
    this.within(longestPing, "a sign of life", (settle) =>
      this.connection.ping((failure) => {
        settle()
        if (failure?._tag === "lost") return this.user.lost(this, failure.error)
        if (this.beat === undefined) return
        this.rest()
        this.user.idle(this)
      })
    )
  }
}
