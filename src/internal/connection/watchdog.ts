/**
 * A server that has a limit for statements and is silent for longer. On a dead network its word that the time is up never arrives, and
 * without this nobody would notice before TCP does, which takes minutes.
 *
 * That the time is over proves nothing: the limit may be another one by now, for whatever runs on the server can change it and says so to
 * nobody; and a COMMIT, which has no limit, waits for a standby. So the server is asked, on other sockets, before it is given up: whether
 * it lives, and what its process is doing.
 */
import * as clock from "../concurrency/clock.js"

/**
 * What a process of the server is doing: `works` for us, or `waits` for us to say something, which means that what it has said, or what we
 * have, is lost. `unknown` where the server does not tell.
 */
export type BackendState = "works" | "waits" | "unknown"

/** What was sent and waits for its answer. */
interface Waiting {
  readonly limit: number
  /** When the server was heard last. */
  since: number
  /** How much was heard by then. */
  heard: number
  /** When to look next. */
  due: number
  /** Whether its process was found waiting for us. */
  isMissed: boolean
}

/** The connection, as far as this matters. */
export interface MonitoredConnection {
  /** How much has arrived on it, in bytes. */
  readonly heard: () => number
  /** Asks the server for a sign of life on another socket, for `patience` ms. */
  readonly ask: (patience: number, told: (yes: boolean) => void) => void
  /** Asks the server, in another session, what its process is doing. The returned function gives up. */
  readonly inquire: (told: (doing: BackendState) => void) => () => void
  readonly giveUp: (error: Error) => void
}

/** How much longer than its limit a server may be silent that shows no sign of life, in ms. Its word has to travel, and may be held up. */
const allowance = 1000

/** How much of that passes before it is asked for one. */
const untilAsked = 250

/** For how long one that works is not asked again, in ms, or for as long as it has worked already. */
const rest = 10_000

/** How long one that does not tell what it does may be silent after its limit, in ms. */
const longestDoubt = 30_000

/** Looks after one connection: one timer, that goes on its own way while statements come and go. */
export class Watchdog {
  private waiting: Waiting | undefined
  private stop: (() => void) | undefined
  private stopInquiry: (() => void) | undefined
  private due = 0

  constructor(private readonly line: MonitoredConnection) {}

  /** Something was sent, and the server's limit for a statement is so many ms, as far as is known. */
  sent(limit: number): void {
    const since = clock.now()
    const due = since + limit + untilAsked
    const waiting: Waiting = { limit, since, heard: this.line.heard(), due, isMissed: false }
    this.waiting = waiting
    this.wake(waiting)
  }

  answered(): void {
    this.waiting = undefined
    this.stopInquiry?.()
    this.stopInquiry = undefined
  }

  private wake({ due }: Waiting): void {
    // one that comes earlier looks at what waits then
    if (this.stop !== undefined && this.due <= due) return
    this.stop?.()
    this.due = due
    this.stop = clock.later(due - clock.now(), () => {
      this.stop = undefined
      this.look()
    })
  }

  private look(): void {
    const { waiting } = this
    if (waiting === undefined) return
    if (this.isTalking(waiting) || clock.now() < waiting.due) return this.wake(waiting)
    // its answer has had its time to arrive
    if (waiting.isMissed) return this.giveUp(waiting)
    this.line.ask(allowance - untilAsked, (yes) => {
      if (this.waiting !== waiting) return
      if (this.isTalking(waiting)) return this.wake(waiting)
      if (!yes) return this.giveUp(waiting)
      this.stopInquiry = this.line.inquire((doing) => {
        this.stopInquiry = undefined
        if (this.waiting === waiting) this.judge(waiting, doing)
      })
    })
  }

  private judge(waiting: Waiting, doing: BackendState): void {
    const now = clock.now()
    if (!this.isTalking(waiting)) {
      const silent = now - waiting.since - waiting.limit
      if (doing === "unknown" && silent >= longestDoubt) return this.giveUp(waiting)
      waiting.isMissed = doing === "waits"
      waiting.due = now + (waiting.isMissed ? allowance : doing === "works" ? Math.max(rest, silent) : rest)
    }
    this.wake(waiting)
  }

  private giveUp({ limit }: Waiting): void {
    this.line.giveUp(new Error(`no answer from the server, whose limit for a statement is ${limit} ms`))
  }

  /** Whether something was heard since the last look; then it has its time anew. */
  private isTalking(waiting: Waiting): boolean {
    const before = waiting.heard
    waiting.heard = this.line.heard()
    if (waiting.heard === before) return false
    waiting.since = clock.now()
    waiting.due = waiting.since + waiting.limit + untilAsked
    waiting.isMissed = false
    return true
  }
}
