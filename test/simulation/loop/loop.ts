/**
 * A virtual event loop: timers, input and output, and immediate callbacks run in the order of Node,
 * at a time that jumps from event to event. There is one loop for the process, because the program
 * under test reads the globals of the process.
 */
import { type Event, EventQueue } from "./eventQueue.js"

/** The start of the virtual time, in ms since 1970. */
export const epoch = 1_750_000_000_000

/** A cancellable entry of the queue of immediate callbacks. */
export interface ImmediateEntry {
  run: (() => void) | undefined
}

/** Virtual event loop of the process. */
class Loop {
  /** The virtual time, in ms since the start. It never goes back. */
  now = 0
  /** The difference of the wall clock from the virtual time, which clock steps change. */
  wallOffset = 0
  /** The number of events so far. */
  steps = 0
  /** Timers of the program under test. */
  timers = new EventQueue()
  /** Events of the simulation: packets, work of the servers, faults. */
  private events = new EventQueue()
  private immediates: Array<ImmediateEntry> = []
  private order = 0
  private phase: "timers" | "events" | "immediates" = "timers"
  /** The immediate callbacks of this turn. */
  private turn: Array<ImmediateEntry> = []
  private turnIndex = 0
  /** No timer and no event of this turn is later. */
  private horizon = 0

  /** Begins a new virtual time, and forgets all events of the one before. */
  reset(): void {
    this.now = 0
    this.wallOffset = 0
    this.steps = 0
    this.timers = new EventQueue()
    this.events = new EventQueue()
    this.immediates = []
    this.turn = []
    this.turnIndex = 0
    this.order = 0
    this.phase = "timers"
    this.horizon = 0
  }

  /** Sets a timer of the program under test. */
  setTimer(delay: number, run: () => void): Event {
    const event: Event = { at: this.now + delay, order: this.order++, run }
    this.timers.add(event)
    return event
  }

  /** Schedules an event of the simulation; the returned function cancels it. */
  schedule(delay: number, run: () => void): () => void {
    const event: Event = { at: this.now + Math.max(0, delay), order: this.order++, run }
    const { events } = this
    events.add(event)
    return () => events.cancel(event)
  }

  addImmediate(run: () => void): ImmediateEntry {
    const entry: ImmediateEntry = { run }
    this.immediates.push(entry)
    return entry
  }

  /** Returns the wall clock, in ms since 1970. */
  wallTime(): number {
    return epoch + this.now + this.wallOffset
  }

  /**
   * Lets the time pass without running anything, as if the process had been busy. Timers that are due
   * run before input that has arrived.
   */
  stall(millis: number): void {
    this.now += millis
  }

  /**
   * Runs one event. Returns false if there is none. Microtasks and ticks run after each event, when
   * control has returned to the real event loop.
   */
  step(): boolean {
    for (;;) {
      if (this.phase === "timers") {
        const timer = this.timers.peek()
        if (timer !== undefined && timer.at <= this.horizon) {
          this.timers.take()
          return this.run(timer)
        }
        this.phase = "events"
        continue
      }
      if (this.phase === "events") {
        const event = this.events.peek()
        if (event !== undefined && event.at <= this.horizon) {
          this.events.take()
          return this.run(event)
        }
        this.phase = "immediates"
        this.turn = this.immediates
        this.turnIndex = 0
        this.immediates = []
        continue
      }
      while (this.turnIndex < this.turn.length) {
        const entry = this.turn[this.turnIndex++]
        if (entry?.run !== undefined) return this.run(entry)
      }
      this.phase = "timers"
      if (!this.advance()) return false
    }
  }

  private run(entry: { run: (() => void) | undefined }): true {
    const { run } = entry
    entry.run = undefined
    this.steps++
    run?.()
    return true
  }

  /** Moves the time to the next event. */
  private advance(): boolean {
    if (!this.immediates.some(({ run }) => run !== undefined)) {
      const next = Math.min(
        this.timers.peek()?.at ?? Number.POSITIVE_INFINITY,
        this.events.peek()?.at ?? Number.POSITIVE_INFINITY
      )
      if (next === Number.POSITIVE_INFINITY) return false
      this.now = Math.max(this.now, next)
    }
    this.horizon = this.now
    return true
  }
}

/** The loop of this process. */
export const loop = new Loop()
