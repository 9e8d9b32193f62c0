/**
 * One physical connection: what is sent, how it ends, how it is cancelled. Callbacks, not fibers: this is the hot path.
 *
 * @since 0.1.0
 */

import * as Net from "node:net"
import * as Redacted from "effect/Redacted"
import type { ServerConfig, SessionConfig } from "./DatabaseConfig.js"
import { type Client, makeClient } from "./internal/driver.js"
import { type Done, type Failure, Flight, type Plan, type Result } from "./internal/flight.js"
import { settings } from "./internal/limits.js"
import { PreparedStatements } from "./internal/prepared.js"
import * as wire from "./internal/wire.js"
import type { CloseReason } from "./Observation.js"
import { type ConnectReason, connectReason, isStalePlan } from "./SqlState.js"

export type { Done, Failure, Flight, Result }

/**
 * A statement to send.
 *
 * @since 0.1.0
 * @category models
 */
export interface Request {
  readonly text: string
  readonly values: ReadonlyArray<unknown>
  readonly rows: "object" | "array"
  /** Whether the server may keep it prepared under a name. */
  readonly prepare: boolean
  /** Several commands in one text: the simple protocol, no parameters. */
  readonly simple: boolean
}

const schemaCommands = new Set(["ALTER", "CREATE", "DROP", "DISCARD", "DEALLOCATE"])

const lostError = () => new Error("Connection terminated unexpectedly")

/**
 * What happens to a connection, for the pool that owns it.
 *
 * @since 0.1.0
 * @category models
 */
export interface Owner {
  /** The server or the network ended it, in use or not. */
  readonly lost: (connection: Connection, error: Error) => void
  /** Its socket is closed. Called once, for whatever reason. */
  readonly closed: (connection: Connection, reason: CloseReason) => void
}

/**
 * One physical connection. It carries one flight at a time; whoever holds it keeps to that.
 *
 * @since 0.1.0
 * @category models
 */
export class Connection {
  /** Told when it is lost with no flight under way, for whoever holds it. */
  onLost: ((error: Error) => void) | undefined = undefined
  /** Set when it must not be used again. */
  broken: CloseReason | undefined = undefined
  readonly createdAt = performance.now()
  /** When the server last answered. */
  lastAnswer = this.createdAt
  /** The server's process; a pooler gives a number of its own, which is good for a cancel and nothing else. */
  readonly processId: number
  private flight: Flight | undefined = undefined
  private loss: Error | undefined = undefined
  private closed = false
  private readonly statements: PreparedStatements
  private portals = 0
  private readonly isPooled: boolean
  /** A pooled connection outlives its cancel: PgBouncer 1.18 ends itself over one that is cut short, by us or by the server's session. */
  private isCancelling = false

  /** @internal */
  constructor(
    private readonly client: Client,
    readonly server: ServerConfig,
    session: SessionConfig,
    private readonly parameters: Map<string, string>,
    /** Whether its session was told to refuse writes. */
    private readonly readOnly: boolean,
    private readonly owner: Owner
  ) {
    this.processId = client.processID ?? 0
    this.isPooled = session.mode === "transactionPooler"
    this.statements = new PreparedStatements(session.preparedStatements)
    client.on("error", (error: Error) => this.lose(error))
    client.on("end", () => this.lose(lostError()))
    client.connection.on("parseComplete", () => {
      if (this.flight !== undefined) this.flight.parsed++
    })
    client.connection.on("bindComplete", () => {
      if (this.flight !== undefined) this.flight.bound++
    })
    client.connection.on("readyForQuery", () => this.ready())
    client.connection.stream.once("close", () => this.close())
  }

  /** A value that the server reports, such as `in_hot_standby` or `server_version`; a pooler reports what it remembers. */
  parameter(name: string): string | undefined {
    return this.parameters.get(name)
  }

  /** `I` idle, `T` in a transaction, `E` in a failed one. */
  get status(): "I" | "T" | "E" | null {
    return this.client.getTransactionStatus()
  }

  /** Whether a flight is under way. */
  get busy(): boolean {
    return this.flight !== undefined
  }

  /** Sends a statement, with steps before and after it, in one write with one Sync. */
  run(before: ReadonlyArray<wire.Step>, request: Request, after: ReadonlyArray<wire.Step>, done: Done): void {
    const { text, values } = request
    if (request.simple) {
      return this.fly({
        bytes: () => wire.simple(checked(text)),
        before: 0,
        asArrays: request.rows === "array",
        simple: true,
        done
      })
    }
    const prepared = request.prepare ? this.statements.take(text) : undefined
    const parse = prepared === undefined || !prepared.parsed
    const shape = prepared?.shape
    this.fly({
      bytes: () =>
        wire.flight(
          before,
          {
            text: parse ? checked(text) : text,
            values,
            name: prepared?.name ?? "",
            parse,
            describe: shape === undefined,
            close: () => this.statements.takeToClose()
          },
          after
        ),
      before: before.length,
      after: after.length,
      asArrays: request.rows === "array",
      simple: false,
      prepared,
      shape,
      done: (failure, flight) => {
        if (prepared !== undefined && !prepared.parsed) {
          if (flight.parsed > before.length) prepared.parsed = true
          else this.statements.drop(text)
        }
        if (failure === undefined) {
          if (schemaCommands.has(flight.result.command ?? "")) this.statements.dropAll()
        } else if (failure._tag === "refused" && isStalePlan(failure.error.code ?? "", failure.error.message)) {
          this.statements.drop(text)
          // refused before it was bound, so nothing ran; and no transaction is harmed: it may be prepared again at once
          if (flight.bound === 0 && this.status === "I" && !parse) return this.run(before, request, after, done)
        }
        done(failure, flight)
      }
    })
  }

  /** Sends steps only. */
  steps(all: ReadonlyArray<wire.Step>, done: Done): void {
    this.fly({ bytes: () => wire.steps(all), before: all.length - 1, asArrays: false, simple: false, done })
  }

  /** Hears of every NOTIFY on the channels that it listens to. */
  onNotification(listener: (channel: string, payload: string) => void): void {
    this.client.on("notification", (message: { readonly channel: string; readonly payload?: string }) =>
      listener(message.channel, message.payload ?? "")
    )
  }

  /** Asks for a sign of life. */
  ping(done: Done): void {
    this.fly({ bytes: () => wire.syncOnly, before: 0, asArrays: false, simple: false, done })
  }

  /** A name for a portal, new on this connection. */
  nextPortal(): string {
    return `p${++this.portals}`
  }

  /** Opens a portal and fetches its first rows. It lives as long as the transaction. */
  openPortal(before: ReadonlyArray<wire.Step>, portal: string, request: Request, size: number, done: Done): void {
    this.fly({
      bytes: () => wire.openPortal(before, portal, checked(request.text), request.values, size),
      before: before.length,
      asArrays: false,
      simple: false,
      done
    })
  }

  /** Fetches more rows of the portal that `opened` has opened. */
  fetchPortal(portal: string, opened: Flight, size: number, done: Done): void {
    this.fly({
      bytes: () => wire.fetchPortal(portal, size),
      before: 0,
      asArrays: false,
      simple: false,
      shape: opened.shape,
      done
    })
  }

  /** Closes a portal. */
  closePortal(portal: string, done: Done): void {
    this.fly({ bytes: () => wire.closePortal(portal), before: 0, asArrays: false, simple: false, done })
  }

  /**
   * Gives up what it is doing and never uses it again: the server is asked to cancel, on a socket of its own, and the
   * connection is closed when it has answered, or after a second.
   */
  abort(reason: CloseReason): void {
    if (this.closed) return
    this.broken ??= reason
    if (this.flight === undefined) return this.destroy(reason)
    this.isCancelling = this.isPooled
    const done = () => {
      this.isCancelling = false
      this.destroy(reason)
    }
    // what a pooler has not given to a server yet goes with the connection, and would run some time if that stayed
    requestCancel(this.server, this.client, this.isPooled ? done : undefined)
    setTimeout(done, 1000).unref()
  }

  /** Closes it politely, if it is idle. */
  end(reason: CloseReason): void {
    if (this.closed) return
    if (this.flight !== undefined) return this.destroy(reason)
    this.broken ??= reason
    const stream = this.client.connection.stream
    // a server that does not take the goodbye is left without one
    const impatient = setTimeout(() => stream.destroy(), 1000)
    impatient.unref()
    stream.once("close", () => clearTimeout(impatient))
    this.client.end().catch(() => stream.destroy())
  }

  /** Closes the socket, at once unless a cancel is on its way through a pooler. */
  destroy(reason: CloseReason): void {
    this.broken ??= reason
    if (!this.isCancelling) this.client.connection.stream.destroy()
  }

  private fly(plan: Plan): void {
    const flight = new Flight(this.client, plan, this.flightLost)
    if (this.broken !== undefined || this.closed) {
      return plan.done({ _tag: "lost", error: this.loss ?? lostError(), sent: false, acknowledged: 0 }, flight)
    }
    const error = this.flight === undefined ? flight.prepare() : new Error("the connection is in use by somebody else")
    if (error !== undefined) return plan.done({ _tag: "unsendable", error, acknowledged: 0 }, flight)
    this.flight = flight
    this.client.query(flight)
  }

  private readonly flightLost = (flight: Flight, error: Error): void => {
    if (this.flight === flight) this.lose(error)
  }

  private ready(): void {
    const flight = this.flight
    if (flight === undefined) return
    this.flight = undefined
    this.lastAnswer = performance.now()
    if (this.readOnly && this.parameters.get("default_transaction_read_only") === "off") this.broken ??= "writable"
    if (this.broken !== undefined) this.destroy(this.broken)
    flight.plan.done(flight.failure(), flight)
  }

  private lose(error: Error): void {
    const flight = this.flight
    const before = this.broken
    this.broken ??= "broken"
    this.loss ??= error
    this.flight = undefined
    if (before === undefined) this.owner.lost(this, error)
    this.client.connection.stream.destroy()
    if (flight === undefined) this.onLost?.(error)
    flight?.plan.done({ _tag: "lost", error, sent: true, acknowledged: flight.acknowledged }, flight)
  }

  private close(): void {
    if (this.closed) return
    this.closed = true
    this.lose(lostError())
    this.owner.closed(this, this.broken ?? "broken")
  }
}

const checked = (text: string): string => {
  if (text.includes("\0")) throw new Error("the statement holds a NUL character")
  return text
}

/** How long a cancel may take to be passed on, in ms: PgBouncer gives up after ten seconds. */
const cancelPatience = 15_000

const requestCancel = (server: ServerConfig, client: Client, done: (() => void) | undefined): void => {
  const { processID, secretKey } = client
  if (processID === null || secretKey === null) return
  const socket = server.host.startsWith("/")
    ? Net.connect(`${server.host}/.s.PGSQL.${server.port}`)
    : Net.connect(server.port, server.host)
  socket.setTimeout(cancelPatience, () => socket.destroy())
  // whether it arrives or not, the connection is closed: there is nobody to tell
  socket.on("error", () => socket.destroy())
  if (done !== undefined) socket.on("close", done)
  // the other side closes it: a cancel that is hung up on too early ends PgBouncer 1.18, and so everybody's connections
  socket.on("connect", () => socket.write(wire.cancel(processID, secretKey)))
  socket.resume()
  socket.unref()
}

/**
 * Why a connect failed, with the driver's words.
 *
 * @since 0.1.0
 * @category models
 */
export interface ConnectFailure {
  readonly reason: ConnectReason
  readonly error: Error
}

/** What the session is told at login. A pooler would refuse it, for it could not keep to it. */
const sessionOptions = (session: SessionConfig, readOnly: boolean): string => {
  if (session.mode === "transactionPooler") return ""
  const all = settings(session).map(([name, value]) => `-c ${name}=${value}`)
  if (readOnly) all.push("-c default_transaction_read_only=on")
  return all.join(" ")
}

/**
 * Opens a connection; the returned function gives up. `done` is called once, unless it was given up before.
 *
 * @since 0.1.0
 * @category constructors
 */
export const connect = (
  server: ServerConfig,
  session: SessionConfig,
  options: { readonly timeout: number; readonly readOnly: boolean; readonly owner: Owner },
  done: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void
): (() => void) => {
  const client = makeClient({
    host: server.host,
    port: server.port,
    database: server.database,
    user: server.username,
    password: server.password === undefined ? undefined : Redacted.value(server.password),
    ssl: server.ssl,
    application_name: session.applicationName,
    options: sessionOptions(session, options.readOnly),
    keepAlive: true,
    ...(session.types === undefined ? {} : { types: session.types })
  })
  const parameters = new Map<string, string>()
  let settled = false
  let accepted = false
  const settle = () => {
    settled = true
    clearTimeout(timer)
  }
  const fail = (reason: ConnectReason, error: Error) => {
    if (settled) return
    settle()
    client.connection.stream.destroy()
    done({ reason, error }, undefined)
  }
  const timer = setTimeout(
    () => fail(accepted ? "unresponsive" : "unreachable", new Error(`no answer within ${options.timeout} ms`)),
    Math.min(options.timeout, 2_147_483_647)
  )
  client.connection.on("parameterStatus", (message: { parameterName: string; parameterValue: string }) => {
    parameters.set(message.parameterName, message.parameterValue)
  })
  client.connection.once("connect", () => {
    accepted = true
  })
  // errors after the first go to the connection's own listeners; none may be without a listener
  client.on("error", () => {})
  client.connect((error) => {
    if (settled) return
    if (error) {
      // a refusal of all the addresses of a host comes as one error with a code and no words
      const code = "code" in error && typeof error.code === "string" ? error.code : ""
      return fail(connectReason(code, error.message), error.message === "" ? new Error(code) : error)
    }
    clearTimeout(timer)
    const isGuarded = options.readOnly && session.mode === "session"
    const connection = new Connection(client, server, session, parameters, isGuarded, options.owner)
    // the client calls back before it has taken down its own state
    queueMicrotask(() => {
      if (settled) return
      settle()
      done(undefined, connection)
    })
  })
  return () => {
    if (settled) return
    settle()
    client.connection.stream.destroy()
  }
}
