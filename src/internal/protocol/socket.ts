/**
 * The stream that a connection is on: a socket that we connect, or one that the program gave.
 *
 * The driver calls `connect` with a host of its own; the streams here go where they are told to instead, so that the name in the settings
 * stays the one that a certificate is compared with.
 */

import * as Net from "node:net"
import { Duplex } from "node:stream"
import * as clock from "../concurrency/clock.js"

/** The end of a connection: an address, or the path of a Unix socket. */
export type SocketTarget = { readonly path: string } | { readonly host: string; readonly port: number }

/** Creates a socket that connects to `peer` when the driver says so. */
export const socketTo = (peer: SocketTarget): Net.Socket => {
  const socket = new Net.Socket()
  const connect = socket.connect.bind(socket)
  return Object.assign(socket, { connect: () => connect(peer) })
}

/** Reports a stream as connected, as a socket does that has been told to connect. */
const isConnectedAlready = (stream: Duplex) => () => {
  queueMicrotask(() => stream.emit("connect"))
  return stream
}

/** A stream that is no socket, with what the driver and the watch over a silent server ask a socket for. */
class StreamSocket extends Duplex {
  /** The number of bytes that have arrived. */
  bytesRead = 0

  constructor(private readonly inner: Duplex) {
    // the other side's end is the end of the connection
    super({ allowHalfOpen: false })
    inner.on("data", (chunk: Buffer) => {
      this.bytesRead += chunk.length
      if (!this.push(chunk)) inner.pause()
    })
    inner.once("end", () => this.push(null))
    inner.once("error", (error) => this.destroy(error))
    inner.once("close", () => this.destroy())
    inner.pause()
  }

  override _read(): void {
    this.inner.resume()
  }

  override _write(chunk: Buffer, encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.inner.write(chunk, encoding, done)
  }

  override _final(done: () => void): void {
    this.inner.end(done)
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.inner.destroy()
    // TLS over this stream reports its own error, such as a wrong name, in the turn after it has destroyed the stream
    clock.immediate(() => done(error))
  }

  setNoDelay(): this {
    return this
  }

  setKeepAlive(): this {
    return this
  }

  ref(): this {
    call(this.inner, "ref")
    return this
  }

  unref(): this {
    call(this.inner, "unref")
    return this
  }
}

/** Calls a member that a stream of the program may have, as a socket does. */
const call = (stream: Duplex, name: "ref" | "unref"): void => {
  const member: unknown = Reflect.get(stream, name)
  if (typeof member === "function") member.call(stream)
}

/** Returns a stream that the program has connected, for the driver. Throws if it is none, or is closed. */
export const connectedStream = (given: unknown): Net.Socket => {
  if (!(given instanceof Duplex)) throw new Error("the socket is no stream to read and write")
  if (given.destroyed) throw new Error("the socket is closed already")
  const stream = given instanceof Net.Socket ? given : new StreamSocket(given)
  // a socket has more members than the driver uses, all of which StreamSocket has
  return Object.assign(stream, { connect: isConnectedAlready(stream) }) as unknown as Net.Socket
}
