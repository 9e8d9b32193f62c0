/**
 * One physical connection: what is sent, how it ends, how it is cancelled. Callbacks, not fibers: this is the hot path.
 *
 * @since 0.1.0
 */

import * as Net from "node:net"
import * as Redacted from "effect/Redacted"
import type { ServerConfig, SessionConfig } from "./DatabaseConfig.js"
import type { CallSite } from "./internal/callSite.js"
import type { Login } from "./internal/credentials.js"
import { type Client, makeClient } from "./internal/driver.js"
import { type Done, type Failure, Flight, type Plan, type Result } from "./internal/flight.js"
import { PreparedStatements } from "./internal/prepared.js"
import * as wire from "./internal/wire.js"
import type { CloseReason } from "./Observation.js"
import { type ConnectReason, connectReason, isStalePlan, meaning } from "./SqlState.js"

export type { Done, Failure, Flight, Result }

/**
 * A statement to send.
 *
 * @since 0.1.0
 * @category models
 */
export interface Request {
  /** Where it was written, while somebody wants to know. */
  readonly site?: CallSite | undefined
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
  readonly processId: number
  /** When it was handed out last; 0 if it never was. */
  takenAt = 0
  /** From when on it is handed out no more. */
  retireAt = Number.POSITIVE_INFINITY
  /** Why it is not, then. */
  retireAs: CloseReason = "aged"
  private flight: Flight | undefined = undefined
  private loss: Error | undefined = undefined
  private closed = false
  private readonly statements: PreparedStatements
  private portals = 0

  /** @internal */
  constructor(
    private readonly client: Client,
    readonly server: ServerConfig,
    session: SessionConfig,
    private readonly parameters: Map<string, string>,
    private readonly readOnly: boolean,
    private readonly owner: Owner,
    /** The generation of the credentials that it was made with. */
    readonly generation: number
  ) {
    this.processId = client.processID ?? 0
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

  /** A value that the server reports, such as `in_hot_standby` or `server_version`. */
  parameter(name: string): string | undefined {
    return this.parameters.get(name)
  }

  /** `I` idle, `T` in a transaction, `E` in a failed one. */
  get status(): "I" | "T" | "E" | null {
    return this.client.getTransactionStatus()
  }

  /** Whether its server is a standby, or its session is to be read-only. */
  get takesNoWrites(): boolean {
    return (
      this.parameters.get("in_hot_standby") === "on" || this.parameters.get("default_transaction_read_only") === "on"
    )
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
    requestCancel(this.server, this.client)
    setTimeout(() => this.destroy(reason), 1000).unref()
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

  /** Closes the socket at once. */
  destroy(reason: CloseReason): void {
    this.broken ??= reason
    this.client.connection.stream.destroy()
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
    const failure = this.broken === undefined ? flight.failure() : cutShort(flight.failure(), this.broken)
    if (this.readOnly) {
      if (this.parameters.get("default_transaction_read_only") === "off") this.broken ??= "writable"
    } else if (failure !== undefined && isWriteRefused(failure) && this.takesNoWrites) this.broken ??= "wrongRole"
    if (this.broken !== undefined) this.destroy(this.broken)
    flight.plan.done(failure, flight)
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

const isWriteRefused = (failure: Failure): boolean =>
  failure._tag === "refused" && meaning(failure.error.code ?? "") === "ReadOnlyViolation"

/** A statement that we had cancelled is one whose connection was lost, and no matter of the server's own time limits. */
const cutShort = (failure: Failure | undefined, reason: CloseReason): Failure | undefined =>
  failure?._tag === "refused" && meaning(failure.error.code ?? "") === "StatementTimeout"
    ? {
        _tag: "lost",
        error: new Error(`it was cancelled, for its connection is to be closed (${reason})`),
        sent: true,
        undone: true,
        acknowledged: failure.acknowledged
      }
    : failure

const checked = (text: string): string => {
  if (text.includes("\0")) throw new Error("the statement holds a NUL character")
  return text
}

const requestCancel = (server: ServerConfig, client: Client): void => {
  const { processID, secretKey } = client
  if (processID === null || secretKey === null) return
  const socket = server.host.startsWith("/")
    ? Net.connect(`${server.host}/.s.PGSQL.${server.port}`)
    : Net.connect(server.port, server.host)
  socket.setTimeout(1000, () => socket.destroy())
  // whether it arrives or not, the connection is closed: there is nobody to tell
  socket.on("error", () => socket.destroy())
  socket.on("connect", () => socket.end(wire.cancel(processID, secretKey)))
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

const sessionOptions = (session: SessionConfig, readOnly: boolean): string => {
  const all: Array<string> = []
  const set = (key: string, value: string | number) => all.push(`-c ${key}=${value}`)
  if (session.statementTimeout !== undefined) set("statement_timeout", Math.round(session.statementTimeout))
  if (session.lockTimeout !== undefined) set("lock_timeout", Math.round(session.lockTimeout))
  if (Number.isFinite(session.idleInTransactionTimeout)) {
    set("idle_in_transaction_session_timeout", Math.round(session.idleInTransactionTimeout))
  }
  if (readOnly) set("default_transaction_read_only", "on")
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
  options: { readonly timeout: number; readonly readOnly: boolean; readonly owner: Owner; readonly login: Login },
  done: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void
): (() => void) => {
  const { login } = options
  const client = makeClient({
    host: server.host,
    port: server.port,
    database: server.database,
    user: login.username,
    password: login.password === undefined ? undefined : Redacted.value(login.password),
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
    const connection = new Connection(
      client,
      server,
      session,
      parameters,
      options.readOnly,
      options.owner,
      login.generation
    )
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
