/**
 * A connection to a PGlite, as a stream for the driver.
 */
import { Duplex } from "node:stream"
import { faultCodes } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import {
  asksForEncryption,
  isCancelRequest,
  letterOf,
  MessageSplitter,
  makeMessage,
  textsFrom
} from "./messageSplitter.js"
import type { PgliteConnection, PgliteSession } from "./pgliteSession.js"

/** The time that a connection waits for the one session, in ms. */
const longestWait = 2000

const nothing = () => {}

const copyFrom = /^\s*COPY\b[^;]*\bFROM\s+STDIN\b/i

/** The statement in place of a COPY with data of the client, at which a PGlite ends. */
const refuseCopy = `DO $$ BEGIN RAISE EXCEPTION 'PGlite cannot read the data of COPY' USING ERRCODE = '${faultCodes.featureNotSupported}', HINT = 'Insert the rows, or use a server.'; END $$`

/** The letters of messages after which the server answers. */
const ends = new Set(["S", "Q", "H", "c", "f"])

let connections = 0

/** Returns the parameters of a startup message. */
const parametersOf = (message: Buffer): ReadonlyMap<string, string> => {
  const texts = textsFrom(message, 8, 100)
  return new Map(texts.flatMap((name, i) => (i % 2 === 0 && name !== "" ? [[name, texts[i + 1] ?? ""]] : [])))
}

/** Returns the settings of a session in the form of libpq's `options`. */
const settingsIn = (options: string): Map<string, string> =>
  new Map(
    Array.from(options.matchAll(/-c\s*([\w.]+)=((?:\\.|[^\s\\])*)/g), ([, name = "", value = ""]) => [
      name,
      value.replace(/\\(.)/g, "$1")
    ])
  )

/** Stream to a PGlite. */
export class PgliteSocket extends Duplex implements PgliteConnection {
  settings: ReadonlyMap<string, string> = new Map()
  listens = false
  private readonly requests = new MessageSplitter()
  /** The prefix of the names of statements and portals, which are shared by all connections. */
  private readonly prefix = `effect_db_${++connections}_`
  private isStarted = false
  private exchange: Array<Buffer> = []
  private isWaiting = false
  private leave = nothing
  private stopWaiting = nothing

  constructor(private readonly session: PgliteSession) {
    super({ allowHalfOpen: false })
    session.connections.add(this)
  }

  receive(messages: Buffer): void {
    if (!this.destroyed) this.push(messages)
  }

  fail(error: unknown): void {
    this.destroy(error instanceof Error ? error : new Error(String(error)))
  }

  override _read(): void {}

  override _write(chunk: Buffer, _: BufferEncoding, callback: (error?: Error | null) => void): void {
    this.requests.split(
      chunk,
      () => this.isStarted,
      (message) => this.onMessage(message)
    )
    callback()
  }

  override _final(callback: () => void): void {
    this.push(null)
    callback()
  }

  override _destroy(error: Error | null, callback: (error: Error | null) => void): void {
    this.leave()
    this.stopWaiting()
    this.session.end(this)
    callback(error)
  }

  private onMessage(message: Buffer): void {
    if (!this.isStarted) return this.onStartup(message)
    const letter = letterOf(message)
    if (letter === "X") return void this.end()
    this.exchange.push(this.rename(letter, message))
    if (ends.has(letter)) this.send()
  }

  private onStartup(message: Buffer): void {
    if (asksForEncryption(message)) return this.receive(Buffer.from("N"))
    // a statement cannot be cancelled: it runs in this process, to its end
    if (isCancelRequest(message)) return void this.destroy()
    this.isStarted = true
    this.settings = settingsIn(parametersOf(message).get("options") ?? "")
    this.session.start(this, message)
  }

  /** Sends what was collected, as soon as the connection has the session. */
  private send(): void {
    if (this.isWaiting) return
    this.isWaiting = true
    this.stopWaiting = clock.later(longestWait, () => {
      this.leave()
      this.isWaiting = false
      this.exchange = []
      this.receive(this.refusal())
    })
    this.leave = this.session.acquire(this, () => {
      this.stopWaiting()
      this.isWaiting = false
      const messages = Buffer.concat(this.exchange)
      this.exchange = []
      this.session.execute(this, messages)
    })
  }

  /** Returns the answer to an exchange that has waited too long for the session. */
  private refusal(): Buffer {
    const text = "the one session of PGlite is in a transaction of another connection"
    const hint = "Use TestDatabase.layer over this database, or a server."
    const error = makeMessage(
      "E",
      ["SERROR", "VERROR", `C${faultCodes.lockNotAvailable}`, `M${text}`, `H${hint}`],
      Buffer.alloc(1)
    )
    return Buffer.concat([error, makeMessage("Z", [], Buffer.from("I"))])
  }

  /** Adds the prefix to the names of statements and portals in a message. */
  private rename(letter: string, message: Buffer): Buffer {
    const named = (name: string) => (name === "" ? "" : this.prefix + name)
    const rest = (texts: ReadonlyArray<string>, from: number) =>
      message.subarray(from + texts.reduce((sum, text) => sum + Buffer.byteLength(text) + 1, 0))
    if (letter === "Q" && copyFrom.test(message.toString("utf8", 5))) return makeMessage("Q", [refuseCopy])
    if (letter === "P" && copyFrom.test(textsFrom(message, 5, 2)[1] ?? ""))
      return makeMessage("P", [named(textsFrom(message, 5, 1)[0] ?? ""), refuseCopy], Buffer.alloc(2))
    if (letter === "Q" || letter === "P") this.listens ||= /\blisten\b/i.test(message.toString("latin1"))
    if (letter === "P" || letter === "E") {
      const texts = textsFrom(message, 5, 1)
      return makeMessage(letter, texts.map(named), rest(texts, 5))
    }
    if (letter === "B") {
      const texts = textsFrom(message, 5, 2)
      return makeMessage("B", texts.map(named), rest(texts, 5))
    }
    if (letter === "D" || letter === "C") {
      const [name = ""] = textsFrom(message, 6, 1)
      return makeMessage(letter, [String.fromCharCode(message[5] ?? 0) + named(name)])
    }
    return message
  }
}
