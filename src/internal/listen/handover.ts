/**
 * The handover from one listening connection to another, without a missed or repeated message.
 *
 * The server delivers messages in the same order to all sessions. When both connections listen to
 * all channels, one message is sent as a mark. Listeners receive the messages of the old connection
 * until the mark, and those of the next connection after it.
 */

import { randomUUID } from "node:crypto"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import { quoteIdentifier } from "../sql/quote.js"
import type { ListenConnection } from "./connection.js"
import { type ConnectAnother, probeDelivery } from "./deliveryProbe.js"

/** Message that a connection has received. */
interface ReceivedMessage {
  readonly channel: string
  readonly payload: string
  readonly processId: number
}

/** Functions that a handover needs, and its callbacks. */
interface HandoverCallbacks {
  readonly connect: ConnectAnother
  /** Makes a listening connection of a connection. */
  readonly makeListening: (connection: Connection) => ListenConnection
  /** The timeout of each step, in ms. */
  readonly timeout: number
  /** Returns the channels that have listeners. */
  readonly channels: () => Iterable<string>
  /**
   * Called when the next connection listens to all channels. `sendMark` must follow when the old
   * connection is free.
   */
  readonly onReady: () => void
  /**
   * Called after success. `buffered` are the messages that the next connection has received since
   * the mark.
   */
  readonly onSucceeded: (next: ListenConnection, buffered: ReadonlyArray<ReceivedMessage>) => void
  /** Called when the handover has failed and the old connection remains in use. */
  readonly onFailed: () => void
  /**
   * Called when the handover has failed after the old connection received the mark, so messages may
   * be missed.
   */
  readonly onMissed: (error: Error) => void
}

/** Returns one text with a command for each channel. */
export const channelCommands = (command: string, channels: Iterable<string>): string =>
  Array.from(channels, (channel) => `${command} ${quoteIdentifier(channel)}`).join("; ")

/** Handover to a new connection. */
export class Handover {
  private next: ListenConnection | undefined
  private readonly mark = `effect_db_${randomUUID()}`
  private readonly buffered: Array<ReceivedMessage> = []
  private isReady = false
  private isMarking = false
  /**
   * The progress of the mark: `old` and `next` are true if that connection has received it, `sent`
   * if the old connection is free after sending it.
   */
  private readonly passed = { old: false, next: false, sent: false }
  private isDone = false
  private stop: () => void

  constructor(
    private readonly old: ListenConnection,
    private readonly callbacks: HandoverCallbacks
  ) {
    this.stop = callbacks.connect((_, connection) => {
      if (connection === undefined) return this.fail(new Error("no other connection could be made"))
      const next = callbacks.makeListening(connection)
      this.next = next
      this.stop = probeDelivery(next, callbacks.connect, callbacks.timeout, ({ _tag }) => {
        this.stop = () => {}
        if (_tag === "delivered") this.listenToMissing(next)
        else this.fail(new Error("the next connection does not receive messages"))
      })
    })
  }

  /** True if the old connection sends or awaits the mark, and must run no other command. */
  get isSendingMark(): boolean {
    return this.isMarking
  }

  /** Checks if this is the connection that the handover leads to. */
  isNext(listening: ListenConnection): boolean {
    return this.next === listening
  }

  /**
   * Sends the mark. The old connection must be free and listen to all channels with listeners. If
   * the next connection does not listen to all of them yet, runs its LISTEN instead.
   */
  sendMark(): void {
    const { next, old } = this
    if (!this.isReady || this.isMarking || next === undefined) return
    // a listener of another channel was added after the last LISTEN
    if (this.missing(next).length > 0) {
      // if the connection is busy with a heartbeat, its `onIdle` leads to another call
      if (!next.busy) this.listenToMissing(next)
      return
    }
    this.isMarking = true
    const { timeout } = this.callbacks
    this.stop = clock.later(timeout, () => this.fail(new Error(`the mark did not arrive within ${timeout} ms`)))
    const isRejected = (failure: { readonly error: Error } | undefined): boolean => {
      if (failure !== undefined) this.fail(failure.error)
      return this.isDone
    }
    old.command(channelCommands("LISTEN", [this.mark]), (failure) => {
      if (isRejected(failure)) return
      old.channels.add(this.mark)
      old.command(channelCommands("NOTIFY", [this.mark]), (failure) => {
        if (isRejected(failure)) return
        this.passed.sent = true
        this.completeIfPassed()
      })
    })
  }

  /** Processes a message of the old connection. Returns true if the listeners must receive it. */
  onOldMessage(channel: string): boolean {
    if (channel !== this.mark) return !this.passed.old
    this.passed.old = true
    this.completeIfPassed()
    return false
  }

  /** Processes a message of the next connection. Buffers it if it arrives after the mark. */
  onNextMessage(message: ReceivedMessage): void {
    if (message.channel === this.mark) {
      this.passed.next = true
      this.completeIfPassed()
    } else if (this.passed.next) this.buffered.push(message)
  }

  /** Fails the handover, closes the next connection, and reports the failure. */
  fail(error: Error): void {
    if (this.isDone) return
    this.cancel()
    if (this.passed.old) this.callbacks.onMissed(error)
    else this.callbacks.onFailed()
  }

  /** Closes the next connection without a callback. */
  cancel(): void {
    this.finish()
    this.next?.stopHeartbeat()
    this.next?.connection.end("excess")
  }

  private missing(next: ListenConnection): ReadonlyArray<string> {
    return [...this.callbacks.channels(), this.mark].filter((channel) => !next.channels.has(channel))
  }

  private listenToMissing(next: ListenConnection): void {
    this.isReady = false
    const channels = this.missing(next)
    next.command(channelCommands("LISTEN", channels), (failure) => {
      if (this.isDone) return
      if (failure !== undefined) return this.fail(failure.error)
      for (const channel of channels) next.channels.add(channel)
      this.isReady = true
      this.callbacks.onReady()
    })
  }

  private completeIfPassed(): void {
    const { buffered, next, passed } = this
    if (this.isDone || next === undefined || !passed.old || !passed.next || !passed.sent) return
    this.finish()
    this.callbacks.onSucceeded(next, buffered)
  }

  private finish(): void {
    this.isDone = true
    this.stop()
  }
}
