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
interface Message {
  readonly channel: string
  readonly payload: string
  readonly processId: number
}

/** What it is done for. */
interface Heir {
  readonly connect: (
    done: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void
  ) => () => void
  /** Makes a connection one that listens. */
  readonly line: (connection: Connection) => ListenConnection
  readonly patience: number
  /** The channels that are to be heard. */
  readonly wanted: () => Iterable<string>
  /** All that can be done without the old connection is done; it is `cross` that comes next, when that one is free. */
  readonly ready: () => void
  /** It is over: the next connection listens, and has heard these already. */
  readonly succeeded: (next: ListenConnection, kept: ReadonlyArray<Message>) => void
  /** It was not possible, and the old connection goes on. */
  readonly failed: () => void
  /** It was not possible, and something may have been missed. */
  readonly missed: (error: Error) => void
}

export const quoted = (command: string, channels: Iterable<string>): string =>
  Array.from(channels, (channel) => `${command} ${quoteIdentifier(channel)}`).join("; ")

export class Handover {
  private next: ListenConnection | undefined
  private readonly mark = `effect_db_${randomUUID()}`
  private readonly kept: Array<Message> = []
  private isReady = false
  private crossing = false
  /** Where the mark was heard, and whether the old connection is free again after it has sent it. */
  private readonly past = { old: false, next: false, sent: false }
  private isOver = false
  private stop: () => void

  constructor(
    private readonly old: ListenConnection,
    private readonly heir: Heir
  ) {
    this.stop = heir.connect((_, connection) => {
      if (connection === undefined) return this.fail(new Error("no other connection could be made"))
      const next = heir.line(connection)
      this.next = next
      this.stop = probeDelivery(next, heir.connect, heir.patience, ({ _tag }) => {
        this.stop = () => {}
        if (_tag === "heard") this.catchUp(next)
        else this.fail(new Error("the other connection hears nothing"))
      })
    })
  }

  /** Whether the old connection has a mark to listen to, and is to be asked for nothing else. */
  get isCrossing(): boolean {
    return this.crossing
  }

  /** Whether it is about this connection. */
  concerns(line: ListenConnection): boolean {
    return this.next === line
  }

  /** Sets the mark. To be called when the old connection is free and hears what is wanted. */
  cross(): void {
    const { next, old } = this
    if (!this.isReady || this.crossing || next === undefined) return
    // another channel has come meanwhile
    if (this.missing(next).length > 0) {
      // one that is asked for a sign of life is free soon, and says so
      if (!next.busy) this.catchUp(next)
      return
    }
    this.crossing = true
    const { patience } = this.heir
    this.stop = clock.later(patience, () => this.fail(new Error(`no message came within ${patience} ms`)))
    const isRefused = (failure: { readonly error: Error } | undefined): boolean => {
      if (failure !== undefined) this.fail(failure.error)
      return this.isOver
    }
    old.command(quoted("LISTEN", [this.mark]), (failure) => {
      if (isRefused(failure)) return
      old.heard.add(this.mark)
      old.command(quoted("NOTIFY", [this.mark]), (failure) => {
        if (isRefused(failure)) return
        this.past.sent = true
        this.settle()
      })
    })
  }

  /** A message on the old connection; gives whether it counts. */
  fromOld(channel: string): boolean {
    if (channel !== this.mark) return !this.past.old
    this.past.old = true
    this.settle()
    return false
  }

  fromNext(message: Message): void {
    if (message.channel === this.mark) {
      this.past.next = true
      this.settle()
    } else if (this.past.next) this.kept.push(message)
  }

  /** The next connection is of no use. */
  fail(error: Error): void {
    if (this.isOver) return
    this.leave()
    if (this.past.old) this.heir.missed(error)
    else this.heir.failed()
  }

  /** Gives up. */
  leave(): void {
    this.end()
    this.next?.leave()
    this.next?.connection.end("excess")
  }

  private missing(next: ListenConnection): ReadonlyArray<string> {
    return [...this.heir.wanted(), this.mark].filter((channel) => !next.heard.has(channel))
  }

  private catchUp(next: ListenConnection): void {
    this.isReady = false
    const channels = this.missing(next)
    next.command(quoted("LISTEN", channels), (failure) => {
      if (this.isOver) return
      if (failure !== undefined) return this.fail(failure.error)
      for (const channel of channels) next.heard.add(channel)
      this.isReady = true
      this.heir.ready()
    })
  }

  private settle(): void {
    const { kept, next } = this
    const { past } = this
    if (this.isOver || next === undefined || !past.old || !past.next || !past.sent) return
    this.end()
    this.heir.succeeded(next, kept)
  }

  private end(): void {
    this.isOver = true
    this.stop()
  }
}
