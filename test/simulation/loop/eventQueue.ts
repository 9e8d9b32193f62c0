/**
 * The events of the virtual time, in the order of their times; events of one time keep their order.
 */

/** Event at a virtual time, in ms. `run` is cleared when the event has run or was cancelled. */
export interface Event {
  at: number
  order: number
  run: (() => void) | undefined
}

const isBefore = (a: Event, b: Event): boolean => a.at < b.at || (a.at === b.at && a.order < b.order)

/** Priority queue of events (a binary heap). Cancelled events stay in it until their time. */
export class EventQueue {
  private readonly heap: Array<Event> = []
  private cancelled = 0

  /** The number of events that are not cancelled. */
  get size(): number {
    return this.heap.length - this.cancelled
  }

  add(event: Event): void {
    const { heap } = this
    let i = heap.push(event) - 1
    while (i > 0) {
      const parent = (i - 1) >> 1
      const above = heap[parent]
      if (above === undefined || !isBefore(event, above)) break
      heap[i] = above
      heap[parent] = event
      i = parent
    }
  }

  cancel(event: Event): void {
    if (event.run === undefined) return
    event.run = undefined
    this.cancelled++
    // most timers are cancelled long before their time
    if (this.cancelled > 1000 && this.cancelled > this.heap.length / 2) this.compact()
  }

  /** Returns the first event. */
  peek(): Event | undefined {
    for (;;) {
      const first = this.heap[0]
      if (first === undefined || first.run !== undefined) return first
      this.removeFirst()
      this.cancelled--
    }
  }

  /** Removes and returns the first event. */
  take(): Event | undefined {
    const first = this.peek()
    if (first !== undefined) this.removeFirst()
    return first
  }

  private removeFirst(): void {
    const { heap } = this
    const last = heap.pop()
    if (last === undefined || heap.length === 0) return
    heap[0] = last
    this.sink(0)
  }

  private sink(from: number): void {
    const { heap } = this
    const event = heap[from]
    if (event === undefined) return
    let i = from
    for (;;) {
      let child = 2 * i + 1
      const left = heap[child]
      if (left === undefined) break
      const right = heap[child + 1]
      if (right !== undefined && isBefore(right, left)) child++
      const next = heap[child]
      if (next === undefined || !isBefore(next, event)) break
      heap[i] = next
      heap[child] = event
      i = child
    }
  }

  private compact(): void {
    const left = this.heap.filter(({ run }) => run !== undefined)
    this.heap.length = 0
    this.cancelled = 0
    for (const event of left) this.add(event)
  }
}
