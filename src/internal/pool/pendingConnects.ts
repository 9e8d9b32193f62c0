/**
 * The connects in progress. After a multiple of the usual time a connect is late, which means that
 * it is no longer expected to succeed.
 */

import * as clock from "../concurrency/clock.js"
import { type ConnectOptions, connect } from "../connection/connect.js"
import type { ConnectFailure, Connection, Owner } from "../connection/connection.js"

type OnConnect = (start: number, failure: ConnectFailure | undefined, connection: Connection | undefined) => void

export class PendingConnects {
  /** The start of each connect, by the function that cancels it. */
  private readonly all = new Map<() => void, number>()

  constructor(
    private readonly options: ConnectOptions,
    private readonly owner: Owner,
    /** Returns the time after which a connect is late, in ms. */
    private readonly expectedConnectTime: () => number,
    /** Called when the connect that began first is late. */
    private readonly onLate: () => void
  ) {}

  get size(): number {
    return this.all.size
  }

  /** Returns the start of the oldest connect, or infinity. */
  get oldestStart(): number {
    for (const start of this.all.values()) return start
    return Number.POSITIVE_INFINITY
  }

  /** Returns the number of late connects. */
  get lateCount(): number {
    const since = clock.now() - this.expectedConnectTime()
    let count = 0
    for (const start of this.all.values()) if (start <= since) count++
    return count
  }

  /** Returns the number of connects and the age of the oldest in ms, if there are any. */
  get progress(): { readonly count: number; readonly longestMillis: number } | undefined {
    for (const start of this.all.values()) return { count: this.all.size, longestMillis: clock.now() - start }
    return undefined
  }

  /**
   * Begins a connect. `callback` is called once, not before this call returns, and never after
   * {@link cancelAll}.
   */
  begin(callback: OnConnect): void {
    const start = clock.now()
    const cancelConnect = connect(this.options, this.owner, (failure, connection) => {
      cancelWatch()
      this.all.delete(cancel)
      callback(start, failure, connection)
    })
    let cancelWatch: () => void
    const watch = (millis: number) => {
      cancelWatch = clock.later(millis, () => {
        // the expected time may have grown, because other connects have taken longer since
        const remaining = start + this.expectedConnectTime() - clock.now()
        if (remaining >= 0) return watch(remaining + 1)
        // a late connect is replaced by another one, but only if it is the oldest: if all connects
        // are late, more of them would not help
        const [oldest] = this.all.keys()
        if (oldest === cancel) this.onLate()
      })
    }
    watch(this.expectedConnectTime() + 1)
    const cancel = () => {
      cancelWatch()
      cancelConnect()
    }
    this.all.set(cancel, start)
  }

  cancelAll(): void {
    for (const cancel of this.all.keys()) cancel()
    this.all.clear()
  }
}
