/**
 * How one connection that listens takes over from another, so that nothing is missed and nothing is heard twice.
 *
 * The server hands out messages in one order, the same for all who listen. Both listen to all channels before a mark is sent that both
 * hear: what comes before it counts on the old connection, what comes after it on the next.
 */

import { randomUUID } from "node:crypto"
import * as clock from "../concurrency/clock.js"
import type { ConnectFailure, Connection } from "../connection/connection.js"
import { quoteIdentifier } from "../sql/quote.js"
import type { ListenConnection } from "./connection.js"
import { probeDelivery } from "./deliveryProbe.js"

/** What is heard. */
interface ReceivedMessage {
  readonly channel: string
  readonly payload: string
  readonly processId: number
}

/** What it is done for. */
interface HandoverCallbacks {
  readonly connect: (
    done: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void
  ) => () => void
  /** Makes a connection one that listens. */
  readonly makeListening: (connection: Connection) => ListenConnection
  readonly timeout: number
  /** The channels that are to be heard. */
  readonly channels: () => Iterable<string>
  /** All that can be done without the old connection is done; it is `cross` that comes next, when that one is free. */
  readonly onReady: () => void
  /** It is over: the next connection listens, and has heard these already. */
  readonly onSucceeded: (next: ListenConnection, kept: ReadonlyArray<ReceivedMessage>) => void
  /** It was not possible, and the old connection goes on. */
  readonly onFailed: () => void
  /** It was not possible, and something may have been missed. */
  readonly onMissed: (error: Error) => void
}

export const channelCommands = (command: string, channels: Iterable<string>): string =>
  Array.from(channels, (channel) => `${command} ${quoteIdentifier(channel)}`).join("; ")

export class Handover {
  private next: ListenConnection | undefined
  private readonly mark = `effect_db_${randomUUID()}`
  private readonly buffered: Array<ReceivedMessage> = []
  private isReady = false
  private isMarking = false
  /** Where the mark was heard, and whether the old connection is free again after it has sent it. */
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
        if (_tag === "heard") this.listenToMissing(next)
        else this.fail(new Error("the other connection hears nothing"))
      })
    })
  }

  /** Whether the old connection has a mark to listen to, and is to be asked for nothing else. */
  get isSendingMark(): boolean {
    return this.isMarking
  }

  /** Whether it is about this connection. */
  isNext(line: ListenConnection): boolean {
    return this.next === line
  }

  /** Sets the mark. To be called when the old connection is free and hears what is wanted. */
  sendMark(): void {
    const { next, old } = this
    if (!this.isReady || this.isMarking || next === undefined) return
    // another channel has come meanwhile
    if (this.missing(next).length > 0) {
      // one that is asked for a sign of life is free soon, and says so
      if (!next.busy) this.listenToMissing(next)
      return
    }
    this.isMarking = true
    const { timeout } = this.callbacks
    this.stop = clock.later(timeout, () => this.fail(new Error(`no message came within ${timeout} ms`)))
    const isRefused = (failure: { readonly error: Error } | undefined): boolean => {
      if (failure !== undefined) this.fail(failure.error)
      return this.isDone
    }
    old.command(channelCommands("LISTEN", [this.mark]), (failure) => {
      if (isRefused(failure)) return
      old.channels.add(this.mark)
      old.command(channelCommands("NOTIFY", [this.mark]), (failure) => {
        if (isRefused(failure)) return
        this.passed.sent = true
        this.completeIfPassed()
      })
    })
  }

  /** A message on the old connection; gives whether it counts. */
  onOldMessage(channel: string): boolean {
    if (channel !== this.mark) return !this.passed.old
    this.passed.old = true
    this.completeIfPassed()
    return false
  }

  onNextMessage(message: ReceivedMessage): void {
    if (message.channel === this.mark) {
      this.passed.next = true
      this.completeIfPassed()
    } else if (this.passed.next) this.buffered.push(message)
  }

  /** The next connection is of no use. */
  fail(error: Error): void {
    if (this.isDone) return
    this.cancel()
    if (this.passed.old) this.callbacks.onMissed(error)
    else this.callbacks.onFailed()
  }

  /** Gives up. */
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
    const { buffered, next } = this
    const { passed } = this
    if (this.isDone || next === undefined || !passed.old || !passed.next || !passed.sent) return
    this.finish()
    this.callbacks.onSucceeded(next, buffered)
  }

  private finish(): void {
    this.isDone = true
    this.stop()
  }
}
