/**
 * The data of a COPY, which goes between the messages of its exchange, as fast as the slower side takes it.
 */

import type { Socket } from "node:net"
import * as clock from "../concurrency/clock.js"
import * as wire from "./messages.js"

/** The connection, as far as a COPY needs it. */
export interface CopySocket {
  readonly stream: Socket
  /** The server is to send something now: its silence counts. */
  readonly waits: () => void
  /** The program is to do something now: the silence of the server means nothing. */
  readonly rests: () => void
}

/** The size of a message that is sent, and of the data that is kept until it is taken, in bytes. */
export const blockSize = 65_536

const nothing = () => {}

/** The data of a COPY FROM STDIN. */
export class CopyIn {
  readonly _tag = "in"
  private line: CopySocket | undefined
  private state: "waiting" | "sent" | "open" | "ended" = "waiting"
  private refusal: string | undefined
  private onOpen = nothing

  /** Whether the server waits for data. */
  get isOpen(): boolean {
    return this.state === "open"
  }

  /** Notes that the command is sent. */
  send(line: CopySocket): void {
    this.line = line
    this.state = "sent"
  }

  /** Notes that the server waits for data. */
  open(): void {
    this.state = "open"
    if (this.refusal !== undefined) return this.fail(this.refusal)
    this.line?.rests()
    this.onOpen()
  }

  /** Notes that the exchange has ended. */
  end(): void {
    this.state = "ended"
  }

  /** Calls back when the server waits for data. The returned function takes that back. */
  whenOpen(then: () => void): () => void {
    if (this.state === "open") then()
    else this.onOpen = then
    return () => {
      this.onOpen = nothing
    }
  }

  /** Sends data. After the end it is dropped, as the server would drop it. */
  write(bytes: Uint8Array): void {
    if (this.state !== "open" || this.line === undefined) return
    const { stream } = this.line
    stream.cork()
    for (let at = 0; at < bytes.length; at += blockSize) {
      const part = bytes.subarray(at, at + blockSize)
      stream.write(wire.copyHead(part.length))
      stream.write(part)
    }
    stream.uncork()
  }

  /**
   * Calls back when more may be sent. The returned function takes that back. It is never called at once: a socket that takes all that
   * it is given says so before anything else in this process has had its turn.
   */
  whenTaken(then: () => void): () => void {
    const { line } = this
    let soon: clock.Immediate | undefined
    const drained = () => {
      line?.rests()
      soon = clock.immediate(then)
    }
    if (line === undefined || this.state !== "open" || !line.stream.writableNeedDrain) soon = clock.immediate(then)
    else {
      line.waits()
      line.stream.once("drain", drained)
    }
    return () => {
      line?.stream.off("drain", drained)
      clock.clearImmediate(soon)
    }
  }

  /** Tells the server that all has been sent. */
  finish(): void {
    this.last(wire.copyDone)
  }

  /** Tells the server that there is nothing more and nothing of it is to be stored; as soon as it listens. */
  fail(reason: string): void {
    this.refusal = reason
    this.last(wire.copyFail(reason))
  }

  private last(message: Buffer): void {
    if (this.state !== "open" || this.line === undefined) return
    this.state = "sent"
    this.line.waits()
    this.line.stream.write(message)
  }
}

/** The data of a COPY TO STDOUT. */
export class CopyOut {
  readonly _tag = "out"
  /** Whether the server has, or may have, begun with it. */
  isSent = false
  private line: CopySocket | undefined
  private blocks: Array<Buffer> = []
  private size = 0
  private isPaused = false
  private isDropped = false
  private isEnded = false
  private taker: ((block: Buffer | undefined) => void) | undefined

  /** Notes that the command is sent. */
  send(line: CopySocket): void {
    this.line = line
    this.isSent = true
    // it may be sent again on another connection, when the first was lost before anything had run
    this.isEnded = false
    this.isPaused = false
  }

  /** Takes a part that has arrived: a row, or several. */
  receive(part: Buffer): void {
    if (this.isDropped) return
    // the parser uses its buffer again
    this.blocks.push(Buffer.from(part))
    this.size += part.length
    // other messages of the same chunk are taken along
    if (this.blocks.length === 1 && this.taker !== undefined) queueMicrotask(() => this.give())
    if (this.size < blockSize || this.isPaused || this.isEnded) return
    this.isPaused = true
    this.line?.stream.pause()
    this.line?.rests()
  }

  /** Notes that the exchange is answered: the connection is read again, also while data waits for the consumer. */
  answered(): void {
    this.isEnded = true
    if (!this.isPaused) return
    this.isPaused = false
    this.line?.stream.resume()
  }

  /** Notes that nothing more comes, after success or failure. */
  end(): void {
    this.isEnded = true
    this.give()
  }

  /** Calls back with the data that has arrived, or, after the end, with nothing. The returned function takes that back. */
  take(then: (block: Buffer | undefined) => void): () => void {
    this.taker = then
    this.give()
    return () => {
      this.taker = undefined
    }
  }

  /** Drops all data that still comes. */
  drop(): void {
    this.isDropped = true
    this.blocks = []
    this.goOn()
  }

  private give(): void {
    const { blocks, taker } = this
    if (taker === undefined || (blocks.length === 0 && !this.isEnded)) return
    this.taker = undefined
    this.blocks = []
    this.size = 0
    this.goOn()
    taker(blocks.length === 0 ? undefined : Buffer.concat(blocks))
  }

  private goOn(): void {
    if (!this.isPaused) return
    this.isPaused = false
    this.line?.waits()
    this.line?.stream.resume()
  }
}

/** The data of a COPY, in one direction or the other. */
export type Copy = CopyIn | CopyOut
