/**
 * The data of a COPY, which is sent between the messages of its exchange. A side that reads slowly
 * slows the other side down.
 */

import type { Socket } from "node:net"
import * as clock from "../concurrency/clock.js"
import * as messages from "./frontendMessages.js"

/** Members of a connection that a COPY uses. */
export interface CopySocket {
  readonly stream: Socket
  /** Called when the server must send or read next, so that the watchdog counts its silence. */
  readonly awaitServer: () => void
  /** Called when the program must act next, so that the silence of the server does not count. */
  readonly awaitProgram: () => void
}

/**
 * The largest size of a sent message with data, and the size of the received data at which reading
 * is paused, in bytes.
 */
export const blockSize = 65_536

const nothing = () => {}

/** Data of a COPY FROM STDIN. */
export class CopyIn {
  readonly _tag = "in"
  private connection: CopySocket | undefined
  private state: "waiting" | "sent" | "open" | "ended" = "waiting"
  private failReason: string | undefined
  private onOpen = nothing

  /** True if the server waits for data. */
  get isOpen(): boolean {
    return this.state === "open"
  }

  /** Marks the command as sent. */
  send(connection: CopySocket): void {
    this.connection = connection
    this.state = "sent"
  }

  /**
   * Marks the server as waiting for data, and calls the callback of `whenOpen`. After `fail`, sends
   * the failure instead.
   */
  open(): void {
    this.state = "open"
    if (this.failReason !== undefined) return this.fail(this.failReason)
    this.connection?.awaitProgram()
    this.onOpen()
  }

  /** Marks the exchange as ended. */
  end(): void {
    this.state = "ended"
  }

  /** Calls back when the server waits for data. The returned function cancels. */
  whenOpen(callback: () => void): () => void {
    if (this.state === "open") callback()
    else this.onOpen = callback
    return () => {
      this.onOpen = nothing
    }
  }

  /** Sends data if the server waits for data, and discards it otherwise. */
  write(bytes: Uint8Array): void {
    if (this.state !== "open" || this.connection === undefined) return
    const { stream } = this.connection
    stream.cork()
    for (let at = 0; at < bytes.length; at += blockSize) {
      const part = bytes.subarray(at, at + blockSize)
      stream.write(messages.encodeCopyHeader(part.length))
      stream.write(part)
    }
    stream.uncork()
  }

  /**
   * Calls back when more may be sent. The returned function cancels. The callback is never called
   * at once, because with a socket that is never full the rest of the process would not run.
   */
  whenWritable(callback: () => void): () => void {
    const { connection } = this
    let pending: clock.Immediate | undefined
    const onDrain = () => {
      connection?.awaitProgram()
      pending = clock.immediate(callback)
    }
    if (connection === undefined || this.state !== "open" || !connection.stream.writableNeedDrain)
      pending = clock.immediate(callback)
    else {
      connection.awaitServer()
      connection.stream.once("drain", onDrain)
    }
    return () => {
      connection?.stream.off("drain", onDrain)
      clock.clearImmediate(pending)
    }
  }

  /** Sends the message that ends the data. */
  finish(): void {
    this.writeLast(messages.copyDone)
  }

  /**
   * Sends the message that makes the server store none of the data. If the server does not wait for
   * data yet, the message is sent when it does.
   */
  fail(reason: string): void {
    this.failReason = reason
    this.writeLast(messages.encodeCopyFail(reason))
  }

  private writeLast(message: Buffer): void {
    if (this.state !== "open" || this.connection === undefined) return
    this.state = "sent"
    this.connection.awaitServer()
    this.connection.stream.write(message)
  }
}

/** Data of a COPY TO STDOUT. */
export class CopyOut {
  readonly _tag = "out"
  /** True if the server may have begun to send data. */
  isSent = false
  private connection: CopySocket | undefined
  private blocks: Array<Buffer> = []
  private size = 0
  private isPaused = false
  private isDiscarded = false
  private isEnded = false
  private reader: ((block: Buffer | undefined) => void) | undefined

  /** Marks the command as sent. */
  send(connection: CopySocket): void {
    this.connection = connection
    this.isSent = true
    // the command is sent again on another connection if the first connection was lost before the
    // command ran
    this.isEnded = false
    this.isPaused = false
  }

  /**
   * Buffers a part that has arrived, which holds one row or several. Pauses reading when the buffer
   * is full.
   */
  receive(part: Buffer): void {
    if (this.isDiscarded) return
    // copied, because the parser reuses its buffer
    this.blocks.push(Buffer.from(part))
    this.size += part.length
    // in a microtask, so that the reader gets all messages of a chunk in one block
    if (this.blocks.length === 1 && this.reader !== undefined) queueMicrotask(() => this.deliver())
    if (this.size < blockSize || this.isPaused || this.isEnded) return
    this.isPaused = true
    this.connection?.stream.pause()
    this.connection?.awaitProgram()
  }

  /**
   * Resumes reading after the answer to the exchange, even if data waits for the reader: the
   * connection may be used for other exchanges.
   */
  onAnswered(): void {
    this.isEnded = true
    if (!this.isPaused) return
    this.isPaused = false
    this.connection?.stream.resume()
  }

  /** Marks the data as complete, after success or failure. */
  end(): void {
    this.isEnded = true
    this.deliver()
  }

  /**
   * Calls back with the buffered data as soon as there is any, or with `undefined` after the end.
   * The returned function cancels.
   */
  read(callback: (block: Buffer | undefined) => void): () => void {
    this.reader = callback
    this.deliver()
    return () => {
      this.reader = undefined
    }
  }

  /** Discards the data that is buffered or still arrives. */
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

/** Data of a COPY, in one direction or the other. */
export type Copy = CopyIn | CopyOut
