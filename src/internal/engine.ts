/**
 * How a statement finds its transaction, or a server, and what is tried again: one engine per opened database.
 */
import type { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import type { Connection, Done, Failure, Flight, Request } from "../Connection.js"
import { CurrentConsistency } from "../Consistency.js"
import type { DatabaseConfig } from "../DatabaseConfig.js"
import { type DatabaseError, fromUnknown, type StatementError, toSqlError } from "../DatabaseError.js"
import { Observation, type Observer } from "../Observation.js"
import type { CheckoutError, Pool } from "../Pool.js"
import { idempotentRef, isNotSent, isReplayable, isStale, type Policy, RetryPolicy } from "../RetryPolicy.js"
import type { Choose } from "../Router.js"
import { isUnserved } from "../SqlState.js"
import type { OpenTransaction, Server, Topology } from "../Topology.js"
import { begin, type Options, type Origin, type Transaction } from "../Transaction.js"
import { RetryBudget } from "./budget.js"
import { type Carrier, currentCarrier, type Kind, type Memory } from "./carrier.js"
import { codeOf, type Place, toStatementError } from "./failure.js"
import { guard, runGuarded } from "./guard.js"
import type { Limits } from "./limits.js"
import type { Lender } from "./link.js"
import type { Fence } from "./session.js"
import { constantStep } from "./wire.js"

type OnStatement = (error: StatementError | undefined, flight: Flight | undefined) => void

/** Starts something with the server; the returned function gives it up. */
type Go = (done: OnStatement) => () => void

const none: ReadonlyArray<never> = []

/** A server's pool, as a transaction sees it. */
class PoolLender implements Lender {
  private pool: Pool | undefined
  private deadline: number | undefined

  constructor(
    private readonly engine: Engine,
    private readonly pick: () => Pool,
    private readonly held: () => ReadonlyArray<Connection>,
    private readonly label: string | undefined
  ) {}

  get patience(): number {
    return this.engine.config.pool.acquireTimeout
  }

  get place(): Place {
    return { database: this.engine.config.name, server: this.pool?.options.server.name ?? "" }
  }

  checkout(settle: (error: CheckoutError | undefined, connection: Connection | undefined) => void): () => void {
    const pool = this.pick()
    this.pool = pool
    // all attempts share the one deadline
    this.deadline ??= this.engine.deadline()
    return pool.checkout(this.deadline, this.held(), (error, connection) => {
      if (connection !== undefined) this.engine.opened.set(this, { since: performance.now(), label: this.label })
      settle(error, connection)
    })
  }

  checkin(connection: Connection): void {
    this.engine.opened.delete(this)
    this.pool?.checkin(connection)
  }
}

export class Engine implements Origin {
  readonly database: string
  readonly limits: Limits | undefined
  /** The transactions that hold a connection. */
  readonly opened = new Map<Lender, { readonly since: number; readonly label: string | undefined }>()
  private turn = 0
  private readonly budget = new RetryBudget()

  constructor(
    readonly config: DatabaseConfig,
    readonly topology: Topology,
    readonly observer: Observer,
    private readonly choose: Choose,
    readonly sandbox: Transaction | undefined
  ) {
    this.database = config.name
    this.limits = config.session.mode === "transactionPooler" ? config.session : undefined
  }

  /** Until when a connection must have been found, counted from now. */
  deadline(): number {
    return performance.now() + this.config.pool.acquireTimeout
  }

  /** The transactions that hold a connection. */
  get transactions(): ReadonlyArray<OpenTransaction> {
    const now = performance.now()
    return [...this.opened].map(([lender, { label, since }]) => ({
      server: lender.place.server,
      label,
      age: now - since
    }))
  }

  /** Runs a statement of a fiber where it belongs. */
  run<A>(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    kind: Kind,
    request: Request,
    read: (flight: Flight) => A
  ): Effect.Effect<A, SqlError> {
    const carrier = currentCarrier(fiber)
    const transaction = this.transactionFor(fiber, carrier, kind)
    if (transaction !== undefined) {
      const fence = kind === "reader" && !transaction.readOnly ? "readOnly" : "none"
      return this.attempt(fiber, inTransaction(transaction, request, fence), read, isNotSent)
    }
    if (this.sandbox !== undefined) {
      const around = carrier?.around(this) ?? this.sandbox
      const go = inTransaction(around, request, kind === "reader" ? "readOnly" : "savepoint")
      return this.attempt(fiber, go, read, isNotSent)
    }
    const held = carrier?.held(this) ?? none
    const memory = carrier?.memory(this)
    if (memory !== undefined && kind === "writer") memory.written = true
    return kind === "writer"
      ? this.attempt(fiber, this.onWriter(request, held), read, retriesOnWriter(fiber))
      : this.attempt(fiber, this.onReader(fiber, carrier, request), read, isReadAgain)
  }

  /** The transaction that a statement belongs to; in a unit of work a writer's statement begins one. */
  transactionFor(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    carrier: Carrier | undefined,
    kind: Kind
  ): Transaction | undefined {
    if (carrier === undefined) return undefined
    if (kind === "reader") {
      const reading = carrier.find(this, "reader")
      if (reading !== undefined && reading !== "none") return reading
      if (this.consistency(fiber) === "Eventual") return undefined
    }
    const found = carrier.find(this, "writer")
    if (found === "none") return undefined
    return found ?? (kind === "writer" ? carrier.open(this, () => this.begin("writer", {}, fiber, carrier)) : undefined)
  }

  /** A new transaction, outside of any other. */
  begin(
    kind: Kind,
    options: Options,
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    carrier: Carrier | undefined
  ): Transaction {
    const held = () => carrier?.held(this) ?? none
    const pick = kind === "writer" ? () => this.writes : this.readerPicker(fiber, carrier?.memory(this))
    return begin(this, kind, new PoolLender(this, pick, held, options.label), options, carrier)
  }

  /** The pool of a purpose, for a connection outside of every transaction. */
  poolFor(kind: Kind): Pool {
    return kind === "writer" ? this.writes : this.readerPicker(undefined, undefined)()
  }

  /** Tries once and, where it failed in a way that allows it, again by the policy. */
  attempt<A>(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    go: Go,
    read: (flight: Flight) => A,
    again: (error: DatabaseError) => boolean
  ): Effect.Effect<A, SqlError> {
    return start(go, read, (error) =>
      again(error)
        ? Effect.mapError(
            this.retry(Context.get(fiber.currentContext, RetryPolicy), error, go, read, again),
            toSqlError
          )
        : Effect.fail(toSqlError(error))
    )
  }

  private retry<A>(
    policy: Policy,
    first: StatementError,
    go: Go,
    read: (flight: Flight) => A,
    again: (error: DatabaseError) => boolean
  ): Effect.Effect<A, StatementError> {
    let attempt = 0
    const next = Effect.suspend((): Effect.Effect<A, StatementError> => {
      if (attempt++ === 0) return Effect.fail(first)
      this.retried(isNotSent(first) ? "acquire" : "statement", attempt - 1, first.message)
      return start(go, read, Effect.fail)
    })
    return Effect.retry(next, {
      schedule: isNotSent(first) ? policy.acquire : policy.statement,
      while: (error) => again(error) && this.budget.take(policy.budget)
    })
  }

  /** Runs a whole transaction again, where it is undone for certain and may go better. */
  replay<A, E, R>(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    once: Effect.Effect<A, E, R>,
    asked: true | Schedule.Schedule<unknown, DatabaseError>
  ): Effect.Effect<A, E, R> {
    let attempt = 0
    // what failed on another database is not mended by running this one again
    const isOwn = (error: unknown) => isReplayable(error) && fromUnknown(error).database === this.database
    const policy = Context.get(fiber.currentContext, RetryPolicy)
    const schedule = (asked === true ? policy.transaction : asked).pipe(
      Schedule.mapInput((error: E) => fromUnknown(error)),
      Schedule.tapOutput(() => Effect.sync(() => attempt++))
    )
    return Effect.retry(
      Effect.tapError(once, (error) => {
        if (isOwn(error)) this.retried("transaction", attempt + 1, fromUnknown(error).message)
        return Effect.void
      }),
      { schedule, while: (error) => isOwn(error) && this.budget.take(policy.budget) }
    )
  }

  private retried(what: "acquire" | "statement" | "transaction", attempt: number, message: string): void {
    this.observer.observe(Observation.Retried({ database: this.database, what, attempt, message }))
  }

  private get writes(): Pool {
    const { writer } = this.topology
    // a writer's server always has the pool; the read-only one is the type's way out
    return writer.writes ?? writer.reads
  }

  private consistency(fiber: Fiber.RuntimeFiber<unknown, unknown>): string {
    return Context.get(fiber.currentContext, CurrentConsistency).get(this.database)?._tag ?? "ReadYourWrites"
  }

  private onWriter(request: Request, held: ReadonlyArray<Connection>): Go {
    const deadline = this.deadline()
    return (done) => once(this.writes, deadline, held, request, "inDoubt", done)
  }

  private onReader(fiber: Fiber.RuntimeFiber<unknown, unknown>, carrier: Carrier | undefined, request: Request): Go {
    const pick = this.readerPicker(fiber, carrier?.memory(this))
    const deadline = this.deadline()
    return (done) => once(pick(), deadline, none, request, "undone", done)
  }

  /**
   * Chooses the server of a read. Called again, for another attempt, it prefers a server that it has not given before; with no replica
   * left it is the primary, read-only.
   */
  private readerPicker(
    fiber: Fiber.RuntimeFiber<unknown, unknown> | undefined,
    memory: Memory | undefined
  ): () => Pool {
    const { readers, writer } = this.topology
    const consistency = fiber === undefined ? "Eventual" : this.consistency(fiber)
    const strong = consistency === "Strong" || (memory?.written === true && consistency === "ReadYourWrites")
    if (strong || readers.length === 0 || memory?.reader === writer.name) return () => writer.reads
    const given = new Set<Server>()
    return () => {
      const now = performance.now()
      const up = readers.filter((server) => server.isUp(now) && !given.has(server))
      const server = up.find((_) => _.name === memory?.reader) ?? this.pick(up) ?? writer
      if (server === writer) given.clear()
      else given.add(server)
      if (memory !== undefined) memory.reader = server.name
      return server.reads
    }
  }

  private pick(servers: ReadonlyArray<Server>): Server | undefined {
    if (servers.length < 2) return servers[0]
    const ask = { database: this.database, turn: this.turn++, random: Math.random() }
    const candidates = servers.map((server) => ({ name: server.name, load: server.reads.load }))
    return servers[this.choose(ask, candidates)] ?? servers[0]
  }
}

const isReadAgain = (error: DatabaseError): boolean =>
  error._tag === "ConnectFailed" || isStale(error) || (error._tag === "Disconnected" && error.outcome !== "inDoubt")

const retriesOnWriter = (fiber: Fiber.RuntimeFiber<unknown, unknown>): ((error: DatabaseError) => boolean) =>
  fiber.getFiberRef(idempotentRef) ? isIdempotentAgain : isNotSent

const isIdempotentAgain = (error: DatabaseError): boolean => isNotSent(error) || error._tag === "Disconnected"

const inTransaction =
  (transaction: Transaction, request: Request, fence: Fence): Go =>
  (done) =>
    transaction.level.run(request, fence, done)

/** An effect of what is started; nothing is allocated for a failure that does not come. */
const start = <A, E>(
  go: Go,
  read: (flight: Flight) => A,
  recover: (error: StatementError) => Effect.Effect<A, E>
): Effect.Effect<A, E> =>
  Effect.async((resume) => {
    const giveUp = go((error, flight) => {
      if (error !== undefined) resume(recover(error))
      else if (flight !== undefined) resume(readFrom(flight, read))
    })
    return Effect.sync(giveUp)
  })

/** Reads what a flight brought; the transformation of names is the user's, so a fault in it must not reach the socket. */
const readFrom = <A>(flight: Flight, read: (flight: Flight) => A): Effect.Effect<A> => {
  try {
    return Effect.succeed(read(flight))
  } catch (defect) {
    return Effect.die(defect)
  }
}

const commit = [constantStep("COMMIT")]
const rollback = [constantStep("ROLLBACK")]

/** A connection for one statement. */
const once = (
  pool: Pool,
  deadline: number,
  held: ReadonlyArray<Connection>,
  request: Request,
  lost: "inDoubt" | "undone",
  done: OnStatement
): (() => void) => {
  let connection: Connection | undefined
  let settled = false
  const giveUp = pool.checkout(deadline, held, (error, taken) => {
    if (taken === undefined) return done(error, undefined)
    connection = taken
    const before = guard(taken, pool.options.session, pool.options.readOnly)
    const isGuarded = before.length > 0
    const finish: Done = (failure, flight) => {
      if (isGuarded && failure !== undefined && taken.status !== "I" && taken.broken === undefined) {
        return taken.steps(rollback, () => finish(failure, flight))
      }
      settled = true
      pool.checkin(taken)
      if (failure === undefined) return done(undefined, flight)
      const place = { database: pool.options.database, server: pool.options.server.name }
      done(toStatementError(place, failure, isReceived(failure) ? lost : "notSent"), undefined)
    }
    runGuarded(taken, before, request, isGuarded ? commit : none, finish)
  })
  return () => {
    if (connection === undefined) giveUp()
    else if (!settled) connection.abort("cancelled")
  }
}

/** Whether a server may have seen what failed. */
const isReceived = (failure: Failure): boolean =>
  failure._tag !== "lost" || (failure.sent && !isUnserved(codeOf(failure.error), failure.error.message))
