/**
 * One physical connection: what is sent, how it ends, how it is cancelled. Callbacks, not fibers: this is the hot path.
 *
 * @since 0.1.0
 */

import type { SessionConfig } from "../../DatabaseConfig.js"
import type { CloseReason } from "../../Observation.js"
import { isCancelled, isStalePlan, isUnproved, meaning } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import type { CallSite } from "../observability/callSite.js"
import type { Copy } from "../protocol/copyData.js"
import { Exchange, ExchangeRequest, type Failure, type OnExchange } from "../protocol/exchange.js"
import type { DisplayedStatement } from "../protocol/inlinedText.js"
import * as wire from "../protocol/messages.js"
import { type Client, isServerError, type Notice } from "../protocol/pgDriver.js"
import { ProtocolViolation } from "../protocol/protocolLimits.js"
import { noColumns } from "../protocol/rowDecoder.js"
import { StatementCache } from "../protocol/statementCache.js"
import { isByName, lookupSql, type TypeNames, typeNames } from "../protocol/typeNames.js"
import type { Position } from "../sql/lsn.js"
import type { SearchPath } from "../sql/searchPath.js"
import { queryActivity } from "./backendActivity.js"
import { Cancellation } from "./cancellation.js"
import { isAlive, type SecondSocket, secondSocket, sendCancel } from "./cancelRequest.js"
import type { ConnectFailure } from "./connectFailure.js"
import type { Login } from "./credentials.js"
import type { Destination } from "./destination.js"
import { startup } from "./startup.js"
import { Watchdog } from "./watchdog.js"

export type { ConnectFailure, Exchange, Failure, OnExchange }

/**
 * A statement to send.
 *
 * @since 0.1.0
 * @category models
 */
export interface Request {
  /** Where it was written, while somebody wants to know. */
  readonly site?: CallSite | undefined
  /** The handle it was asked of, for errors. */
  readonly kind?: "reader" | "writer" | undefined
  /** Told which server it is sent to, where a span is to name that. */
  readonly served?: ((server: Destination) => void) | undefined
  readonly text: string
  /** What errors show in place of the text, where values are written into that. */
  readonly shown?: DisplayedStatement | undefined
  readonly values: ReadonlyArray<unknown>
  /** As objects by the names of their columns, as arrays, or as arrays of what the server has written, read by nobody. */
  readonly rows: "object" | "array" | "raw"
  /** Whether the server may keep it prepared under a name. */
  readonly prepare: boolean
  /** Several commands in one text: the simple protocol, no parameters. */
  readonly simple: boolean
  /** Where its unqualified names are looked up; what is left out is up to the session. */
  readonly path?: SearchPath | undefined
}

const schemaCommands = new Set(["ALTER", "CREATE", "DROP", "DISCARD", "DEALLOCATE"])

/** How long a cancel may take to be passed on by a pooler, in ms: PgBouncer gives up after ten seconds. */
const longestPooledCancel = 15_000

/** The largest number of a process on Linux; macOS and Windows stay below it. */
const largestProcessId = 4_194_304

/** How long a server has to answer a statement that it was asked to cancel, in ms. */
const longestCancel = 1000

/** After how much of that it is asked once more, where it has taken the first request; after twice as much where it has not. */
const cancelAgain = 250

const none: ReadonlyArray<never> = []

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
  /**
   * A flight has ended that the program asked for, after so many ms. That is one operation, whatever it carried: a statement with the
   * BEGIN before it, a COMMIT, a part of a stream. `error` is the SQLSTATE, or the tag of the error where the server gave none.
   */
  readonly operated?: ((millis: number, error: string | undefined) => void) | undefined
  /** The server said something that is no answer. */
  readonly noticed?: ((connection: Connection, notice: Notice) => void) | undefined
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
  /** Called when it is kept after an interruption, and does nothing any more; set while {@link isStopping}. */
  onStopped: (() => void) | undefined = undefined
  /** Set when it must not be used again. */
  broken: CloseReason | undefined = undefined
  /** The generation of the credentials that it was made with. */
  readonly generation: number
  readonly createdAt = clock.now()
  /** When the server last answered. */
  lastAnswer = this.createdAt
  /** The server's process; a pooler gives a number of its own, which is good for a cancel and nothing else. */
  readonly processId: number
  /** When it was handed out last; 0 if it never was. */
  takenAt = 0
  /** From when on it is handed out no more. */
  retireAt = Number.POSITIVE_INFINITY
  /** Why it is not, then. */
  retireAs: CloseReason = "aged"
  /** The transaction that it is in, with the limit of its statements in ms: 0 is none, `undefined` the session's. */
  transaction: { readonly limit: number | undefined } | undefined = undefined
  /** How far its server was when it was asked last. A server never goes back without losing its connections. */
  position: Position | undefined = undefined
  /** Whether it is there for writes, so that a server that takes none is the wrong one; not where the settings say otherwise. */
  isForWrites = false
  /** Whether its next exchange has to prove that its server takes writes: neither a pooler nor PostgreSQL 13 says so at login. */
  doubtsRole = false
  /** Whether its last exchange has proved that its server takes writes. */
  private isProved = false
  /** The number of writes in a row that were refused as those of a standby are, with a proof of the role between them. */
  private refusedWrites = 0
  private flight: Exchange | undefined = undefined
  /** The cancel requests of the flight under way; of the last one where the connection is not kept. */
  private cancellation: Cancellation | undefined = undefined
  /** Whether the flight under way is answered, and only its cancel may still be on its way. */
  private isHeldBack = false
  private ending = false
  private loss: Error | undefined = undefined
  private closed = false
  private readonly statements: StatementCache
  private portals = 0
  /** @internal The very server that it is on. */
  readonly other: SecondSocket
  private readonly silence: Watchdog
  /** What is known of the types of the server, where the program reads some by their names. */
  private readonly types: TypeNames | undefined
  /** The server's limit for a statement, in ms. */
  private readonly limit: number | undefined
  /** Whether a pooler is in between, which shares the server's sessions out. */
  readonly isPooled: boolean
  /** A pooled connection outlives its cancel: PgBouncer 1.18 ends itself over one that is cut short, by us or by the server's session. */
  private isCancelling = false

  /** @internal */
  constructor(
    private readonly client: Client,
    readonly server: Destination,
    session: SessionConfig,
    private readonly parameters: Map<string, string>,
    /** Whether its session was told to refuse writes. */
    private readonly readOnly: boolean,
    private readonly owner: Owner,
    /** What it was made with. */
    credentials: Login
  ) {
    this.generation = credentials.generation
    this.processId = client.processID ?? 0
    this.isPooled = session.mode === "transactionPooler"
    this.statements = new StatementCache(session.preparedStatements)
    this.limit = session.statementTimeout
    this.types = isByName(session.types) ? typeNames(session.types, `${server.name}/${server.database}`) : undefined
    const { stream } = client.connection
    this.other = secondSocket(server, stream)
    this.silence = new Watchdog({
      // a long message that is still on its way is a sign of life, too
      heard: () => stream.bytesRead - stream.writableLength,
      ask: (patience, told) => isAlive(server, this.other, patience, told),
      inquire: (told) => queryActivity(server, session, credentials, this.processId, told),
      giveUp: (error) => this.lose(error)
    })
    client.on("error", (error: Error) => this.lose(error))
    client.on("end", () => this.lose(lostError()))
    client.on("notice", (notice: Notice) => this.owner.noticed?.(this, notice))
    client.connection.on("parseComplete", () => {
      if (this.flight !== undefined) this.flight.parsed++
    })
    client.connection.on("bindComplete", () => {
      if (this.flight !== undefined) this.flight.bound++
    })
    client.connection.on("copyOutResponse", () => this.flight?.handleCopyOutResponse())
    client.connection.on("readyForQuery", () => this.ready())
    client.connection.on("parameterStatus", () => this.noteRole())
    stream.once("close", () => this.close())
  }

  /** A value that the server reports, such as `in_hot_standby` or `server_version`; a pooler reports what it remembers. */
  parameter(name: string): string | undefined {
    return this.parameters.get(name)
  }

  /** Whether the server has said that names are looked up there already, as PostgreSQL 18 does. What a pooler remembers is not asked. */
  looksUpIn(path: SearchPath): boolean {
    return !this.isPooled && this.parameters.get("search_path") === path.text
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

  /**
   * Whether a failure says only that its server takes no writes, of a statement that had nothing before it: none has run. Where that is no
   * more than likely, as behind a pooler, the next exchange proves it.
   */
  hasWrongRole(failure: Failure): boolean {
    return this.isForWrites && (this.broken === "wrongRole" || (this.doubtsRole && isWriteRefused(failure)))
  }

  /** Whether a flight is under way. */
  get busy(): boolean {
    return this.flight !== undefined
  }

  /** Whether its statement was interrupted or is undone, and it is not known yet whether it can be used again. */
  get isStopping(): boolean {
    return this.broken === undefined && (this.cancellation !== undefined || this.flight?.request.isUndo === true)
  }

  /** Whether it can be used, now or when its statement has ended: it is neither on its way out, nor may it be after an interruption. */
  get isUsable(): boolean {
    return this.broken === undefined && this.cancellation === undefined
  }

  /** Sends a statement, with steps before and after it, in one write with one Sync. */
  run(before: ReadonlyArray<wire.Step>, request: Request, after: ReadonlyArray<wire.Step>, done: OnExchange): void {
    if (this.isToProve) return this.prove(done, () => this.run(before, request, after, done))
    const { text, values } = request
    request.served?.(this.server)
    if (request.simple) {
      const plan = new ExchangeRequest(() => wire.simple(checked(text)), done)
      plan.asArrays = request.rows === "array"
      plan.simple = true
      plan.statement = request
      return this.fly(plan)
    }
    const path = request.path?.text
    const prepared = request.prepare ? this.statements.getOrAdd(text, path) : undefined
    const parse = prepared === undefined || !prepared.parsed
    const shape = prepared?.decoder
    const plan = new ExchangeRequest(
      () =>
        wire.exchange(
          before,
          {
            text: parse ? checked(text) : text,
            values,
            name: prepared?.name ?? "",
            parse,
            describe: shape === undefined,
            close: () => this.statements.drainToClose()
          },
          after
        ),
      (failure, flight) => {
        if (prepared !== undefined && !prepared.parsed) {
          if (flight.parsed > before.length) prepared.parsed = true
          else this.statements.remove(text, path)
        }
        if (failure === undefined) {
          // a statement without rows is described by silence, and need not be asked about again
          if (prepared !== undefined) prepared.decoder ??= noColumns
          if (schemaCommands.has(flight.result.command ?? "")) {
            this.statements.removeAll()
            this.types?.clear()
          }
        } else if (failure._tag === "refused" && isStalePlan(failure.error.code ?? "", failure.error.message)) {
          // refused before it was bound, so nothing of it ran, and what has changed may have been under any other
          if (flight.bound === before.length) this.statements.removeAll()
          else this.statements.remove(text, path)
          // no transaction is harmed: it may be prepared again at once
          if (flight.bound === 0 && this.status === "I" && !parse && !flight.isStopped)
            return this.run(before, request, after, done)
        }
        done(failure, flight)
      }
    )
    plan.statement = request
    plan.before = before.length
    plan.after = after.length
    plan.asArrays = request.rows === "array"
    plan.isRaw = request.rows === "raw"
    plan.isMaintenance = plan.isRaw && before.length === 0
    plan.prepared = prepared
    plan.decoder = shape
    this.fly(plan)
  }

  /** Sends a COPY, with steps before it unless it is `simple`. Its data goes by way of `copy`. */
  copy(before: ReadonlyArray<wire.Step>, request: Request, copy: Copy, done: OnExchange): void {
    if (this.isToProve) return this.prove(done, () => this.copy(before, request, copy, done))
    const plan = new ExchangeRequest(
      () => {
        const text = checked(request.text)
        if (request.simple) return wire.simple(text)
        return wire.exchange(
          before,
          { text, values: none, name: "", parse: true, describe: false, close: () => none },
          none
        )
      },
      (failure, flight) => {
        if (copy._tag === "in") copy.end()
        else copy.onAnswered()
        done(failure, flight)
      }
    )
    plan.statement = request
    plan.before = before.length
    plan.copy = copy
    copy.send({
      stream: this.client.connection.stream,
      awaitServer: () => this.watch(),
      awaitProgram: () => this.silence.answered()
    })
    this.fly(plan)
  }

  /** Sends steps only. */
  steps(all: ReadonlyArray<wire.Step>, done: OnExchange): void {
    this.flySteps(all, false, done)
  }

  private flySteps(all: ReadonlyArray<wire.Step>, isUndo: boolean, done: OnExchange): void {
    if (this.isToProve) return this.prove(done, () => this.flySteps(all, isUndo, done))
    const plan = new ExchangeRequest(() => wire.steps(all), done)
    plan.before = all.length - 1
    plan.isDescribed = false
    plan.isUndo = isUndo
    this.fly(plan)
  }

  /** Whether the next exchange proves the server's role; in a transaction it is too late for that. */
  private get isToProve(): boolean {
    return this.doubtsRole && this.status === "I"
  }

  /**
   * Proves the server's role in an exchange of its own. In one with a BEGIN it would be the query before which an isolation level has to be
   * set.
   */
  private prove(done: OnExchange, proved: () => void): void {
    const plan = new ExchangeRequest(
      () => roleProof.simple,
      (failure, flight) => {
        if (failure === undefined && !flight.isStopped) return proved()
        // nothing of what was to follow was sent
        flight.acknowledged = 0
        done(failure?._tag === "lost" ? { ...failure, sent: false, acknowledged: 0 } : failure, flight)
      }
    )
    plan.isDescribed = false
    plan.provesRole = true
    plan.isMaintenance = true
    this.fly(plan)
  }

  /** Sends steps that undo something that has failed. Who waits for the failure waits for them, too: without an answer it is closed. */
  undo(all: ReadonlyArray<wire.Step>, done: OnExchange): void {
    const stop = clock.later(clock.rollbackTimeout.default, () => this.destroy("broken"))
    this.flySteps(all, true, (failure, flight) => {
      stop()
      done(failure, flight)
    })
  }

  /** Hears of every NOTIFY on the channels that it listens to. */
  onNotification(listener: (channel: string, payload: string, processId: number) => void): void {
    this.client.on(
      "notification",
      (message: { readonly channel: string; readonly payload?: string; readonly processId: number }) =>
        listener(message.channel, message.payload ?? "", message.processId)
    )
  }

  /** Asks for a sign of life. */
  ping(done: OnExchange): void {
    const plan = new ExchangeRequest(() => wire.syncOnly, done)
    plan.main = 0
    plan.isMaintenance = true
    this.fly(plan)
  }

  /** A name for a portal, new on this connection. */
  nextPortal(): string {
    return `p${++this.portals}`
  }

  /** Opens a portal and fetches its first rows. It lives as long as the transaction. */
  openPortal(before: ReadonlyArray<wire.Step>, portal: string, request: Request, size: number, done: OnExchange): void {
    if (this.isToProve) return this.prove(done, () => this.openPortal(before, portal, request, size, done))
    request.served?.(this.server)
    const plan = new ExchangeRequest(
      () => wire.openPortal(before, portal, checked(request.text), request.values, size),
      done
    )
    plan.statement = request
    plan.before = before.length
    this.fly(plan)
  }

  /** Fetches more rows of the portal that `opened` has opened. */
  fetchPortal(
    before: ReadonlyArray<wire.Step>,
    portal: string,
    opened: Exchange,
    size: number,
    done: OnExchange
  ): void {
    const plan = new ExchangeRequest(() => wire.fetchPortal(before, portal, size), done)
    plan.statement = opened.request.statement
    plan.before = before.length
    plan.decoder = opened.decoder
    this.fly(plan)
  }

  /** Closes a portal. */
  closePortal(portal: string, done: OnExchange): void {
    const plan = new ExchangeRequest(() => wire.closePortal(portal), done)
    plan.main = 0
    this.fly(plan)
  }

  /** Keeps the process alive for as long as it is open, or lets the process end. */
  keepProcess(isKept: boolean): void {
    // TLS over a stream of the program would not pass it on
    const { transport } = this.client
    if (isKept) transport.ref()
    else transport.unref()
  }

  /**
   * Stops the statement under way, for a caller who has left. Its flight ends when the server has answered and the cancel can hit nothing
   * any more; then the connection is as good as before. Where that is not certain within a second it is closed, as it is behind a pooler,
   * which may pass a cancel on to another client's statement.
   */
  cancel(): void {
    // what undoes something has a limit of its own, and is still wanted
    if (this.flight === undefined || this.flight.request.isUndo || this.isHeldBack) return
    if (this.isPooled) this.abort("cancelled")
    else this.stop("cancelled")
  }

  /**
   * Gives up what it is doing and never uses it again: the server is asked to cancel, on a socket of its own, and the
   * connection is closed when it has answered, or after a second.
   */
  abort(reason: CloseReason): void {
    if (this.closed) return
    this.broken ??= reason
    if (this.flight === undefined) return this.destroy(reason)
    if (this.isHeldBack) return this.finish(this.flight, this.flight.failure())
    this.stop(reason)
  }

  /** Asks the server to cancel, if it was not asked yet. A connection that is not kept by then is closed after a second. */
  private stop(reason: CloseReason): void {
    if (this.cancellation !== undefined) return
    // a COPY may have stopped it, and the answer is to be read
    this.client.connection.stream.resume()
    const cancellation = new Cancellation(
      (patience, closed) => this.requestCancel(patience, closed),
      () => this.settleCancel()
    )
    this.cancellation = cancellation
    if (this.isPooled) this.cancelPooled(reason, false)
    else {
      cancellation.request(longestCancel)
      // a cancel can overtake its statement on a busy server, and then there is nothing to cancel; or it may be lost
      const again = (isLast: boolean) =>
        clock.later(cancelAgain, () => {
          if (this.cancellation !== cancellation || this.flight === undefined || this.isHeldBack) return
          if (cancellation.isProbing) return
          if (cancellation.isTravelling && !isLast) again(true)
          else cancellation.request(longestCancel - cancelAgain)
        })
      again(false)
    }
    clock.later(longestCancel, () => {
      if (this.cancellation !== cancellation) return
      this.isCancelling = false
      this.destroy(reason)
    })
  }

  /** Ends the flight that was to be stopped, when it is answered and no cancel is on its way. */
  private settleCancel(): void {
    const { cancellation, flight } = this
    if (cancellation === undefined || flight === undefined || !this.isHeldBack || cancellation.isTravelling) return
    const failure = flight.failure()
    const isConfirmed =
      cancellation.isProbing ||
      (failure?._tag === "refused" && isCancelled(failure.error.code ?? "", failure.error.message))
    if (!cancellation.isOver) this.broken ??= "cancelled"
    else if (isConfirmed) this.cancellation = undefined
    else if (this.isOnServer) return this.probe(cancellation, flight, failure)
    else this.broken ??= "cancelled"
    this.finish(flight, failure)
  }

  /**
   * Checks if the process of the session can be one of PostgreSQL's own. Poolers, in session mode too, send a random number in its place; they
   * may pass a cancel on after they have closed its socket, and it would hit the next statement.
   */
  private get isOnServer(): boolean {
    return this.processId > 0 && this.processId <= largestProcessId
  }

  /**
   * Asks for one more answer after a cancel that may have hit nothing: the statement ended before, or the server says why in another language.
   * The session has been signalled by then, ignores that while it waits for a command, and answers after it.
   */
  private probe(cancellation: Cancellation, stopped: Exchange, failed: Failure | undefined): void {
    cancellation.isProbing = true
    stopped.isStopped = true
    this.flight = undefined
    this.isHeldBack = false
    this.ping((failure) => {
      if (failure !== undefined) this.broken ??= "cancelled"
      this.finish(stopped, failed)
    })
  }

  /** Closes it politely, if it is idle. */
  end(reason: CloseReason): void {
    if (this.closed || this.ending || this.isCancelling) return
    if (this.flight !== undefined) return this.destroy(reason)
    this.ending = true
    this.broken ??= reason
    const stream = this.client.connection.stream
    // a server that does not take the goodbye is left without one
    stream.once(
      "close",
      clock.later(1000, () => stream.destroy())
    )
    this.client.end().catch(() => stream.destroy())
  }

  /** Closes the socket, at once unless a cancel is on its way through a pooler. */
  destroy(reason: CloseReason): void {
    this.broken ??= reason
    if (!this.isCancelling) this.client.connection.stream.destroy()
  }

  /** What a pooler has not given to a server yet goes with the connection, and would run some time if that stayed. */
  private cancelPooled(reason: CloseReason, isLast: boolean): void {
    this.isCancelling = true
    this.requestCancel(longestPooledCancel, () => {
      this.isCancelling = false
      if (this.flight === undefined) return this.destroy(reason)
      // the answer may be on its way, or the cancel was before its statement
      clock.later(cancelAgain, () => {
        if (this.closed || this.ending) return
        if (isLast || this.flight === undefined) this.destroy(reason)
        else this.cancelPooled(reason, true)
      })
    })
  }

  private requestCancel(patience: number, done: (isTaken: boolean) => void): void {
    const { processID, secretKey } = this.client
    if (processID === null || secretKey === null) return
    sendCancel(this.server, this.other, patience, wire.cancel(processID, secretKey), done)
  }

  private fly(plan: ExchangeRequest): void {
    const flight = new Exchange(this.client, plan, this.flightLost, this.types)
    const failure = this.refusal(flight)
    // not before this call has returned: the next who waits for a connection is called from there, and he may fail in the same way
    if (failure !== undefined) return queueMicrotask(() => plan.onDone(failure, flight))
    this.flight = flight
    this.watch()
    this.client.query(flight)
  }

  /** Watches the server, which is to send something within its limit for a statement. */
  private watch(): void {
    const limit = this.transaction?.limit ?? this.limit
    // in a pooler's queue a statement may well wait for longer than it is going to take
    if (!this.isPooled && limit !== undefined && limit > 0) this.silence.sent(limit)
  }

  /** Why a flight does not even begin, if so. */
  private refusal(flight: Exchange): Failure | undefined {
    if (this.broken !== undefined || this.closed) {
      return {
        _tag: "lost",
        error: this.loss ?? lostError(),
        sent: false,
        acknowledged: 0,
        statement: flight.statement
      }
    }
    const error = this.flight === undefined ? flight.prepare() : new Error("the connection is in use by somebody else")
    return error === undefined
      ? undefined
      : { _tag: "unsendable", error, acknowledged: 0, statement: flight.request.statement }
  }

  private readonly flightLost = (flight: Exchange, error: Error): void => {
    if (this.flight === flight) this.lose(error)
  }

  private ready(): void {
    const flight = this.flight
    const failed = flight?.failure()
    if (flight === undefined || (failed === undefined && !flight.isAnswered)) {
      return this.lose(new ProtocolViolation("was ready before it had answered"))
    }
    this.silence.answered()
    this.lastAnswer = clock.now()
    if (this.cancellation === undefined || this.broken !== undefined) return this.finish(flight, failed)
    // what comes next would be what a cancel that is still on its way hits
    this.isHeldBack = true
    this.settleCancel()
  }

  private finish(flight: Exchange, failed: Failure | undefined): void {
    this.flight = undefined
    this.isHeldBack = false
    const failure = this.checkRole(flight, this.failureOf(failed))
    if (this.readOnly && this.parameters.get("default_transaction_read_only") === "off") this.broken ??= "writable"
    if (failure === undefined && this.broken === undefined && this.types !== undefined) {
      const unknown = flight.unknownTypes
      if (unknown.length > 0) return this.lookUp(unknown, this.types, flight)
    }
    if (this.broken !== undefined) this.end(this.broken)
    this.settle(flight, failure)
  }

  /** Takes down what the end of a flight says of the server's role; a proof that failed is a connection that was never fit. */
  private checkRole(flight: Exchange, failure: Failure | undefined): Failure | undefined {
    if (!this.isForWrites) return failure
    const wasProved = this.isProved
    this.isProved = flight.request.provesRole && failure === undefined
    if (this.isProved) this.doubtsRole = false
    if (failure?._tag !== "refused") {
      if (!flight.request.provesRole) this.refusedWrites = 0
      return failure
    }
    if (flight.request.provesRole && isUnproved(failure.error.code ?? "")) {
      this.broken ??= "wrongRole"
      return { _tag: "lost", error: new Error(takesNoWrites), sent: false, acknowledged: 0 }
    }
    if (isWriteRefused(failure)) {
      if (this.takesNoWrites && !this.isPooled) this.broken ??= "wrongRole"
      // it may be the program's own doing; right after two proofs, which a pooler may have given to other servers, it is taken for that
      else if (this.isPooled && (!wasProved || this.refusedWrites < 2)) {
        this.doubtsRole = true
        this.refusedWrites = wasProved ? this.refusedWrites + 1 : 1
      }
    }
    return failure
  }

  /** The server, or a setting of this session, takes no writes any more: it is not checked out again. What is under way on it may end. */
  private noteRole(): void {
    if (!this.isForWrites || this.isPooled || !this.takesNoWrites) return
    this.retireAt = Number.NEGATIVE_INFINITY
    this.retireAs = "wrongRole"
  }

  private failureOf(failure: Failure | undefined): Failure | undefined {
    if (failure === undefined) return undefined
    if (this.broken !== undefined) return cutShort(failure, this.broken)
    return isWriteRefused(failure) ? { ...failure, takesNoWrites: this.takesNoWrites } : failure
  }

  private settle(flight: Exchange, failure: Failure | undefined): void {
    this.report(flight, this.lastAnswer, failure)
    flight.request.onDone(failure, flight)
    const { onStopped } = this
    // what was around the statement may be undone in an exchange of its own; a lost connection goes back by itself
    if (onStopped === undefined || this.flight !== undefined) return
    this.onStopped = undefined
    onStopped()
  }

  /** Looks up the names of types before a flight is read that has brought rows of them. To its caller it is under way until then. */
  private lookUp(unknown: ReadonlyArray<number>, types: TypeNames, flight: Exchange): void {
    const bytes = () =>
      wire.exchange(
        none,
        { text: lookupSql, values: [unknown], name: "", parse: true, describe: false, close: () => none },
        none
      )
    // what a writer has done outside of a transaction stays, whatever becomes of the lookup
    const isStored = this.status === "I" && flight.request.statement?.kind !== "reader"
    const plan = new ExchangeRequest(bytes, (failure, found) => {
      if (failure !== undefined) {
        return this.settle(
          flight,
          isStored ? unread(failure, flight) : { ...failure, acknowledged: flight.acknowledged }
        )
      }
      // rows of a raw flight are as the server has written them
      types.addLookup(unknown, found.result.rows as Array<ReadonlyArray<string | null>>)
      flight.decodePending()
      this.settle(flight, flight.failure())
    })
    plan.isRaw = true
    plan.isMaintenance = true
    this.fly(plan)
  }

  private lose(error: Error): void {
    const flight = this.flight
    const before = this.broken
    this.broken ??= "broken"
    this.loss ??= error
    this.flight = undefined
    this.silence.answered()
    if (before === undefined) {
      // what answers there next may be another server
      this.types?.clear()
      this.owner.lost(this, error)
    }
    this.client.connection.stream.destroy()
    if (flight === undefined) return this.onLost?.(error)
    const failure: Failure = {
      _tag: "lost",
      error,
      sent: true,
      acknowledged: flight.acknowledged,
      statement: flight.statement
    }
    this.report(flight, clock.now(), failure)
    flight.request.onDone(failure, flight)
  }

  private report(flight: Exchange, now: number, failure: Failure | undefined): void {
    if (flight.request.isMaintenance) return
    this.owner.operated?.(now - flight.startedAt, failure === undefined ? undefined : errorType(failure))
  }

  private close(): void {
    if (this.closed) return
    this.closed = true
    this.lose(lostError())
    this.owner.closed(this, this.broken ?? "broken")
  }
}

/** What names a failure in the metrics: what the server said, else what the program sees. */
const errorType = ({ _tag, error }: Failure): string => {
  const sqlState = isServerError(error) ? error.code : undefined
  return sqlState ?? (_tag === "lost" ? "Disconnected" : "QueryFailed")
}

const takesNoWrites = "its server takes no writes: it is a standby, or was made read-only"

/** Fails if the server takes no writes. */
const roleProof = wire.constantStep(
  `SELECT CASE WHEN pg_catalog.pg_is_in_recovery() OR pg_catalog.current_setting('default_transaction_read_only')
  OPERATOR(pg_catalog.=) 'on' THEN '${takesNoWrites}' ELSE '1' END::pg_catalog.int4`
)

const isWriteRefused = (failure: Failure): failure is Extract<Failure, { readonly _tag: "refused" }> =>
  failure._tag === "refused" && meaning(failure.error.code ?? "") === "ReadOnlyViolation"

/** A statement that we had cancelled is one whose connection was lost, and no matter of the server's own time limits. */
const cutShort = (failure: Failure, reason: CloseReason): Failure =>
  failure._tag === "refused" && meaning(failure.error.code ?? "") === "StatementTimeout"
    ? {
        _tag: "lost",
        error: new Error(`it was cancelled, for its connection is to be closed (${reason})`),
        sent: true,
        undone: true,
        acknowledged: failure.acknowledged,
        statement: failure.statement
      }
    : failure

/** Builds the failure of a statement that was done and whose rows cannot be read: it must not be told as refused, undone or not sent. */
const unread = ({ _tag, error }: Failure, { acknowledged, request: { statement } }: Exchange): Failure => {
  const why = "the statement was done, but its rows cannot be read, for the names of their types could not be looked up"
  // without its code, which would mean something else
  const told = new Error(`${why}: ${error.message}`, { cause: error })
  return _tag === "lost"
    ? { _tag, error: told, sent: true, acknowledged, statement }
    : { _tag: "unsendable", error: told, acknowledged, statement }
}

const checked = (text: string): string => {
  if (text.includes("\0")) throw new Error("the statement holds a NUL character")
  return text
}

/**
 * Opens a connection; the returned function gives up. `done` is called once, unless it was given up before.
 *
 * @since 0.1.0
 * @category constructors
 */
export const connect = (
  server: Destination,
  session: SessionConfig,
  options: { readonly timeout: number; readonly readOnly: boolean; readonly owner: Owner; readonly credentials: Login },
  done: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void
): (() => void) => {
  let made: Connection | undefined
  const giveUp = startup(server, session, options, (failure, loggedIn) => {
    if (loggedIn === undefined) return done(failure, undefined)
    const { client, notices, parameters } = loggedIn
    const { credentials, owner, readOnly } = options
    // a pooler's session is told nothing
    const isGuarded = readOnly && session.mode === "session"
    const connection = new Connection(client, server, session, parameters, isGuarded, owner, credentials)
    connection.isForWrites = !readOnly && server.target === "read-write"
    connection.doubtsRole = connection.isForWrites && (connection.isPooled || !parameters.has("in_hot_standby"))
    made = connection
    // the client calls back before it has taken down its own state
    queueMicrotask(() => {
      if (made === undefined) return
      made = undefined
      for (const notice of notices) owner.noticed?.(connection, notice)
      done(undefined, connection)
    })
  })
  return () => {
    giveUp()
    made?.destroy("shutdown")
    made = undefined
  }
}
