/**
 * The watchdog of a connection. It acts when the server is silent for longer than the server's
 * limit for statements. On a dead network the error of the limit never arrives, and TCP reports the
 * loss only after minutes.
 *
 * A silence after the limit is no proof of a dead server. Code on the server can change the limit
 * without a report, and a COMMIT, which has no limit, may wait for a standby. So before the
 * connection is given up, other sockets are used to check if the server is alive, and to query the
 * activity of its process.
 */
import * as clock from "../concurrency/clock.js"

/**
 * Activity of a server process: `working` on a statement, or `waiting` for the client. If an answer
 * is due from a waiting process, a message was lost. `unknown` if the query fails or the server
 * does not report the activity.
 */
export type BackendState = "working" | "waiting" | "unknown"

/** Exchange that awaits its answer. */
interface AwaitedAnswer {
  readonly limit: number
  /** The time of the last progress. */
  since: number
  /** The progress at that time. */
  progress: number
  /** The time of the next check. */
  due: number
  /** True if the last query has found the server process waiting for the client. */
  isBackendWaiting: boolean
}

/** Members of a connection that the watchdog uses. */
export interface MonitoredConnection {
  /** Returns a number that changes when bytes arrive or leave. */
  readonly progress: () => number
  /** Checks on another socket if the server answers within `timeout` ms. */
  readonly checkAlive: (timeout: number, callback: (isAlive: boolean) => void) => void
  /**
   * Queries the activity of the server process in another session; the returned function cancels.
   */
  readonly queryActivity: (callback: (state: BackendState) => void) => () => void
  /** Called when the connection is given up. */
  readonly onDead: (error: Error) => void
}

/**
 * The time for an answer to arrive after the limit, and again after the server process was found
 * waiting for the client, in ms.
 */
const grace = 1000

/** The time after the limit until the server is checked, in ms; a part of `grace`. */
const checkDelay = 250

/**
 * The shortest interval between two queries of the activity, in ms. If a working process has been
 * silent for longer since the limit, the interval is as long as the silence.
 */
const minInterval = 10_000

/** The longest silence after the limit, in ms, if the activity of the server process is unknown. */
const maxUnknownSilence = 30_000

/** Watchdog of one connection. It has one timer, which is not set again for each statement. */
export class Watchdog {
  private awaited: AwaitedAnswer | undefined
  private cancelTimer: (() => void) | undefined
  private cancelQuery: (() => void) | undefined
  private timerDue = 0

  constructor(private readonly connection: MonitoredConnection) {}

  /**
   * Begins to await an answer. `limit` is the known limit of the server for a statement, in ms.
   */
  onSent(limit: number): void {
    const since = clock.now()
    const due = since + limit + checkDelay
    const awaited: AwaitedAnswer = { limit, since, progress: this.connection.progress(), due, isBackendWaiting: false }
    this.awaited = awaited
    this.schedule(awaited)
  }

  /** Ends the wait for an answer. */
  onAnswered(): void {
    this.awaited = undefined
    this.cancelQuery?.()
    this.cancelQuery = undefined
  }

  private schedule({ due }: AwaitedAnswer): void {
    // a timer that fires earlier is kept: it checks the answer that is awaited when it fires
    if (this.cancelTimer !== undefined && this.timerDue <= due) return
    this.cancelTimer?.()
    this.timerDue = due
    this.cancelTimer = clock.later(due - clock.now(), () => {
      this.cancelTimer = undefined
      this.check()
    })
  }

  private check(): void {
    const { awaited } = this
    if (awaited === undefined) return
    if (this.hasProgress(awaited) || clock.now() < awaited.due) return this.schedule(awaited)
    // the process waits for the client, and the answer has not arrived within `grace` either
    if (awaited.isBackendWaiting) return this.giveUp(awaited)
    this.connection.checkAlive(grace - checkDelay, (isAlive) => {
      if (this.awaited !== awaited) return
      if (this.hasProgress(awaited)) return this.schedule(awaited)
      if (!isAlive) return this.giveUp(awaited)
      this.cancelQuery = this.connection.queryActivity((state) => {
        this.cancelQuery = undefined
        if (this.awaited === awaited) this.judge(awaited, state)
      })
    })
  }

  private judge(awaited: AwaitedAnswer, state: BackendState): void {
    const now = clock.now()
    if (!this.hasProgress(awaited)) {
      const silence = now - awaited.since - awaited.limit
      if (state === "unknown" && silence >= maxUnknownSilence) return this.giveUp(awaited)
      awaited.isBackendWaiting = state === "waiting"
      awaited.due =
        now + (awaited.isBackendWaiting ? grace : state === "working" ? Math.max(minInterval, silence) : minInterval)
    }
    this.schedule(awaited)
  }

  private giveUp({ limit }: AwaitedAnswer): void {
    this.connection.onDead(new Error(`no answer from the server within its limit for a statement, ${limit} ms`))
  }

  /**
   * Checks for progress since the last check, and records it. After progress the limit begins anew.
   */
  private hasProgress(awaited: AwaitedAnswer): boolean {
    const before = awaited.progress
    awaited.progress = this.connection.progress()
    if (awaited.progress === before) return false
    awaited.since = clock.now()
    awaited.due = awaited.since + awaited.limit + checkDelay
    awaited.isBackendWaiting = false
    return true
  }
}
