/**
 * One listener of a channel: what it has heard and nobody has taken yet.
 */
import * as Effect from "effect/Effect"
import type { ListenError } from "../../DatabaseError.js"
import { Notification } from "../../Notification.js"

/**
 * - `joining`: the channel is not listened to yet.
 * - `hearing`: every message arrives.
 * - `deaf`: the connection is lost.
 */
type State = "joining" | "hearing" | "deaf"

const nothing = () => {}

export class Subscriber {
  state: State = "joining"
  /** Told once per attempt to join how that went. */
  onJoined: (error: ListenError | undefined) => void = nothing
  /** What is raised when all that was heard is taken. */
  failure: ListenError | undefined
  private buffer: Array<Notification> = []
  private dropped = 0
  private wake = nothing

  constructor(
    readonly channel: string,
    private readonly capacity: number,
    /** Whether its consumer can be told of a gap; if not, a gap is the end. */
    readonly toleratesGaps: boolean
  ) {}

  /** Waits until there is something to take, or the end. */
  readonly awaitChange: Effect.Effect<void> = Effect.async((resume) => {
    // it may have come since the last look
    if (this.buffer.length > 0 || this.failure !== undefined) return resume(Effect.void)
    this.wake = () => resume(Effect.void)
    return Effect.sync(() => {
      this.wake = nothing
    })
  })

  /** Takes all that was heard. What was dropped is said last: it is in the tables by now. */
  drain(): ReadonlyArray<Notification> {
    const taken = this.buffer
    this.buffer = []
    if (this.dropped > 0) {
      const message = `${this.dropped} messages did not fit into the buffer of ${this.capacity}`
      taken.push(Notification.Gap({ channel: this.channel, reason: "overflow", message }))
      this.dropped = 0
    }
    return taken
  }

  /** From here on it hears. `missed` says why it may have missed something. */
  onListening(missed = ""): void {
    const { channel, state } = this
    this.state = "hearing"
    if (state === "joining") {
      this.push(Notification.Listening({ channel }))
      this.onJoined(undefined)
      // a gap that is still to be taken is said after this one was: one is enough
    } else if (state === "deaf" && this.dropped === 0 && this.buffer.at(-1)?._tag !== "Gap") {
      this.push(Notification.Gap({ channel, reason: "disconnected", message: missed }))
    }
  }

  /** A message has arrived. Gives whether it is the first that does not fit. */
  receive(payload: string, processId: number): boolean {
    if (this.state !== "hearing") return false
    // the buffer stays full until it is taken, and so what is dropped is one hole, at its end
    if (!(this.buffer.length < this.capacity)) return this.dropped++ === 0
    this.push(Notification.Message({ channel: this.channel, payload, processId }))
    return false
  }

  /** It did not get as far as to hear anything. */
  reject(error: ListenError): void {
    this.onJoined(error)
  }

  /** The end, after what was heard. */
  fail(error: ListenError): void {
    this.failure ??= error
    this.wake()
  }

  private push(notification: Notification): void {
    this.buffer.push(notification)
    this.wake()
  }
}
