/**
 * A socket that lets faults happen between the driver and the server. It reads the messages of both
 * sides, so that a fault can happen at one exact statement. Bytes in TLS cannot be read, and pass as
 * they are.
 */
import type * as Net from "node:net"
import { Duplex } from "node:stream"
import { faultCodes } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import type { FaultRule, FaultRules } from "./faultRules.js"
import {
  asksForEncryption,
  isCancelRequest,
  letterOf,
  MessageSplitter,
  makeMessage,
  textsFrom
} from "./messageSplitter.js"

type Delivery = () => void

const nothing = () => {}

/** Creates an error as the operating system reports it. */
const systemError = (code: string, call: string): Error =>
  Object.assign(new Error(`${call} ${code}`), { code, syscall: call })

/** The first byte of TLS. The first byte of a startup message is 0. */
const tlsHandshake = 0x16

let refusals = 0

/** Creates an error message of the server. */
const makeError = (sqlState: string, message: string, severity: "ERROR" | "FATAL"): Buffer =>
  makeMessage("E", [`S${severity}`, `V${severity}`, `C${sqlState}`, `M${message}`], Buffer.from([0]))

/** Socket with faults. */
export class FaultSocket extends Duplex {
  /** The number of bytes that have arrived, for the watchdog. */
  bytesRead = 0
  private readonly requests = new MessageSplitter()
  private readonly replies = new MessageSplitter()
  /** The first messages of a client have no letter; after a request for TLS nothing can be read. */
  private phase: "startup" | "encryption" | "messages" | "opaque" = "startup"
  /** The texts of prepared statements, by their names. */
  private readonly statements = new Map<string, string>()
  /** The errors in place of the server's, by the names of the statements that it does not know. */
  private readonly refused = new Map<string, Buffer>()
  /** True if the answer of the statement in progress must not arrive. */
  private isLosing = false
  /** The rules that hold back all deliveries, in both directions. */
  private readonly frozenBy = new Set<FaultRule>()
  /** The rule that delays the deliveries to the server at this moment. */
  private delayedBy: FaultRule | undefined
  private cancelDelay: Delivery = nothing
  /** True if the consumer has not read yet what was delivered. */
  private isFull = true
  private readonly toServer: Array<Delivery> = []
  private readonly toClient: Array<Delivery> = []

  constructor(
    private readonly inner: Net.Socket,
    readonly server: string,
    private readonly rules: FaultRules
  ) {
    super({ allowHalfOpen: false })
    rules.sockets.add(this)
    inner.on("data", (chunk: Buffer) => this.onReply(chunk))
    inner.once("end", () => this.deliver(this.toClient, () => this.push(null)))
    inner.once("error", (error) => this.destroy(error))
    inner.once("close", () => this.deliver(this.toClient, () => this.destroy()))
    inner.on("connect", () => this.emit("connect"))
    inner.pause()
    for (const rule of rules.ofConnections(server)) if (rule.kind._tag === "Freeze") this.frozenBy.add(rule)
  }

  get remoteAddress(): string | undefined {
    return this.inner.remoteAddress
  }

  get remotePort(): number | undefined {
    return this.inner.remotePort
  }

  connect(): this {
    const refusal = this.rules.ofConnections(this.server).find(({ kind }) => kind._tag === "Unreachable")
    if (refusal === undefined) this.inner.connect(0)
    else {
      refusal.onHappened()
      queueMicrotask(() => this.destroy(systemError(faultCodes.refusedConnect, "connect")))
    }
    return this
  }

  /** Applies a rule about connections that has been added. */
  onRule(rule: FaultRule): void {
    if (rule.matches !== undefined) return
    const { _tag } = rule.kind
    if (_tag === "Freeze") this.frozenBy.add(rule)
    else if (_tag === "Disconnect" || _tag === "Unreachable") this.reset()
    else return
    rule.onHappened()
  }

  /** Ends the effect of a rule that was removed. */
  onRemoved(rule: FaultRule): void {
    if (this.delayedBy === rule) {
      this.cancelDelay()
      this.delayedBy = undefined
    } else if (!this.frozenBy.delete(rule)) return
    this.flush()
    if (!this.isFull && this.frozenBy.size === 0) this.inner.resume()
  }

  override _read(): void {
    this.isFull = false
    if (this.frozenBy.size === 0) this.inner.resume()
  }

  override _write(chunk: Buffer, _: BufferEncoding, callback: (error?: Error | null) => void): void {
    // TLS that begins without a request
    if (this.phase === "startup" && chunk[0] === tlsHandshake) this.phase = "opaque"
    if (this.phase === "opaque") this.send(chunk)
    else
      this.requests.split(
        chunk,
        () => this.phase === "messages",
        (message) => this.onRequest(message)
      )
    // the operating system takes bytes that cannot be delivered yet, up to the size of its buffer
    if (this.inner.writableNeedDrain && this.frozenBy.size === 0) this.inner.once("drain", callback)
    else callback()
  }

  override _final(callback: () => void): void {
    this.deliver(this.toServer, () => this.inner.end())
    callback()
  }

  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    this.rules.sockets.delete(this)
    this.cancelDelay()
    this.toServer.length = 0
    this.toClient.length = 0
    this.inner.destroy()
    callback(error)
  }

  setNoDelay(): this {
    this.inner.setNoDelay()
    return this
  }

  setKeepAlive(isOn?: boolean, delay?: number): this {
    this.inner.setKeepAlive(isOn, delay)
    return this
  }

  ref(): this {
    this.inner.ref()
    return this
  }

  unref(): this {
    this.inner.unref()
    return this
  }

  /** Closes the connection on both sides, as a network or a server that dies. */
  private reset(): void {
    this.destroy(systemError(faultCodes.reset, "read"))
  }

  private onRequest(message: Buffer): void {
    if (this.phase === "startup") return this.onStartup(message)
    const letter = letterOf(message)
    const text = this.statementOf(letter, message)
    const rule = text === undefined ? undefined : this.rules.atStatement(this.server, text)
    const standing = this.delayOfServer()
    if (standing?.kind._tag === "Delay") {
      standing.onHappened()
      this.delay(standing, standing.kind.millis)
    }
    if (rule === undefined) return this.send(message)
    switch (rule.kind._tag) {
      case "Disconnect":
        return this.deliver(this.toServer, () => this.reset())
      case "Freeze":
        this.frozenBy.add(rule)
        return this.send(message)
      case "Delay":
        this.delay(rule, rule.kind.millis)
        return this.send(message)
      case "LoseAnswer":
        this.isLosing = true
        return this.send(message)
      case "Refuse":
        return this.send(this.refuse(letter, rule.kind))
      default:
        return this.send(message)
    }
  }

  private onStartup(message: Buffer): void {
    if (asksForEncryption(message)) {
      this.phase = "encryption"
      return this.send(message)
    }
    if (isCancelRequest(message)) {
      const delay = this.delayOfServer()
      if (delay?.kind._tag === "Delay") this.delay(delay, delay.kind.millis)
      return this.send(message)
    }
    this.phase = "messages"
    const rule = this.rules.ofConnections(this.server).find(({ kind }) => kind._tag === "RefuseLogin")
    if (rule?.kind._tag !== "RefuseLogin") return this.send(message)
    rule.onHappened()
    this.push(makeError(rule.kind.sqlState, rule.kind.message, "FATAL"))
    this.push(null)
    this.inner.destroy()
  }

  /** Returns the text of the statement that a message executes, if it executes one. */
  private statementOf(letter: string, message: Buffer): string | undefined {
    if (letter === "Q") return textsFrom(message, 5, 1)[0]
    const [first = "", second = ""] = textsFrom(message, 5, 2)
    if (letter === "P") this.statements.set(first, second)
    // a Bind names its portal, then its statement
    return letter === "B" ? this.statements.get(second) : undefined
  }

  /** Returns a message that the server refuses, in place of a statement, and keeps the answer to it. */
  private refuse(
    letter: string,
    { message, sqlState }: { readonly message: string; readonly sqlState: string }
  ): Buffer {
    const name = `effect_db_fault_${++refusals}`
    this.refused.set(name, makeError(sqlState, message, "ERROR"))
    if (letter === "Q") return makeMessage("Q", [`EXECUTE ${name}`])
    return makeMessage("B", ["", name], Buffer.alloc(6))
  }

  private onReply(chunk: Buffer): void {
    if (this.phase === "encryption") {
      this.phase = chunk[0] === "N".charCodeAt(0) ? "startup" : "opaque"
      return this.receive(chunk)
    }
    if (this.phase !== "messages") return this.receive(chunk)
    const passed: Array<Buffer> = []
    this.replies.split(
      chunk,
      () => true,
      (message) => {
        // the server is ready for the next request, so it has executed this one
        if (this.isLosing && letterOf(message) === "Z") this.reset()
        if (!this.isLosing) passed.push(letterOf(message) === "E" ? this.answerTo(message) : message)
      }
    )
    if (passed.length > 0) this.receive(Buffer.concat(passed))
  }

  /** Returns the error of a refused statement in place of the server's error. */
  private answerTo(message: Buffer): Buffer {
    if (this.refused.size === 0) return message
    const fields = textsFrom(message, 5, 20)
    if (!fields.includes(`C${faultCodes.unknownStatement}`)) return message
    for (const [name, answer] of this.refused) {
      if (!fields.some((field) => field.startsWith("M") && field.includes(name))) continue
      this.refused.delete(name)
      return answer
    }
    return message
  }

  /** Returns the rule that delays all requests to the server, if there is one. */
  private delayOfServer(): FaultRule | undefined {
    return this.rules.ofConnections(this.server).find(({ kind }) => kind._tag === "Delay")
  }

  private delay(rule: FaultRule, millis: number): void {
    if (this.delayedBy !== undefined) return
    this.delayedBy = rule
    this.cancelDelay = clock.later(millis, () => {
      this.delayedBy = undefined
      this.flush()
    })
  }

  private send(bytes: Buffer): void {
    this.deliver(this.toServer, () => void this.inner.write(bytes))
  }

  private receive(bytes: Buffer): void {
    this.deliver(this.toClient, () => {
      this.bytesRead += bytes.length
      if (this.push(bytes)) return
      this.isFull = true
      this.inner.pause()
    })
  }

  /** Delivers now, or in its order after what is held back. */
  private deliver(queue: Array<Delivery>, delivery: Delivery): void {
    queue.push(delivery)
    this.flush()
  }

  private flush(): void {
    if (this.frozenBy.size > 0) return
    if (this.delayedBy === undefined) run(this.toServer)
    run(this.toClient)
  }
}

const run = (queue: Array<Delivery>): void => {
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) next()
}
