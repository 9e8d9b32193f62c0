/**
 * The transactions of an opened database: the look-up of the transaction of a statement, and the
 * beginning of new ones.
 */

import * as Context from "effect/Context"
import type * as Fiber from "effect/Fiber"
import type { DatabaseConfig } from "../../DatabaseConfig.js"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Observer } from "../../Observation.js"
import type { Policy } from "../../RetryPolicy.js"
import type { Choose } from "../../Router.js"
import type { Role } from "../../Topology.js"
import type { Options, WorkLabel } from "../../Transaction.js"
import { FiberCaller } from "../edge/fiberCaller.js"
import { type CallSite, CurrentSite } from "../observability/callSite.js"
import { type Attributes, beginSpan, type TransactionSpan } from "../observability/transactionSpan.js"
import type { Caller } from "../pool/caller.js"
import type { Timeouts } from "../sql/timeouts.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import type { Topology } from "../topology/topology.js"
import { UnpooledConnections } from "../topology/unpooledConnections.js"
import type { TransactionContext } from "../transaction/context.js"
import { causalSessionOf } from "../transaction/currentCausalSession.js"
import { CommitMarkerSource } from "../transaction/markedConnectionSource.js"
import { inMillis } from "../transaction/optionsInMillis.js"
import { CommitMarkers } from "../transaction/outcomesByMarker.js"
import { CommitOutcomes } from "../transaction/outcomesByStatus.js"
import { PreparedTransactions } from "../transaction/preparedTransactionRecovery.js"
import { begin, type Origin, type Transaction } from "../transaction/transaction.js"
import { unitOf } from "../unitOfWork/unitOf.js"
import { OpenTransactions } from "./openTransactions.js"
import { PoolConnectionProvider } from "./poolConnectionProvider.js"
import { ReadRouting } from "./readRouting.js"
import { StatementRetry } from "./statementRetry.js"

const none: ReadonlyArray<never> = []

/**
 * Adds the label and the application name of the work around to the options of a transaction that
 * has none.
 */
const withLabel = (options: Options, work: WorkLabel | undefined): Options =>
  work === undefined
    ? options
    : {
        ...options,
        label: options.label ?? work.label,
        applicationName: options.applicationName ?? work.applicationName
      }

/** Transactions of one opened database, and the parts that they share: retry, routing, spans. */
export class DatabaseTransactions implements Origin {
  readonly database: string
  readonly timeouts: Timeouts | undefined
  /** True if reports name the callers that hold connections. */
  readonly isWatched: boolean
  /** The attributes of all spans of the database, for any server. */
  readonly attributes: Attributes
  readonly openTransactions: OpenTransactions
  readonly retry: StatementRetry
  /** The COMMITs without an answer, if `outcome` has them proved by status. */
  readonly outcomes: CommitOutcomes | undefined
  /** The markers of COMMITs, if `outcome` has them proved by markers. */
  readonly markers: CommitMarkers | undefined
  /** The prepared transactions, if units of work may end in two phases. */
  readonly prepared: PreparedTransactions | undefined
  protected readonly routing: ReadRouting

  constructor(
    readonly config: DatabaseConfig,
    readonly topology: Topology,
    readonly observer: Observer,
    readonly choose: Choose,
    readonly sandbox: Transaction | undefined,
    /** The transactions of the same opened database, whose parts are shared. */
    base?: DatabaseTransactions | undefined
  ) {
    const { name, options, pool, session, writer } = config
    this.database = name
    this.attributes = [
      ...Object.entries(options.spanAttributes ?? {}),
      ["db.system.name", "postgresql"],
      ["db.namespace", writer.database]
    ]
    this.isWatched = Number.isFinite(pool.leakThreshold) || pool.strategy === "assertSingle"
    this.timeouts = session.mode === "transactionPooler" ? session : undefined
    if (base !== undefined) {
      const isSame = sandbox === base.sandbox
      this.openTransactions = isSame ? base.openTransactions : new OpenTransactions(name, pool.acquireTimeout)
      this.retry = base.retry
      this.outcomes = base.outcomes
      this.markers = base.markers
      this.prepared = sandbox === undefined ? base.prepared : undefined
      this.routing = base.routing
      return
    }
    this.openTransactions = new OpenTransactions(name, pool.acquireTimeout)
    this.retry = new StatementRetry(name, pool.acquireTimeout, topology, observer)
    this.outcomes =
      config.outcome === "status" ? new CommitOutcomes(config.resolveWithin, () => topology.proofs.begin()) : undefined
    this.markers = config.outcome === "marker" ? this.makeMarkers(config) : undefined
    this.prepared =
      this.markers !== undefined && config.twoPhase && sandbox === undefined
        ? new PreparedTransactions({
            database: name,
            observer,
            markers: this.markers,
            timeout: config.resolveWithin,
            makeConnections: () => new UnpooledConnections(this.writes.options)
          })
        : undefined
    this.routing = new ReadRouting(name, topology, choose, config.routing.whenAllBehind)
  }

  /**
   * Returns the transaction that a statement belongs to, or `undefined` if it runs in none. In a
   * unit of work, a writer's first statement begins one.
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
    // all writes of this transaction are undone, so a read outside of it misses none
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
    const picked = this.picker(kind, fiber, ambient)
    const markers = kind === "writer" ? this.markers : undefined
    const pick = markers === undefined ? picked : () => new CommitMarkerSource(picked(), markers)
    const span = this.span(fiber, labeled.label, ambient)
    const caller = this.caller(fiber, site, work)
    const { openTransactions, outcomes } = this
    const provider = new PoolConnectionProvider(
      openTransactions,
      pick,
      held,
      labeled.label,
      caller,
      span,
      outcomes,
      markers
    )
    const transaction = begin(this, kind, provider, inMillis(labeled), ambient)
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
   * Returns a function that chooses the source of a connection. For a reader, each further call,
   * for another attempt, chooses another server if possible.
   */
  picker(
    kind: Role,
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined
  ): () => ConnectionSource {
    return kind === "writer" ? () => this.writes : this.routing.picker(fiber, ambient, ambient?.readAffinity(this))
  }

  takeReplay(policy: Policy, attempt: number, error: DatabaseError): boolean {
    return this.retry.takeTransaction(policy, attempt, error)
  }

  giveBackReplays(policy: Policy, count: number): void {
    this.retry.giveBackTransactions(policy, count)
  }

  /** Returns the description of a caller, if reports or an observer use it. */
  caller(
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    site: CallSite | undefined,
    work: WorkLabel | undefined
  ): Caller | undefined {
    if (!this.isWatched && !this.observer.active) return undefined
    const span = fiber.currentSpan
    const known = site ?? Context.get(fiber.currentContext, CurrentSite)
    return new FiberCaller(fiber.id(), span?._tag === "Span" ? span.name : undefined, known, work?.label)
  }

  private makeMarkers({ createsOutcomeTable, outcomeRetention, resolveWithin }: DatabaseConfig): CommitMarkers {
    const settings = { timeout: resolveWithin, retention: outcomeRetention, creates: createsOutcomeTable }
    return new CommitMarkers(
      settings,
      () => this.topology.proofs.begin(),
      (server, message) =>
        this.observer.observe({ _tag: "OutcomesNotDeleted", database: this.database, server, message })
    )
  }

  protected get writes(): ConnectionSource {
    const { writer } = this.topology
    // the server of a writer always has this pool; it is optional because a reader has none
    return writer.writes ?? writer.reads
  }
}
