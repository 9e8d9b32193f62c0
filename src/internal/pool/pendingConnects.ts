/**
 * The connects that are under way. One that takes so long that nobody counts on it any more is late.
 */

import * as clock from "../concurrency/clock.js"
import { type ConnectOptions, connect } from "../connection/connect.js"
import type { ConnectFailure, Connection, Owner } from "../connection/connection.js"

type OnConnect = (start: number, failure: ConnectFailure | undefined, connection: Connection | undefined) => void

export class PendingConnects {
  /** How to give up each of them, and when it was begun. */
  private readonly all = new Map<() => void, number>()

  constructor(
    private readonly opening: ConnectOptions,
    private readonly owner: Owner,
    /** For how long a connect is counted on, in ms. */
    private readonly hope: () => number,
    /** Called when the one that has been under way for longest is late. */
    private readonly onLate: () => void
  ) {}

  get size(): number {
    return this.all.size
  }

  /** How many are late. */
  get late(): number {
    const since = clock.now() - this.hope()
    let late = 0
    for (const start of this.all.values()) if (start <= since) late++
    return late
  }

  /** How many there are, and for how long the first has been under way; if there are any. */
  get progress(): { readonly count: number; readonly longest: number } | undefined {
    for (const start of this.all.values()) return { count: this.all.size, longest: clock.now() - start }
    return undefined
  }

  /** Begins one. `done` is called once, not before this has returned, unless it is given up. */
  begin(done: OnConnect): void {
    const start = clock.now()
    const stop = connect(this.opening, this.owner, (failure, connection) => {
      takeBack()
      this.all.delete(giveUp)
      done(start, failure, connection)
    })
    let takeBack: () => void
    const watch = (millis: number) => {
      takeBack = clock.later(millis, () => {
        // others may have shown since that it takes longer
        const left = start + this.hope() - clock.now()
        if (left >= 0) return watch(left + 1)
        // one that takes for ever holds up nobody, not even the one for whom it was begun; where all do, more of them would be no help
        const [oldest] = this.all.keys()
        if (oldest === giveUp) this.onLate()
      })
    }
    watch(this.hope() + 1)
    const giveUp = () => {
      takeBack()
      stop()
    }
    this.all.set(giveUp, start)
  }

  giveUp(): void {
    for (const giveUp of this.all.keys()) giveUp()
    this.all.clear()
  }
}
