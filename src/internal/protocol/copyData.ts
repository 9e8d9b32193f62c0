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
  readonly awaitServer: () => void
  /** The program is to do something now: the silence of the server means nothing. */
  readonly awaitProgram: () => void
}

/** The size of a message that is sent, and of the data that is kept until it is taken, in bytes. */
export const blockSize = 65_536

const nothing = () => {}

/** The data of a COPY FROM STDIN. */
export class CopyIn {
  readonly _tag = "in"
  private connection: CopySocket | undefined
  private state: "waiting" | "sent" | "open" | "ended" = "waiting"
  private failReason: string | undefined
  private onOpen = nothing

  /** Whether the server waits for data. */
  get isOpen(): boolean {
    return this.state === "open"
  }

  /** Notes that the command is sent. */
  send(line: CopySocket): void {
    this.connection = line
    this.state = "sent"
  }

  /** Notes that the server waits for data. */
  open(): void {
    this.state = "open"
    if (this.failReason !== undefined) return this.fail(this.failReason)
    this.connection?.awaitProgram()
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
    if (this.state !== "open" || this.connection === undefined) return
    const { stream } = this.connection
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
  whenWritable(then: () => void): () => void {
    const { connection } = this
    let soon: clock.Immediate | undefined
    const drained = () => {
      connection?.awaitProgram()
      soon = clock.immediate(then)
    }
    if (connection === undefined || this.state !== "open" || !connection.stream.writableNeedDrain)
      soon = clock.immediate(then)
    else {
      connection.awaitServer()
      connection.stream.once("drain", drained)
    }
    return () => {
      connection?.stream.off("drain", drained)
      clock.clearImmediate(soon)
    }
  }

  /** Tells the server that all has been sent. */
  finish(): void {
    this.writeLast(wire.copyDone)
  }

  /** Tells the server that there is nothing more and nothing of it is to be stored; as soon as it listens. */
  fail(reason: string): void {
    this.failReason = reason
    this.writeLast(wire.copyFail(reason))
  }

  private writeLast(message: Buffer): void {
    if (this.state !== "open" || this.connection === undefined) return
    this.state = "sent"
    this.connection.awaitServer()
    this.connection.stream.write(message)
  }
}

/** The data of a COPY TO STDOUT. */
export class CopyOut {
  readonly _tag = "out"
  /** Whether the server has, or may have, begun with it. */
  isSent = false
  private connection: CopySocket | undefined
  private blocks: Array<Buffer> = []
  private size = 0
  private isPaused = false
  private isDiscarded = false
  private isEnded = false
  private reader: ((block: Buffer | undefined) => void) | undefined

  /** Notes that the command is sent. */
  send(line: CopySocket): void {
    this.connection = line
    this.isSent = true
    // it may be sent again on another connection, when the first was lost before anything had run
    this.isEnded = false
    this.isPaused = false
  }

  /** Takes a part that has arrived: a row, or several. */
  receive(part: Buffer): void {
    if (this.isDiscarded) return
    // the parser uses its buffer again
    this.blocks.push(Buffer.from(part))
    this.size += part.length
    // other messages of the same chunk are taken along
    if (this.blocks.length === 1 && this.reader !== undefined) queueMicrotask(() => this.deliver())
    if (this.size < blockSize || this.isPaused || this.isEnded) return
    this.isPaused = true
    this.connection?.stream.pause()
    this.connection?.awaitProgram()
  }

  /** Notes that the exchange is answered: the connection is read again, also while data waits for the consumer. */
  onAnswered(): void {
    this.isEnded = true
    if (!this.isPaused) return
    this.isPaused = false
    this.connection?.stream.resume()
  }

  /** Notes that nothing more comes, after success or failure. */
  end(): void {
    this.isEnded = true
    this.deliver()
  }

  /** Calls back with the data that has arrived, or, after the end, with nothing. The returned function takes that back. */
  read(then: (block: Buffer | undefined) => void): () => void {
    this.reader = then
    this.deliver()
    return () => {
      this.reader = undefined
    }
  }

  /** Drops all data that still comes. */
  discard(): void {
    this.isDiscarded = true
    this.blocks = []
    this.resume()
  }

  private deliver(): void {
    const { blocks, reader } = this
    if (reader === undefined || (blocks.length === 0 && !this.isEnded)) return
    this.reader = undefined
    this.blocks = []
    this.size = 0
    this.resume()
    reader(blocks.length === 0 ? undefined : Buffer.concat(blocks))
  }

  private resume(): void {
    if (!this.isPaused) return
    this.isPaused = false
    this.connection?.awaitServer()
    this.connection?.stream.resume()
  }
}

/** The data of a COPY, in one direction or the other. */
export type Copy = CopyIn | CopyOut
