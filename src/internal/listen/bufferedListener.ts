/**
 * A listener of a channel that keeps notifications in a buffer until its consumer takes them.
 */
import * as Effect from "effect/Effect"
import type { ListenError } from "../../DatabaseError.js"
import { Notification } from "../../Notification.js"
import type { ListenerFailure } from "./failure.js"
import type { Listener, ListenerState } from "./listeners.js"

const nothing = () => {}

/** Listener with a buffer, for an effect that consumes the notifications. */
export class BufferedListener implements Listener {
  state: ListenerState = "joining"
  /** Called once per attempt to join, with the error if it has failed. */
  onJoined: (error: ListenError | undefined) => void = nothing
  /** The failure that the consumer receives after the buffered notifications. */
  failure: ListenError | undefined
  private buffer: Array<Notification> = []
  private dropped = 0
  private wake = nothing

  constructor(
    readonly channel: string,
    private readonly capacity: number,
    readonly toleratesGaps: boolean,
    private readonly toError: (failure: ListenerFailure) => ListenError
  ) {}

  /** Waits for a notification in the buffer, or for a failure. */
  readonly awaitChange: Effect.Effect<void> = Effect.async((resume) => {
    // a notification may have arrived since the last `drain`
    if (this.buffer.length > 0 || this.failure !== undefined) return resume(Effect.void)
    this.wake = () => resume(Effect.void)
    return Effect.sync(() => {
      this.wake = nothing
    })
  })

  /**
   * Removes and returns all notifications. The gap of dropped messages is the last one, because
   * they arrived after the buffered messages. When a consumer receives the gap, the writes that the
   * dropped messages announced are committed.
   */
  drain(): ReadonlyArray<Notification> {
    const drained = this.buffer
    this.buffer = []
    if (this.dropped > 0) {
      const message = `${this.dropped} messages did not fit into the buffer of ${this.capacity}`
      drained.push(Notification.Gap({ channel: this.channel, reason: "overflow", message }))
      this.dropped = 0
    }
    return drained
  }

  onListening(cause = ""): void {
    const { channel, state } = this
    this.state = "listening"
    if (state === "joining") {
      this.push(Notification.Listening({ channel }))
      this.onJoined(undefined)
      // a gap at the end of the buffer, or after it, includes this one: one gap is enough
    } else if (state === "disconnected" && this.dropped === 0 && this.buffer.at(-1)?._tag !== "Gap") {
      this.push(Notification.Gap({ channel, reason: "disconnected", message: cause }))
    }
  }

  receive(payload: string, processId: number): boolean {
    if (this.state !== "listening") return false
    // the buffer stays full until it is drained, so the dropped messages are one gap at its end
    if (!(this.buffer.length < this.capacity)) return this.dropped++ === 0
    this.push(Notification.Message({ channel: this.channel, payload, processId }))
    return false
  }

  reject(failure: ListenerFailure): void {
    this.onJoined(this.toError(failure))
  }

  fail(failure: ListenerFailure): void {
    this.failure ??= this.toError(failure)
    this.wake()
  }

  private push(notification: Notification): void {
    this.buffer.push(notification)
    this.wake()
  }
}
