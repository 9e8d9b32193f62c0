/**
 * The stream of a connection: a socket that is connected here, or a stream of the program. No other
 * file creates sockets, so that a simulation can replace the network as a whole.
 *
 * The driver calls `connect` with the host of its settings. The streams here ignore that host and
 * have a target of their own, so that an address can be dialled while the certificate is compared
 * with the host in the settings.
 */

import * as Net from "node:net"
import { Duplex } from "node:stream"
import * as clock from "../concurrency/clock.js"

/** Target of a connection: an address, or the path of a Unix socket. */
export type SocketTarget = { readonly path: string } | { readonly host: string; readonly port: number }

/** Creates a socket that connects to `target` when the driver calls `connect`. */
export const socketTo = (target: SocketTarget): Net.Socket => {
  const socket = new Net.Socket()
  const connect = socket.connect.bind(socket)
  return Object.assign(socket, { connect: () => connect(target) })
}

/** Creates a `connect` for an open stream. It reports the stream as connected, like a socket. */
const connectAtOnce = (stream: Duplex) => () => {
  queueMicrotask(() => stream.emit("connect"))
  return stream
}

/** Stream that is no socket, with the members of a socket that the driver and the watchdog use. */
class StreamSocket extends Duplex {
  /** The number of bytes that have arrived, for the watchdog. */
  bytesRead = 0

  constructor(private readonly inner: Duplex) {
    // the connection is closed when the server ends its side
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

  override _write(chunk: Buffer, encoding: BufferEncoding, callback: (error?: Error | null) => void): void {
    this.inner.write(chunk, encoding, callback)
  }

  override _final(callback: () => void): void {
    this.inner.end(callback)
  }

  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    this.inner.destroy()
    // TLS over this stream first destroys the stream and reports its own error, such as a wrong
    // name, one turn later
    clock.immediate(() => callback(error))
  }

  setNoDelay(): this {
    return this
  }

  setKeepAlive(): this {
    return this
  }

  ref(): this {
    callIfPresent(this.inner, "ref")
    return this
  }

  unref(): this {
    callIfPresent(this.inner, "unref")
    return this
  }
}

/** Calls a method of a socket if a stream of the program has it. */
const callIfPresent = (stream: Duplex, name: "ref" | "unref"): void => {
  const member: unknown = Reflect.get(stream, name)
  if (typeof member === "function") member.call(stream)
}

/**
 * Returns a connected stream of the program, for the driver. Throws if it is closed or no stream.
 */
export const connectedStream = (given: unknown): Net.Socket => {
  if (!(given instanceof Duplex)) throw new Error("the socket is no stream to read and write")
  if (given.destroyed) throw new Error("the socket is closed already")
  const stream = given instanceof Net.Socket ? given : new StreamSocket(given)
  // the cast: StreamSocket has all members of a socket that the driver uses
  return Object.assign(stream, { connect: connectAtOnce(stream) }) as unknown as Net.Socket
}
