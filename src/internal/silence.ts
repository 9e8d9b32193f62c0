/**
 * A server that has a limit for statements and is silent for longer. On a dead network its word that the time is up never arrives, and
 * without this nobody would notice before TCP does, which takes minutes.
 */
import { later } from "./later.js"

/** What was sent and waits for its answer. */
interface Waiting {
  readonly limit: number
  readonly isLimited: boolean
  since: number
  heard: number
}

/** The connection, as far as this matters. */
export interface Line {
  /** How much has arrived on it, in bytes. */
  readonly heard: () => number
  /** Asks the server for a sign of life on another socket, for `patience` ms. */
  readonly ask: (patience: number, told: (yes: boolean) => void) => void
  readonly giveUp: (error: Error) => void
}

/** How much longer than its limit a server may be silent, in ms. Its word has to travel, and may be held up. */
const allowance = 1000

/** How much of that passes before it is asked for a sign of life. */
const untilAsked = 250

/** For how long a server that gave one is not asked again, in ms. */
const rest = 10_000

/** Looks after one connection: one timer, that goes on its own way while statements come and go. */
export class Silence {
  private waiting: Waiting | undefined
  private stop: (() => void) | undefined
  private due = 0

  constructor(private readonly line: Line) {}

  /**
   * Something was sent, and the server's limit for a statement is so many ms. `isLimited` says that it ends it for certain. What commits
   * may take longer, as it waits for a standby: then a server that shows signs of life is not given up.
   */
  sent(limit: number, isLimited: boolean): void {
    const waiting: Waiting = { limit, isLimited, since: performance.now(), heard: this.line.heard() }
    this.waiting = waiting
    this.wake(waiting)
  }

  answered(): void {
    this.waiting = undefined
  }

  private wake({ isLimited, limit, since }: Waiting): void {
    const due = since + limit + (isLimited ? allowance : untilAsked)
    // one that comes earlier looks at what waits then
    if (this.stop !== undefined && this.due <= due) return
    this.stop?.()
    this.due = due
    this.stop = later(due - performance.now(), () => {
      this.stop = undefined
      this.look()
    })
  }

  private look(): void {
    const { waiting } = this
    if (waiting === undefined) return
    const { isLimited, limit } = waiting
    if (this.isTalking(waiting)) waiting.since = performance.now()
    const silent = performance.now() - waiting.since - limit
    if (silent < (isLimited ? allowance : untilAsked)) return this.wake(waiting)
    const error = new Error(`no answer from the server, whose limit for a statement is ${limit} ms`)
    if (isLimited) return this.line.giveUp(error)
    this.line.ask(allowance - untilAsked, (yes) => {
      if (this.waiting !== waiting) return
      if (!yes && !this.isTalking(waiting)) return this.line.giveUp(error)
      waiting.since = performance.now() + rest
      this.wake(waiting)
    })
  }

  private isTalking(waiting: Waiting): boolean {
    const before = waiting.heard
    waiting.heard = this.line.heard()
    return waiting.heard !== before
  }
}
