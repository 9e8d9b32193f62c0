/**
 * A transaction of one database: its options, what begins it, and what is nested in it.
 *
 * @since 0.1.0
 */

import type * as Fiber from "effect/Fiber"
import type { DatabaseError, StatementError } from "../../DatabaseError.js"
import type { Observer } from "../../Observation.js"
import type { Policy } from "../../RetryPolicy.js"
import type { Role } from "../../Topology.js"
import type { Options } from "../../Transaction.js"
import * as clock from "../concurrency/clock.js"
import type { TransactionSpan } from "../observability/transactionSpan.js"
import * as wire from "../protocol/messages.js"
import { type Limits, setLocal } from "../sql/settings.js"
import { beginSql, limitOf, limitsSql } from "./begin.js"
import { ConnectionHolder, type ConnectionProvider } from "./connectionHolder.js"
import type { TransactionContext } from "./context.js"
import { type Hook, type HookKind, passedOn } from "./hook.js"
import { Level } from "./level.js"
import type { LevelSettings } from "./pendingBegin.js"

/**
 * Where the transactions of one opened database begin. Its identity tells databases apart.
 *
 * @since 0.1.0
 * @category models
 */
export interface Origin {
  readonly database: string
  readonly observer: Observer
  /** What every transaction sets for itself, where there is no session that would. */
  readonly limits?: Limits | undefined
  /** Every transaction is a savepoint inside of this one, which is never committed. */
  readonly sandbox?: Transaction | undefined
  /** @internal Takes one more attempt of a whole from the budget for retries, and tells of it. */
  readonly takeReplay: (policy: Policy, attempt: number, error: DatabaseError) => boolean
  /** @internal Gives attempts back to the budget. */
  readonly giveBackReplays: (policy: Policy, count: number) => void
  /** @internal Begins a span of a transaction, or of a savepoint, if a tracer is set. */
  readonly span: (
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    label: string | undefined,
    ambient: TransactionContext | undefined
  ) => TransactionSpan | undefined
}

const plainBegin: ReadonlyArray<wire.Step> = [wire.constantStep("BEGIN")]
const none: ReadonlyArray<never> = []

/**
 * An open transaction, or a savepoint inside of one.
 *
 * @since 0.1.0
 * @category models
 */
export class Transaction {
  /** @internal Set where a tracer is. */
  span: TransactionSpan | undefined = undefined
  private hooks: Array<Hook> | undefined = undefined
  private readonly startedAt = clock.now()
  /** @internal Set if a unit of work has begun it. */
  isOfUnit = false
  /** Where its outermost transaction is. */
  readonly base: Role

  constructor(
    readonly origin: Origin,
    readonly kind: Role,
    /** @internal */ readonly level: Level,
    /** The transaction around it, if this is a savepoint of the application. */
    readonly outer: Transaction | undefined,
    private settings: Options,
    /** The transaction that it is a savepoint in; in a sandbox that need not be one of the application. */
    private readonly around?: Transaction
  ) {
    this.base = outer?.base ?? kind
  }

  get options(): Options {
    return this.settings
  }

  /** @internal Has it be as a part of it asks, before anything of it was sent. */
  raise(more: Options): void {
    const given = Object.fromEntries(Object.entries(more).filter(([_, value]) => value !== undefined))
    this.settings = { ...this.settings, ...given }
    const { around, kind, origin, settings } = this
    this.level.settings =
      around === undefined ? transactionSettings(origin, kind, settings) : savepointSettings(around, settings)
  }

  /** When it began, in ms since then. */
  get age(): number {
    return clock.now() - this.startedAt
  }

  /** Whether the server refuses writes in it. */
  get readOnly(): boolean {
    return this.level.readOnly
  }

  /** Whether its COMMIT stores something, for all that is known. */
  get stores(): boolean {
    return this.level.touched && !this.level.readOnly
  }

  /** @internal Why it may have been undone, for all that its statements know. */
  get failures(): ReadonlyArray<StatementError> {
    const { failedBy, holder } = this.level
    return failedBy === undefined ? holder.failures : [failedBy, ...holder.failures]
  }

  /** @internal */
  addHook(hook: Hook): void {
    if (this.hooks === undefined) this.hooks = [hook]
    else this.hooks.push(hook)
  }

  /** @internal The hooks of a kind, in the order of their registration, each handed out once. */
  takeHooks(...kinds: ReadonlyArray<HookKind>): ReadonlyArray<Hook> {
    if (this.hooks === undefined) return none
    const taken = this.hooks.filter((hook) => kinds.includes(hook.kind))
    this.hooks = this.hooks.filter((hook) => !kinds.includes(hook.kind))
    return taken
  }

  /** @internal Leaves what is to be done later to the transaction around it. */
  passHooksOn(kept: boolean): void {
    if (this.hooks === undefined || this.outer === undefined) return
    for (const hook of this.hooks) {
      const passed = passedOn(hook, kept)
      if (passed !== undefined) this.outer.addHook(passed)
    }
    this.hooks = undefined
  }

  /** @internal */
  get hasHooks(): boolean {
    return this.hooks !== undefined && this.hooks.length > 0
  }
}

/**
 * Begins a transaction. Nothing is sent and no connection is taken before its first statement.
 *
 * @internal
 */
export const begin = (
  origin: Origin,
  kind: Role,
  provider: ConnectionProvider,
  asked: Options,
  ambient: TransactionContext | undefined
): Transaction => {
  // in a sandbox it is each of a reader's statements that is fenced in: a writer's may be among them, as it may be outside of a sandbox
  if (origin.sandbox !== undefined)
    return nest(origin, ambient?.around(origin) ?? origin.sandbox, kind, undefined, asked)
  const options = withLimits(kind === "reader" ? { ...asked, access: "read only" } : asked, origin.limits)
  const level = new Level(new ConnectionHolder(provider), undefined, transactionSettings(origin, kind, options))
  return new Transaction(origin, kind, level, undefined, options)
}

/** Plans the beginning of a transaction that is no savepoint. */
const transactionSettings = (origin: Origin, kind: Role, options: Options): LevelSettings => {
  const readOnly = options.access === "read only"
  const plain = options.isolation === undefined && options.access === undefined && options.deferrable === undefined
  const steps =
    plain &&
    options.statementTimeout === undefined &&
    options.lockTimeout === undefined &&
    options.applicationName === undefined
      ? plainBegin
      : beginSql(options).map(wire.step)
  const limited = origin.limits === undefined ? steps : [...steps, ...idleLimit(origin.limits)]
  // a transaction is read-only for good only after its first query
  const begin = kind === "reader" ? [...limited, wire.constantStep("SELECT 1")] : limited
  return { begin, restore: none, readOnly, limit: limitOf(options) }
}

/** The limits that a session would have set, where the transaction has none of its own. */
const withLimits = (options: Options, limits: Limits | undefined): Options =>
  limits === undefined
    ? options
    : {
        ...options,
        statementTimeout: options.statementTimeout ?? limits.statementTimeout,
        lockTimeout: options.lockTimeout ?? limits.lockTimeout
      }

const idleLimit = ({ idleInTransactionTimeout }: Limits): ReadonlyArray<wire.Step> =>
  setLocal({ idleInTransactionTimeout }).map(wire.constantStep)

/** @internal A savepoint inside of a transaction. `outer` is the transaction of the application around it, if there is one. */
export const nest = (
  origin: Origin,
  around: Transaction,
  kind: Role,
  outer: Transaction | undefined,
  options: Options
): Transaction => {
  const { applicationName, lockTimeout, statementTimeout } = around.options
  const effective = { applicationName, lockTimeout, statementTimeout, ...options }
  const level = new Level(around.level.holder, around.level, savepointSettings(around, options))
  return new Transaction(origin, kind, level, outer, effective, around)
}

/** Plans the beginning of a savepoint, and the steps that put the settings around it back. */
const savepointSettings = (around: Transaction, options: Options): LevelSettings => {
  const { applicationName, lockTimeout, statementTimeout } = around.options
  const limits = limitsSql(options)
  const readOnly = options.access === "read only" || around.readOnly
  const set = options.access === "read only" ? ["SET LOCAL transaction_read_only = on", ...limits] : limits
  const restore = limits.length === 0 ? none : [...limitsSql(around.options), ...unset(options, around.options)]
  return {
    begin: set.map(wire.step),
    restore: restore.map(wire.step),
    readOnly,
    limit: limitOf({ applicationName, lockTimeout, statementTimeout, ...options })
  }
}

const unset = (inner: Options, outer: Options): ReadonlyArray<string> => {
  const all: Array<string> = []
  if (inner.statementTimeout !== undefined && outer.statementTimeout === undefined) {
    all.push("SET LOCAL statement_timeout TO DEFAULT")
  }
  if (inner.lockTimeout !== undefined && outer.lockTimeout === undefined) all.push("SET LOCAL lock_timeout TO DEFAULT")
  if (inner.applicationName !== undefined && outer.applicationName === undefined) {
    all.push("SET LOCAL application_name TO DEFAULT")
  }
  return all
}
