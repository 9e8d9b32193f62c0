/**
 * The listeners of a database, by their channels.
 */

import type { ConnectionFailure, ListenerFailure } from "./failure.js"

/**
 * State of a listener.
 *
 * - `joining`: the connection does not listen to the channel yet.
 * - `listening`: the connection listens to the channel.
 * - `disconnected`: the connection is lost.
 */
export type ListenerState = "joining" | "listening" | "disconnected"

/** Listener of a channel. */
export interface Listener {
  readonly channel: string
  /** True if the consumer accepts gaps as notifications. Otherwise a gap is a failure. */
  readonly toleratesGaps: boolean
  state: ListenerState
  /**
   * Marks the listener as listening. After a loss of the connection, `cause` is the reason of the
   * gap.
   */
  readonly onListening: (cause?: string) => void
  /** Buffers a message; returns true if it is the first that does not fit. */
  readonly receive: (payload: string, processId: number) => boolean
  /** Fails the attempt to join. */
  readonly reject: (failure: ListenerFailure) => void
  /** Ends the listener with a failure, after the buffered notifications. */
  readonly fail: (failure: ListenerFailure) => void
}

/** Receiver of the reports of listeners that are too slow for their buffers. */
interface OverflowReports {
  readonly overflowed: (channel: string) => void
}

const none: ReadonlyArray<never> = []

/** Registry of listeners. */
export class Listeners {
  private readonly byChannel = new Map<string, Set<Listener>>()

  get isEmpty(): boolean {
    return this.byChannel.size === 0
  }

  channels(): Iterable<string> {
    return this.byChannel.keys()
  }

  has(channel: string): boolean {
    return this.byChannel.has(channel)
  }

  /** Returns a copy of the listeners of a channel, which later changes do not affect. */
  of(channel: string): ReadonlyArray<Listener> {
    const listeners = this.byChannel.get(channel)
    return listeners === undefined ? none : [...listeners]
  }

  /**
   * Delivers a message to the listeners of its channel. Fails and removes those whose buffer is full
   * and which accept no gaps. Each buffer that becomes full is reported.
   */
  deliver(channel: string, payload: string, processId: number, reports: OverflowReports): void {
    for (const listener of this.byChannel.get(channel) ?? none) {
      if (!listener.receive(payload, processId)) continue
      reports.overflowed(channel)
      if (listener.toleratesGaps) continue
      listener.fail({ _tag: "Missed", reason: "overflow" })
      this.remove(listener)
    }
  }

  add(listener: Listener): void {
    const others = this.byChannel.get(listener.channel)
    if (others === undefined) this.byChannel.set(listener.channel, new Set([listener]))
    else others.add(listener)
  }

  /** Removes a listener; returns false if it is not registered. */
  remove(listener: Listener): boolean {
    const others = this.byChannel.get(listener.channel)
    if (others?.delete(listener) !== true) return false
    if (others.size === 0) this.byChannel.delete(listener.channel)
    return true
  }

  /**
   * Handles a loss of the connection. Listeners that accept gaps and had joined become
   * `disconnected`; all others are removed and fail.
   */
  onDisconnected(cause: ConnectionFailure): void {
    for (const channel of [...this.byChannel.keys()]) {
      for (const listener of this.of(channel)) {
        if (listener.state !== "joining" && listener.toleratesGaps) {
          listener.state = "disconnected"
          continue
        }
        this.remove(listener)
        if (listener.state === "joining") listener.reject(cause)
        else listener.fail({ _tag: "Missed", reason: "disconnected", cause })
      }
    }
  }

  /** Removes all listeners and fails them. */
  failAll(failure: ListenerFailure): void {
    const all = [...this.byChannel.values()]
    this.byChannel.clear()
    for (const listeners of all) {
      for (const listener of listeners) {
        if (listener.state === "joining") listener.reject(failure)
        else listener.fail(failure)
      }
    }
  }
}
