/**
 * The handover from one listening connection to another, without a missed or repeated message.
 *
 * The server delivers messages in one order, the same for all sessions. When both connections
 * listen to all channels, a mark is sent, which both receive. Messages of the old connection count
 * until the mark, those of the next connection after it.
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

/** Functions and callbacks of a handover. */
interface HandoverCallbacks {
  readonly connect: ConnectAnother
  /** Makes a listening connection of a connection. */
  readonly makeListening: (connection: Connection) => ListenConnection
  /** The timeout of each step, in ms. */
  readonly timeout: number
  /** Returns the channels that have listeners. */
  readonly channels: () => Iterable<string>
  /** The next step, `sendMark`, needs the old connection and waits until that is free. */
  readonly onReady: () => void
  /** The next connection listens, and has received these messages since the mark. */
  readonly onSucceeded: (next: ListenConnection, buffered: ReadonlyArray<ReceivedMessage>) => void
  /** The handover has failed, and the old connection goes on. */
  readonly onFailed: () => void
  /** The handover has failed after the mark, and messages may be missed. */
  readonly onMissed: (error: Error) => void
}

/** Returns one text with a command for each channel. */
export const channelCommands = (command: string, channels: Iterable<string>): string =>
  Array.from(channels, (channel) => `${command} ${quoteIdentifier(channel)}`).join("; ")

/** Handover to a connection that is made for it. */
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
        else this.fail(new Error("no message arrives on the other connection"))
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

  /** Sends the mark. The old connection must be free and listen to all channels with listeners. */
  sendMark(): void {
    const { next, old } = this
    if (!this.isReady || this.isMarking || next === undefined) return
    // a listener of another channel has come since the last LISTEN
    if (this.missing(next).length > 0) {
      // a connection that is busy with a heartbeat is free soon, and then reports that it is idle
      if (!next.busy) this.listenToMissing(next)
      return
    }
    this.isMarking = true
    const { timeout } = this.callbacks
    this.stop = clock.later(timeout, () => this.fail(new Error(`no message came within ${timeout} ms`)))
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

  /** Records a message on the old connection. Returns true if that message counts. */
  onOldMessage(channel: string): boolean {
    if (channel !== this.mark) return !this.passed.old
    this.passed.old = true
    this.completeIfPassed()
    return false
  }

  /** Buffers a message on the next connection if it comes after the mark. */
  onNextMessage(message: ReceivedMessage): void {
    if (message.channel === this.mark) {
      this.passed.next = true
      this.completeIfPassed()
    } else if (this.passed.next) this.buffered.push(message)
  }

  /** Fails the handover and closes the next connection. */
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
