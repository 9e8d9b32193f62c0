/**
 * The socket of the simulated network, which takes the place of `net.Socket` for the program under
 * test.
 */

import dns from "node:dns"
import { syncBuiltinESMExports } from "node:module"
import net from "node:net"
import { Duplex } from "node:stream"
import { type Link, Network } from "./network.js"

/** The network of this process. */
export const network = new Network()

/** Target of a connect, as `net.Socket` takes it. */
interface Target {
  readonly host?: string
  readonly port?: number
  readonly path?: string
}

/** Creates an error of a socket, as Node does. */
const socketError = (code: string, syscall: string, address = ""): Error =>
  Object.assign(new Error(`${syscall} ${code}${address === "" ? "" : ` ${address}`}`), { code, syscall })

/** Client socket of the simulated network. */
class SimulatedSocket extends Duplex {
  connecting = false
  bytesRead = 0
  remoteAddress: string | undefined = undefined
  remotePort: number | undefined = undefined
  private link: Link | undefined = undefined
  private cancelConnect: (() => void) | undefined = undefined
  private waiting: (() => void) | undefined = undefined

  constructor() {
    super({ allowHalfOpen: false })
  }

  connect(target: Target): this {
    const { host, port } = target
    if (host === undefined || port === undefined) throw new Error("the simulation has no Unix sockets")
    this.connecting = true
    this.cancelConnect = network.connect(host, port, {
      onConnected: (link) => {
        this.connecting = false
        this.link = link
        this.remoteAddress = host
        this.remotePort = port
        const { waiting } = this
        this.waiting = undefined
        waiting?.()
        this.emit("connect")
        this.emit("ready")
      },
      onFailed: (code) => this.destroy(socketError(code, "connect", `${host}:${port}`)),
      onData: (chunk) => {
        this.bytesRead += chunk.length
        this.push(chunk)
      },
      onEnd: () => {
        this.push(null)
        // a paused or unread stream would never see its end
        if (!this.readableFlowing) this.resume()
      },
      onReset: (code) => this.destroy(socketError(code, "read"))
    })
    return this
  }

  override _read(): void {}

  override _write(chunk: Buffer, _: BufferEncoding, callback: (error?: Error | null) => void): void {
    const send = () => {
      this.link?.sendToServer(chunk)
      callback()
    }
    if (this.link === undefined) this.waiting = send
    else send()
  }

  override _final(callback: () => void): void {
    this.link?.endByClient()
    callback()
  }

  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    this.connecting = false
    this.cancelConnect?.()
    this.link?.destroyByClient()
    callback(error)
  }

  setNoDelay(): this {
    return this
  }

  setKeepAlive(isOn?: boolean, delay?: number): this {
    this.link?.setKeepAlive(isOn === true ? (delay ?? 0) : undefined)
    return this
  }

  ref(): this {
    return this
  }

  unref(): this {
    return this
  }
}

/** Fails a way to the real network. */
const refused = (name: string) => (): never => {
  throw new Error(`the program under test has called ${name}, which the simulation does not replace`)
}

/** Puts the simulated network in the place of the real one. */
const replaceNetwork = (): void => {
  Object.assign(net, {
    Socket: SimulatedSocket,
    connect: refused("net.connect"),
    createConnection: refused("net.createConnection")
  })
  Object.assign(dns, { lookup: refused("dns.lookup") })
  syncBuiltinESMExports()
}

replaceNetwork()
