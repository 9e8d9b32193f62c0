/**
 * The dispatch of statements to their transactions or to servers. An opened database has one
 * executor.
 */

import type { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import type { DatabaseConfig } from "../../DatabaseConfig.js"
import { type DatabaseError, QueryFailed, SchemaInvalid, toSqlError } from "../../DatabaseError.js"
import type { Observer } from "../../Observation.js"
import { isNotSent, type Policy, RetryPolicy } from "../../RetryPolicy.js"
import type { Choose } from "../../Router.js"
import type { Role } from "../../Topology.js"
import type { Options, WorkLabel } from "../../Transaction.js"
import type { Connection, Exchange, Request } from "../connection/connection.js"
import { FiberBorrower } from "../edge/fiberBorrower.js"
import { type CallSite, CurrentSite } from "../observability/callSite.js"
import { type Attributes, beginSpan, type TransactionSpan } from "../observability/transactionSpan.js"
import type { Borrower } from "../pool/borrower.js"
import type { Pool } from "../pool/pool.js"
import type { Limits } from "../sql/limits.js"
import { runAutocommit } from "../statement/autocommit.js"
import { withComment } from "../statement/workLabel.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import type { Topology } from "../topology/topology.js"
import { currentContext, type Retry, type TransactionContext } from "../transaction/context.js"
import { endingStatementIn } from "../transaction/endingStatement.js"
import type { JoinedPart } from "../transaction/joinedPart.js"
import { runStatement } from "../transaction/levelStatement.js"
import { inMillis } from "../transaction/plainOptions.js"
import type { StatementIsolation } from "../transaction/savepoint.js"
import { causalSessionOf, scoped } from "../transaction/slotScopes.js"
import { begin, type Origin, type Transaction } from "../transaction/transaction.js"
import { reasonOf, replayable, retryTransaction } from "../unitOfWork/retry.js"
import { mayBeStored, unitOf } from "../unitOfWork/unit.js"
import { OpenTransactions, PoolLender } from "./openTransactions.js"
import { ReadRouting } from "./readRouting.js"
import { mayRetryOnWriter, type Start, StatementRetry } from "./statementRetry.js"

const none: ReadonlyArray<never> = []

/** Dispatcher of the statements of one opened database. */
export class Executor implements Origin {
  readonly database: string
  readonly limits: Limits | undefined
  /** True if reports name the callers that hold connections. */
  readonly isWatched: boolean
  /** The attributes of all spans of the database, for any server. */
  readonly attributes: Attributes
  readonly openTransactions: OpenTransactions
  readonly retry: StatementRetry
  private readonly routing: ReadRouting

  constructor(
    readonly config: DatabaseConfig,
    readonly topology: Topology,
    readonly observer: Observer,
    choose: Choose,
    readonly sandbox: Transaction | undefined
  ) {
    const { name, options, pool, session, writer } = config
    this.database = name
    this.attributes = [
      ...Object.entries(options.spanAttributes ?? {}),
      ["db.system.name", "postgresql"],
      ["db.namespace", writer.database]
    ]
    this.isWatched = Number.isFinite(pool.leakThreshold) || pool.strategy === "assertSingle"
    this.limits = session.mode === "transactionPooler" ? session : undefined
    this.openTransactions = new OpenTransactions(name, pool.acquireTimeout)
    this.retry = new StatementRetry(name, pool.acquireTimeout, topology, observer)
    this.routing = new ReadRouting(name, topology, choose)
  }

  /** Runs a statement of a fiber in its transaction or on a server. */
  run<A>(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    kind: Role,
    plain: Request,
    read: (exchange: Exchange) => A
  ): Effect.Effect<A, SqlError> {
    const ambient = currentContext(fiber)
    const work = ambient?.work(fiber)
    const request = scoped(fiber.currentContext, ambient, this.database, withComment(plain, work))
    if (request instanceof SchemaInvalid) return Effect.fail(toSqlError(request))
    const refusal = this.refuseSandboxEnd(request)
    if (refusal !== undefined) return Effect.fail(toSqlError(refusal))
    const transaction = this.transactionFor(fiber, ambient, kind, request.site, work)
    if (transaction !== undefined) {
      const isolation = kind === "reader" && !transaction.readOnly ? "readOnly" : "none"
      if (kind === "writer") this.recordCausalSession(fiber, ambient, transaction)
      const part = kind === "writer" ? ambient?.part(transaction) : undefined
      return this.retry.attempt(fiber, inTransaction(transaction, request, isolation, part), read, isNotSent)
    }
    if (this.sandbox !== undefined) {
      const around = ambient?.around(this) ?? this.sandbox
      const start = inTransaction(around, request, kind === "reader" ? "readOnly" : "savepoint")
      return this.retry.attempt(fiber, start, read, isNotSent)
    }
    const held = ambient?.held(this) ?? none
    const affinity = ambient?.readAffinity(this)
    if (affinity !== undefined && kind === "writer") affinity.written = true
    return kind === "writer"
      ? this.retry.attempt(fiber, this.onWriter(fiber, ambient, work, request, held), read, mayRetryOnWriter(fiber))
      : this.retry.attempt(fiber, this.onReader(fiber, ambient, work, request, held), read, this.retry.mayRetryRead)
  }

  /**
   * Returns the refusal of a statement that would end the transaction of a sandbox; a COMMIT would
   * store it.
   */
  refuseSandboxEnd({ text }: Request): QueryFailed | undefined {
    const command = this.sandbox === undefined ? undefined : endingStatementIn(text)
    if (command === undefined) return undefined
    const cause = new Error(
      `${command} would end the sandbox - use withTransaction, or end it on a reserved connection`
    )
    return new QueryFailed({ database: this.database, server: "", cause })
  }

  /**
   * Returns the transaction that a statement belongs to; in a unit of work a writer's statement
   * begins one.
   */
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
      if (this.routing.consistency(fiber)?._tag === "Eventual") return undefined
    }
    const found = ambient.enlist(this, "writer")
    if (found === "none") return undefined
    // everything in this transaction is undone, so a read outside of it misses no write
    if (kind === "reader" && found?.level.presence === "undone") return undefined
    return (
      found ??
      (kind === "writer"
        ? ambient.open(this, (options) => this.begin("writer", options, fiber, ambient, site, work))
        : undefined)
    )
  }

  /** Creates a transaction outside of any other. Nothing is sent before its first statement. */
  begin(
    kind: Role,
    options: Options,
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    site?: CallSite | undefined,
    work = ambient?.work(fiber)
  ): Transaction {
    const labeled = withLabel(options, work)
    const held = () => ambient?.held(this) ?? none
    const pick = this.picker(kind, fiber, ambient)
    const span = this.span(fiber, labeled.label, ambient)
    const borrower = this.borrower(fiber, site, work)
    const lender = new PoolLender(this.openTransactions, pick, held, labeled.label, borrower, span)
    const transaction = begin(this, kind, lender, inMillis(labeled), ambient)
    transaction.span = span
    return transaction
  }

  /** Begins a span of a transaction, if a tracer is set. */
  span(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    label: string | undefined,
    ambient: TransactionContext | undefined
  ): TransactionSpan | undefined {
    return beginSpan(fiber, this.attributes, label, unitOf(ambient)?.attempt ?? 1)
  }

  /**
   * Registers the causal session of a fiber, if there is one, with the transaction that the fiber
   * writes in. A sandbox stores nothing, so it has no tokens.
   */
  recordCausalSession(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    transaction: Transaction
  ): void {
    const session = causalSessionOf(fiber.currentContext, ambient)
    if (session !== undefined && this.sandbox === undefined) transaction.level.connectionHolder.addSession(session)
  }

  /**
   * Returns a function that chooses the source of a connection. A repeated call, for another
   * attempt, chooses another server if one fits.
   */
  picker(
    kind: Role,
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined
  ): () => ConnectionSource {
    return kind === "writer" ? () => this.writes : this.routing.picker(fiber, ambient, ambient?.readAffinity(this))
  }

  /** Runs a transaction again while it is certainly undone and another attempt may succeed. */
  replay<A, E, R>(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    begin: () => Transaction,
    once: (transaction: Transaction) => Effect.Effect<A, E, R>,
    retry: Retry
  ): Effect.Effect<A, E, R> {
    let transaction: Transaction | undefined
    const next = Effect.suspend(() => {
      transaction = begin()
      return once(transaction)
    })
    // another attempt of this transaction cannot repair a failure on another database
    const origin = (database: string) => (database === this.database ? this : undefined)
    const reasonFor = (exit: Exit.Exit<A, E>) =>
      Exit.isSuccess(exit) || transaction === undefined || mayBeStored(transaction)
        ? undefined
        : replayable(reasonOf(transaction.failures, exit.cause), origin, exit.cause)
    const policy = Context.get(fiber.currentContext, RetryPolicy)
    const transactions = () => (transaction === undefined ? none : [transaction])
    return Effect.uninterruptibleMask((restore) =>
      retryTransaction(restore, next, reasonFor, transactions, retry, policy)
    )
  }

  takeReplay(policy: Policy, attempt: number, error: DatabaseError): boolean {
    return this.retry.takeTransaction(policy, attempt, error)
  }

  giveBackReplays(policy: Policy, count: number): void {
    this.retry.giveBackTransactions(policy, count)
  }

  /** Returns the description of a caller, if reports name the callers. */
  borrower(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    site: CallSite | undefined,
    work: WorkLabel | undefined
  ): Borrower | undefined {
    if (!this.isWatched && !this.observer.active) return undefined
    const span = fiber.currentSpan
    const known = site ?? Context.get(fiber.currentContext, CurrentSite)
    return new FiberBorrower(fiber.id(), span?._tag === "Span" ? span.name : undefined, known, work?.label)
  }

  private get writes(): Pool {
    const { writer } = this.topology
    // the server of a writer always has this pool; it is optional because a reader has none
    return writer.writes ?? writer.reads
  }

  private onWriter(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    work: WorkLabel | undefined,
    request: Request,
    held: ReadonlyArray<Connection>
  ): Start {
    const borrower = this.borrower(fiber, request.site, work)
    const session = causalSessionOf(fiber.currentContext, ambient)
    return (callback, deadline) =>
      runAutocommit(this.writes, deadline, held, request, "inDoubt", borrower, session, callback)
  }

  private onReader(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined,
    work: WorkLabel | undefined,
    request: Request,
    held: ReadonlyArray<Connection>
  ): Start {
    const pick = this.routing.picker(fiber, ambient, ambient?.readAffinity(this))
    const borrower = this.borrower(fiber, request.site, work)
    return (callback, deadline) =>
      runAutocommit(pick(), deadline, held, request, "undone", borrower, undefined, callback)
  }
}

/** Adds the label of the work around to the options of a transaction. */
const withLabel = (options: Options, work: WorkLabel | undefined): Options =>
  work === undefined
    ? options
    : {
        ...options,
        label: options.label ?? work.label,
        applicationName: options.applicationName ?? work.applicationName
      }

const inTransaction =
  (transaction: Transaction, request: Request, isolation: StatementIsolation, part?: JoinedPart | undefined): Start =>
  (callback) =>
    runStatement(
      transaction.level,
      request,
      isolation,
      callback,
      part === undefined ? undefined : () => part.recordSent(transaction)
    )
