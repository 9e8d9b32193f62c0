/**
 * How a statement finds its transaction, or a server, and what is tried again: one engine per opened database.
 */

import type { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import { type Consistency, CurrentConsistency, type Session, waitOf } from "../../Consistency.js"
import type { DatabaseConfig } from "../../DatabaseConfig.js"
import {
  type DatabaseError,
  QueryFailed,
  type Retried,
  SchemaInvalid,
  type StatementError,
  toSqlError
} from "../../DatabaseError.js"
import { Observation, type Observer } from "../../Observation.js"
import { idempotentRef, isNotSent, isStale, type Policy, RetryPolicy } from "../../RetryPolicy.js"
import type { Choose } from "../../Router.js"
import type { OpenTransaction, Role } from "../../Topology.js"
import type { Options, WorkLabel } from "../../Transaction.js"
import * as clock from "../concurrency/clock.js"
import type { Connection, Exchange, Request } from "../connection/connection.js"
import type { StatementFailure } from "../connection/plainFailure.js"
import type { ErrorLocation } from "../connection/statementFailure.js"
import { cancellable } from "../edge/cancellable.js"
import { asStatementError, toDatabaseError } from "../edge/databaseError.js"
import { FiberBorrower } from "../edge/fiberBorrower.js"
import { noteRetried, withLocation } from "../edge/statementError.js"
import { type CallSite, CurrentSite } from "../observability/callSite.js"
import { type Attributes, beginSpan, type TransactionSpan } from "../observability/transactionSpan.js"
import type { Borrower } from "../pool/borrower.js"
import type { Pool } from "../pool/pool.js"
import type { Limits } from "../sql/settings.js"
import { runAutocommit } from "../statement/autocommit.js"
import { withComment } from "../statement/workLabel.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import { type ReadRequirement, ReplicaSelection } from "../topology/replicaSelection.js"
import type { Server, Topology } from "../topology/topology.js"
import type { ConnectionProvider } from "../transaction/connectionHolder.js"
import { currentContext, type ReadAffinity, type Retry, type TransactionContext } from "../transaction/context.js"
import { causalSessionOf, scoped } from "../transaction/contextSlot.js"
import { endingStatementIn } from "../transaction/endingStatement.js"
import type { JoinedPart } from "../transaction/joinedPart.js"
import { runStatement } from "../transaction/levelStatement.js"
import type { StatementIsolation } from "../transaction/savepoint.js"
import { begin, type Origin, type Transaction } from "../transaction/transaction.js"
import { reasonOf, replayable, retryTransaction } from "../unitOfWork/retry.js"
import { mayBeStored, unitOf } from "../unitOfWork/unitOfWork.js"
import { RetryBudget } from "./retryBudget.js"
import { makeStatementRetry } from "./statementRetry.js"

/** Starts something with the server; the returned function gives it up. `deadline` is until when a connection must have been found. */
type Go = (done: OnStatement, deadline: number) => () => void

/** Callback for the result of a statement, or for its failure, which an autocommit statement reports as a plain value. */
type OnStatement = (failure: StatementFailure | StatementError | undefined, flight: Exchange | undefined) => void

/** Whether a failure allows another attempt. `refusals` is how many attempts have been refused by a server for good so far. */
export type MayRetry = (error: DatabaseError, refusals: number) => boolean

/** Goes on after a failed attempt; `deadline` is until when it had to find a connection. */
type Failed<A, E> = (error: E, deadline: number) => Effect.Effect<A, E>

const none: ReadonlyArray<never> = []

/** A server's pool, as a transaction sees it. */
class PoolLender implements ConnectionProvider {
  /** When it got its connection. */
  since = 0
  /** Where it is among those that have one. */
  at = -1
  private source: ConnectionSource | undefined
  private deadline: number | undefined

  constructor(
    private readonly engine: Executor,
    private readonly pick: () => ConnectionSource,
    private readonly held: () => ReadonlyArray<Connection>,
    readonly label: string | undefined,
    private readonly who: Borrower | undefined,
    private readonly span: TransactionSpan | undefined
  ) {}

  get busyTimeout(): number {
    return this.engine.config.pool.acquireTimeout
  }

  get location(): ErrorLocation {
    return { database: this.engine.config.name, server: this.source?.options.server.name ?? "" }
  }

  checkout(settle: Parameters<ConnectionProvider["checkout"]>[0]): () => void {
    const source = this.pick()
    this.source = source
    // all attempts share the one deadline
    this.deadline ??= this.engine.deadline()
    const since = this.span === undefined ? 0 : clock.now()
    return source.checkout(
      this.deadline,
      this.held(),
      (failure, connection) => {
        if (connection !== undefined) {
          this.engine.lent(this)
          this.span?.begins(connection.server, clock.now() - since)
        }
        settle(failure === undefined ? undefined : toDatabaseError(failure), connection)
      },
      this.who
    )
  }

  checkin(connection: Connection): void {
    this.deadline = undefined
    this.engine.returned(this)
    this.source?.checkin(connection)
  }
}

export class Executor implements Origin {
  readonly database: string
  readonly limits: Limits | undefined
  /** Those of the transactions that hold a connection, in no order. */
  private readonly opened: Array<PoolLender> = []
  /** Whether somebody wants to know who holds which connection. */
  readonly isWatched: boolean
  /** What every span of the database has, whichever server it is about. */
  readonly attributes: Attributes
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
    this.attributes = [
      ...Object.entries(config.options.spanAttributes ?? {}),
      ["db.system.name", "postgresql"],
      ["db.namespace", config.writer.database]
    ]
    this.isWatched = Number.isFinite(config.pool.leakThreshold) || config.pool.strategy === "assertSingle"
    this.limits = config.session.mode === "transactionPooler" ? config.session : undefined
  }

  /**
   * Whether a read that failed may be tried again. A server that refuses for good refuses the next time, too, but another one may not: each
   * is asked once.
   */
  readonly readsAgain: MayRetry = (error, refusals) => {
    if (error._tag === "ConnectFailed") return isNotSent(error) || refusals <= this.topology.readers.length
    if (error._tag === "Disconnected") return error.outcome !== "inDoubt"
    // a standby cancels reads that stand in the way of what it replays
    return isStale(error) || error._tag === "SerializationFailure" || error._tag === "DeadlockDetected"
  }

  /** Until when a connection must have been found, counted from now. */
  deadline(): number {
    return clock.now() + this.config.pool.acquireTimeout
  }

  /** The transactions that hold a connection. */
  get transactions(): ReadonlyArray<OpenTransaction> {
    const now = clock.now()
    return this.opened
      .map(({ label, location, since }) => ({ server: location.server, label, ageMillis: now - since }))
      .sort((a, b) => b.ageMillis - a.ageMillis)
  }

  /** A transaction got its connection. */
  lent(lender: PoolLender): void {
    lender.since = clock.now()
    lender.at = this.opened.push(lender) - 1
  }

  /** A transaction gave its connection back; the last one takes its place. */
  returned(lender: PoolLender): void {
    const last = this.opened.pop()
    if (last === undefined || last === lender) return
    this.opened[lender.at] = last
    last.at = lender.at
  }

  /** Runs a statement of a fiber where it belongs. */
  run<A>(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    kind: Role,
    asked: Request,
    read: (flight: Exchange) => A
  ): Effect.Effect<A, SqlError> {
    const ambient = currentContext(fiber)
    const work = ambient?.work(fiber)
    const request = scoped(fiber.currentContext, ambient, this.database, withComment(asked, work))
    if (request instanceof SchemaInvalid) return Effect.fail(toSqlError(request))
    const ender = this.endsSandbox(request)
    if (ender !== undefined) return Effect.fail(toSqlError(ender))
    const transaction = this.transactionFor(fiber, ambient, kind, request.site, work)
    if (transaction !== undefined) {
      const fence = kind === "reader" && !transaction.readOnly ? "readOnly" : "none"
      if (kind === "writer") this.witness(fiber, ambient, transaction)
      const part = kind === "writer" ? ambient?.part(transaction) : undefined
      return this.attempt(fiber, inTransaction(transaction, request, fence, part), read, isNotSent)
    }
    if (this.sandbox !== undefined) {
      const around = ambient?.around(this) ?? this.sandbox
      const go = inTransaction(around, request, kind === "reader" ? "readOnly" : "savepoint")
      return this.attempt(fiber, go, read, isNotSent)
    }
    const held = ambient?.held(this) ?? none
    const memory = ambient?.readAffinity(this)
    if (memory !== undefined && kind === "writer") memory.written = true
    return kind === "writer"
      ? this.attempt(fiber, this.onWriter(fiber, ambient, work, request, held), read, retriesOnWriter(fiber))
      : this.attempt(fiber, this.onReader(fiber, ambient, work, request, held), read, this.readsAgain)
  }

  /** Returns the refusal of a statement that would end the one transaction of a sandbox, and store it. */
  endsSandbox({ text }: Request): QueryFailed | undefined {
    const ender = this.sandbox === undefined ? undefined : endingStatementIn(text)
    if (ender === undefined) return undefined
    const cause = new Error(`${ender} would end the sandbox - use withTransaction, or end it on a reserved connection`)
    return new QueryFailed({ database: this.database, server: "", cause })
  }

  /** The transaction that a statement belongs to; in a unit of work a writer's statement begins one. */
  transactionFor(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    kind: Role,
    site?: CallSite | undefined,
    work?: WorkLabel | undefined
  ): Transaction | undefined {
    if (ambient === undefined) return undefined
    if (kind === "reader") {
      const reading = ambient.enlist(this, "reader")
      if (reading !== undefined && reading !== "none") return reading
      if (this.consistency(fiber)?._tag === "Eventual") return undefined
    }
    const found = ambient.enlist(this, "writer")
    if (found === "none") return undefined
    // what was written there is undone, so there is nothing to see
    if (kind === "reader" && found?.level.presence === "undone") return undefined
    return (
      found ??
      (kind === "writer"
        ? ambient.open(this, (options) => this.begin("writer", options, fiber, ambient, site, work))
        : undefined)
    )
  }

  /** A new transaction, outside of any other. */
  begin(
    kind: Role,
    options: Options,
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    site?: CallSite | undefined,
    work = ambient?.work(fiber)
  ): Transaction {
    const asked = named(options, work)
    const held = () => ambient?.held(this) ?? none
    const pick = this.picker(kind, fiber, ambient)
    const span = this.span(fiber, asked.label, ambient)
    const lender = new PoolLender(this, pick, held, asked.label, this.borrower(fiber, site, work), span)
    const transaction = begin(this, kind, lender, asked, ambient)
    transaction.span = span
    return transaction
  }

  /** A span of a transaction, if a tracer is set. */
  span(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    label: string | undefined,
    ambient: TransactionContext | undefined
  ): TransactionSpan | undefined {
    return beginSpan(fiber, this.attributes, label, unitOf(ambient)?.attempt ?? 1)
  }

  /** What a fiber writes in a transaction is its session's own, if it is in one. In a sandbox nothing is ever stored. */
  witness(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    transaction: Transaction
  ): void {
    const session = causalSessionOf(fiber.currentContext, ambient)
    if (session !== undefined && this.sandbox === undefined) transaction.level.holder.addSession(session)
  }

  /** Chooses where a connection comes from; called again, for another attempt, another server where one fits. */
  picker(
    kind: Role,
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined
  ): () => ConnectionSource {
    return kind === "writer" ? () => this.writes : this.readerPicker(fiber, ambient, ambient?.readAffinity(this))
  }

  /** Tries once and, where it failed in a way that allows it, again by the policy. */
  attempt<A>(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    go: Go,
    read: (flight: Exchange) => A,
    again: MayRetry
  ): Effect.Effect<A, SqlError> {
    const told = (error: StatementError) => toSqlError(withLocation(error, locationOf(fiber)))
    return this.start(go, undefined, read, (first, deadline) => {
      if (!again(first, 1)) return Effect.fail(told(first))
      const policy = Context.get(fiber.currentContext, RetryPolicy)
      const next = (last: StatementError, until: number, failed: Failed<A, StatementError>) =>
        // attempts that found no connection share one deadline; a statement that was sent had found one
        this.start(go, isNotSent(last) ? until : undefined, read, failed)
      return Effect.mapError(this.retry(policy, again, first, deadline, next), told)
    })
  }

  /** Tries what gets a connection, and sends nothing, again by the policy as long as there is time. */
  again<A, E extends DatabaseError>(
    self: Effect.Effect<A, E>,
    deadline: number,
    again: MayRetry = isNotSent
  ): Effect.Effect<A, E> {
    const attempt = (_: E, __: number, failed: Failed<A, E>) =>
      Effect.catchAll(self, (error) => failed(error, deadline))
    return Effect.catchAll(self, (error) =>
      again(error, 1)
        ? Effect.flatMap(RetryPolicy, (policy) => this.retry(policy, again, error, deadline, attempt))
        : Effect.fail(error)
    )
  }

  /** Goes on after a failed attempt, with the policy's pauses, for as long as the failures allow it. */
  private retry<A, E extends DatabaseError>(
    policy: Policy,
    again: MayRetry,
    first: E,
    firstDeadline: number,
    attempt: (last: E, deadline: number, failed: Failed<A, E>) => Effect.Effect<A, E>
  ): Effect.Effect<A, E> {
    return Effect.flatMap(makeStatementRetry(policy, this.budget, this.topology.outageWaiters), (retry) => {
      let attempts = 0
      let refusals = 0
      const failed: Failed<A, E> = (error, deadline) => {
        if (error._tag === "ConnectFailed" && !isAway(error)) refusals++
        if (!again(error, refusals)) return Effect.fail(error)
        return Effect.flatMap(retry.pause(error, deadline), (goesOn) => {
          if (!goesOn) {
            this.exhausted(error, { attempts: attempts + 1, endedBy: retry.endedBy() })
            return Effect.fail(error)
          }
          this.retried(isNotSent(error) ? "acquire" : "statement", ++attempts, error.message)
          return attempt(error, deadline, (next, until) =>
            // that no connection became free says less than why there was none
            next._tag === "PoolExhausted" && next.reason === "timeout" && next.total === 0 && isAway(error)
              ? Effect.fail(error)
              : failed(next, until)
          )
        })
      }
      return Effect.tap(failed(first, firstDeadline), () => retry.giveBack())
    })
  }

  /** An effect of what is started; nothing is allocated for a failure that does not come. */
  private start<A, E>(
    go: Go,
    deadline: number | undefined,
    read: (flight: Exchange) => A,
    recover: (error: StatementError, deadline: number) => Effect.Effect<A, E>
  ): Effect.Effect<A, E> {
    return cancellable((resume) => {
      const until = deadline ?? this.deadline()
      return go((failure, flight) => {
        if (failure !== undefined) resume(recover(asStatementError(failure), until))
        else if (flight !== undefined) resume(readFrom(flight, read))
      }, until)
    })
  }

  /** Runs a whole transaction again, where it is undone for certain and may go better. */
  replay<A, E, R>(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    begin: () => Transaction,
    once: (transaction: Transaction) => Effect.Effect<A, E, R>,
    asked: Retry
  ): Effect.Effect<A, E, R> {
    let transaction: Transaction | undefined
    const next = Effect.suspend(() => {
      transaction = begin()
      return once(transaction)
    })
    // what failed on another database is not mended by running this one again
    const origin = (database: string) => (database === this.database ? this : undefined)
    const reasonFor = (exit: Exit.Exit<A, E>) =>
      Exit.isSuccess(exit) || transaction === undefined || mayBeStored(transaction)
        ? undefined
        : replayable(reasonOf(transaction.failures, exit.cause), origin, exit.cause)
    const policy = Context.get(fiber.currentContext, RetryPolicy)
    const transactions = () => (transaction === undefined ? none : [transaction])
    return Effect.uninterruptibleMask((restore) =>
      retryTransaction(restore, next, reasonFor, transactions, asked, policy)
    )
  }

  takeReplay(policy: Policy, attempt: number, error: DatabaseError): boolean {
    const isLeft = this.budget.take(policy.budget)
    if (isLeft) this.retried("transaction", attempt, error.message)
    return isLeft
  }

  giveBackReplays({ budget }: Policy, count: number): void {
    this.budget.giveBack(count, budget)
  }

  /** Says of a statement's last failure that it was tried again in vain. One that found no connection says how long it has waited. */
  private exhausted(error: DatabaseError, retried: Retried): void {
    if (error._tag === "ConnectFailed" || (retried.attempts === 1 && retried.endedBy === "schedule")) return
    noteRetried(error, retried)
    const what = isNotSent(error) ? "acquire" : "statement"
    const { database } = this
    this.observer.observe(Observation.RetryExhausted({ database, what, ...retried, message: error.message }))
  }

  private retried(what: "acquire" | "statement" | "transaction", attempt: number, message: string): void {
    this.observer.observe(Observation.Retried({ database: this.database, what, attempt, message }))
  }

  private get writes(): Pool {
    const { writer } = this.topology
    // a writer's server always has the pool; the read-only one is the type's way out
    return writer.writes ?? writer.reads
  }

  private consistency(fiber: Fiber.RuntimeFiber<unknown, unknown>): Consistency | undefined {
    return Context.get(fiber.currentContext, CurrentConsistency).get(this.database)
  }

  /** What a read must see beside whatever a replica has: all that is stored, or what tokens tell of. */
  private wanted(
    consistency: Consistency | undefined,
    session: Session | undefined,
    memory: ReadAffinity | undefined
  ): "nothing" | "everything" | ReadRequirement {
    if (consistency?._tag === "Eventual") return "nothing"
    if (consistency?._tag === "Strong" || memory?.written === true) return "everything"
    const asked = consistency?._tag === "AtLeast" ? consistency : undefined
    const known = session?.known.get(this.database)
    if (asked === undefined && known === undefined) return "nothing"
    const otherwise = asked?.otherwise ?? "primary"
    const maxWait = asked === undefined ? (session?.maxWaitMillis ?? 0) : waitOf(asked.maxWait)
    const common = { session, otherwise, maxWait }
    if (known === "unknown") return { ...common, tokens: undefined }
    if (asked === undefined) return known === undefined ? "nothing" : { ...common, tokens: [known] }
    return { ...common, tokens: known === undefined ? [asked.token] : [asked.token, known] }
  }

  /** Who asks for a connection, where somebody wants to know. */
  borrower(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    site: CallSite | undefined,
    work: WorkLabel | undefined
  ): Borrower | undefined {
    if (!this.isWatched && !this.observer.active) return undefined
    const span = fiber.currentSpan
    const written = site ?? Context.get(fiber.currentContext, CurrentSite)
    return new FiberBorrower(fiber.id(), span?._tag === "Span" ? span.name : undefined, written, work?.label)
  }

  private onWriter(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    work: WorkLabel | undefined,
    request: Request,
    held: ReadonlyArray<Connection>
  ): Go {
    const who = this.borrower(fiber, request.site, work)
    const session = causalSessionOf(fiber.currentContext, ambient)
    return (done, deadline) => runAutocommit(this.writes, deadline, held, request, "inDoubt", who, session, done)
  }

  private onReader(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    work: WorkLabel | undefined,
    request: Request,
    held: ReadonlyArray<Connection>
  ): Go {
    const pick = this.readerPicker(fiber, ambient, ambient?.readAffinity(this))
    const who = this.borrower(fiber, request.site, work)
    return (done, deadline) => runAutocommit(pick(), deadline, held, request, "undone", who, undefined, done)
  }

  /**
   * Chooses the server of a read. Called again, for another attempt, it prefers a server that it has not given before; with no replica
   * left it is the primary, read-only.
   */
  private readerPicker(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    memory: ReadAffinity | undefined
  ): () => ConnectionSource {
    const { readers, writer } = this.topology
    if (readers.length === 0) return () => writer.reads
    const consistency = this.consistency(fiber)
    const session = causalSessionOf(fiber.currentContext, ambient)
    const given = new Set<Server>()
    const next = () => {
      const now = clock.now()
      const up = readers.filter((server) => server.isUp(now) && !given.has(server))
      const server = up.find((_) => _.name === memory?.reader) ?? this.pick(up) ?? writer
      if (server === writer) given.clear()
      else given.add(server)
      return server
    }
    const remember = ({ name, reads }: Server) => {
      if (memory !== undefined) memory.reader = name
      return reads
    }
    return () => {
      // a transaction may begin long after it was made
      const wanted = this.wanted(consistency, session, memory)
      const mayFail = typeof wanted === "object" && wanted.otherwise === "fail"
      if (wanted === "everything" || (memory?.reader === writer.name && !mayFail)) return writer.reads
      return wanted === "nothing"
        ? remember(next())
        : new ReplicaSelection({ next, primary: writer, onFound: remember }, wanted)
    }
  }

  private pick(servers: ReadonlyArray<Server>): Server | undefined {
    if (servers.length < 2) return servers[0]
    const ask = { database: this.database, turn: this.turn++, random: clock.random() }
    const candidates = servers.map((server) => ({ name: server.name, load: server.reads.load }))
    return servers[this.choose(ask, candidates)] ?? servers[0]
  }
}

/** The place in the program that a fiber is at, as far as it is known without having been noted down. */
export const locationOf = ({ currentContext, currentSpan }: Fiber.RuntimeFiber<unknown, unknown>): string | undefined =>
  Context.get(currentContext, CurrentSite)?.place ??
  (currentSpan?._tag === "Span" ? `span "${currentSpan.name}"` : undefined)

const retriesOnWriter = (fiber: Fiber.RuntimeFiber<unknown, unknown>): ((error: DatabaseError) => boolean) =>
  fiber.getFiberRef(idempotentRef) ? isIdempotentAgain : isNotSent

const isIdempotentAgain = (error: DatabaseError): boolean => isNotSent(error) || error._tag === "Disconnected"

/** Whether there was no connection, as a server that is away may come back. */
const isAway = (error: DatabaseError): boolean => error._tag === "ConnectFailed" && isNotSent(error)

/** A transaction bears the name of the work that it is a part of. */
const named = (options: Options, work: WorkLabel | undefined): Options =>
  work === undefined
    ? options
    : {
        ...options,
        label: options.label ?? work.label,
        applicationName: options.applicationName ?? work.applicationName
      }

const inTransaction =
  (transaction: Transaction, request: Request, fence: StatementIsolation, part?: JoinedPart | undefined): Go =>
  (done) =>
    runStatement(transaction.level, request, fence, done, part === undefined ? undefined : () => part.note(transaction))

/** Reads what a flight brought; the transformation of names is the user's, so a fault in it must not reach the socket. */
const readFrom = <A>(flight: Exchange, read: (flight: Exchange) => A): Effect.Effect<A> => {
  try {
    return Effect.succeed(read(flight))
  } catch (defect) {
    return Effect.die(defect)
  }
}
