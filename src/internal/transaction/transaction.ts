/**
 * A transaction of one database, or a savepoint of the program inside of one: its options, settings
 * and hooks.
 */

import type * as Fiber from "effect/Fiber"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Observer } from "../../Observation.js"
import type { Policy } from "../../RetryPolicy.js"
import type { Role } from "../../Topology.js"
import * as clock from "../concurrency/clock.js"
import type { PlainFailure, StatementFailure } from "../connection/failure.js"
import type { TransactionSpan } from "../observability/transactionSpan.js"
import * as wire from "../protocol/frontendMessages.js"
import { setLocal, type Timeouts } from "../sql/timeouts.js"
import { beginSql, limitsSql } from "./begin.js"
import { ConnectionHolder, type ConnectionProvider } from "./connectionHolder.js"
import type { TransactionContext } from "./context.js"
import { type Hook, type HookKind, passedOn } from "./hook.js"
import { isHigher } from "./isolation.js"
import { Level } from "./level.js"
import type { PlainOptions } from "./optionsInMillis.js"
import type { LevelSettings } from "./pendingBegin.js"
import type { PreparedTransactions } from "./preparedTransactionRecovery.js"
import { SandboxedLevel } from "./sandboxedLevel.js"

/**
 * An opened database, as the origin of transactions. Databases are compared by the identity of this
 * object.
 */
export interface Origin {
  readonly database: string
  readonly observer: Observer
  /**
   * The timeouts that each transaction sets for itself if sessions cannot have them, for example
   * behind a transaction pooler.
   */
  readonly timeouts?: Timeouts | undefined
  /**
   * The transaction of a sandbox, which is never committed. Every other transaction is a savepoint
   * inside of it.
   */
  readonly sandbox?: Transaction | undefined
  /** The prepared transactions of the database, if units of work may end in two phases. */
  readonly prepared?: PreparedTransactions | undefined
  /**
   * Takes one more attempt of a transaction or unit from the retry budget, and reports the retry.
   * Returns false if the budget is used up.
   */
  readonly takeReplay: (policy: Policy, attempt: number, error: DatabaseError) => boolean
  /** Returns attempts to the retry budget. */
  readonly giveBackReplays: (policy: Policy, count: number) => void
  /** Begins a span of a transaction, or of a savepoint, if a tracer is set. */
  readonly span: (
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    label: string | undefined,
    ambient: TransactionContext | undefined
  ) => TransactionSpan | undefined
}

const plainBegin: ReadonlyArray<wire.Step> = [wire.constantStep("BEGIN")]
const none: ReadonlyArray<never> = []

/** A transaction, or a savepoint of the program inside of one. */
export class Transaction {
  /** Set if there is a tracer. */
  span: TransactionSpan | undefined = undefined
  private hooks: Array<Hook> | undefined = undefined
  private readonly startedAt = clock.now()
  /** True if a unit of work has begun it. */
  isOfUnit = false
  /** The role of its outermost transaction. */
  readonly base: Role

  constructor(
    readonly origin: Origin,
    readonly kind: Role,
    readonly level: Level,
    /** The transaction around it, if this is a savepoint of the program. */
    readonly outer: Transaction | undefined,
    private settings: PlainOptions,
    /** The transaction that it is a savepoint of, also if that is the transaction of a sandbox. */
    private readonly around?: Transaction
  ) {
    this.base = outer?.base ?? kind
  }

  get options(): PlainOptions {
    return this.settings
  }

  /**
   * Replaces options by those of a part. This is possible before anything of the transaction was
   * sent.
   */
  raise(more: PlainOptions): void {
    const given = Object.fromEntries(Object.entries(more).filter(([_, value]) => value !== undefined))
    this.settings = { ...this.settings, ...given }
    const { around, kind, origin, settings } = this
    this.level.settings =
      around === undefined ? transactionSettings(origin, kind, settings) : savepointSettings(around, settings)
    const { sandboxed } = this.level
    if (sandboxed !== undefined) sandboxed.refused = isolationRefusal(origin, this.outer, settings)
  }

  /** The time since its beginning, in ms. */
  get age(): number {
    return clock.now() - this.startedAt
  }

  /** True if the server refuses writes in it. */
  get readOnly(): boolean {
    return this.level.readOnly
  }

  /** True if its COMMIT may store something. */
  get stores(): boolean {
    return this.level.touched && !this.level.readOnly
  }

  /** The failures of statements that may have undone the transaction. */
  get failures(): ReadonlyArray<StatementFailure> {
    const { failedBy, connectionHolder } = this.level
    return failedBy === undefined ? connectionHolder.failures : [failedBy, ...connectionHolder.failures]
  }

  addHook(hook: Hook): void {
    if (this.hooks === undefined) this.hooks = [hook]
    else this.hooks.push(hook)
  }

  /** Removes the hooks of some kinds and returns them, in the order of their registration. */
  takeHooks(...kinds: ReadonlyArray<HookKind>): ReadonlyArray<Hook> {
    if (this.hooks === undefined) return none
    const taken = this.hooks.filter((hook) => kinds.includes(hook.kind))
    this.hooks = this.hooks.filter((hook) => !kinds.includes(hook.kind))
    return taken
  }

  /** Passes its hooks to the transaction around it, if there is one. */
  passHooksOn(isKept: boolean): void {
    if (this.hooks === undefined || this.outer === undefined) return
    for (const hook of this.hooks) {
      const passed = passedOn(hook, isKept)
      if (passed !== undefined) this.outer.addHook(passed)
    }
    this.hooks = undefined
  }

  get hasHooks(): boolean {
    return this.hooks !== undefined && this.hooks.length > 0
  }
}

/**
 * Begins a transaction, or a savepoint in a sandbox. Nothing is sent, and no connection checked
 * out, before its first statement.
 */
export const begin = (
  origin: Origin,
  kind: Role,
  provider: ConnectionProvider,
  requested: PlainOptions,
  ambient: TransactionContext | undefined
): Transaction => {
  // in a sandbox the transaction of a reader stays writable, and each of its statements has a
  // read-only savepoint instead, because statements of a writer may run between them, as they may
  // outside of a sandbox
  if (origin.sandbox !== undefined)
    return nest(origin, ambient?.around(origin) ?? origin.sandbox, kind, undefined, requested)
  const options = withTimeouts(kind === "reader" ? { ...requested, access: "read only" } : requested, origin.timeouts)
  const level = new Level(new ConnectionHolder(provider), undefined, transactionSettings(origin, kind, options))
  return new Transaction(origin, kind, level, undefined, options)
}

/** Returns the settings of a transaction, with the steps that begin it. */
const transactionSettings = (origin: Origin, kind: Role, options: PlainOptions): LevelSettings => {
  const readOnly = options.access === "read only"
  const plain = options.isolation === undefined && options.access === undefined && options.deferrable === undefined
  const steps =
    plain &&
    options.statementTimeout === undefined &&
    options.lockTimeout === undefined &&
    options.applicationName === undefined
      ? plainBegin
      : beginSql(options).map(wire.step)
  const limited = origin.timeouts === undefined ? steps : [...steps, ...idleTimeout(origin.timeouts)]
  // before its first query the program could make the transaction writable again
  const begin = kind === "reader" ? [...limited, wire.constantStep("SELECT 1")] : limited
  return { begin, restore: none, readOnly, limit: options.statementTimeout }
}

/** Returns options with the timeouts of the database, unless they have their own. */
const withTimeouts = (options: PlainOptions, timeouts: Timeouts | undefined): PlainOptions =>
  timeouts === undefined
    ? options
    : {
        ...options,
        statementTimeout: options.statementTimeout ?? timeouts.statementTimeout,
        lockTimeout: options.lockTimeout ?? timeouts.lockTimeout
      }

const idleTimeout = ({ idleInTransactionTimeout }: Timeouts): ReadonlyArray<wire.Step> =>
  setLocal({ idleInTransactionTimeout }).map(wire.constantStep)

/**
 * Begins a savepoint inside of a transaction. `outer` is the transaction of the program around it,
 * if there is one.
 */
export const nest = (
  origin: Origin,
  around: Transaction,
  kind: Role,
  outer: Transaction | undefined,
  options: PlainOptions
): Transaction => {
  const effective = {
    ...options,
    applicationName: options.applicationName ?? around.options.applicationName,
    lockTimeout: options.lockTimeout ?? around.options.lockTimeout,
    statementTimeout: options.statementTimeout ?? around.options.statementTimeout
  }
  const level = new Level(around.level.connectionHolder, around.level, savepointSettings(around, options))
  if (origin.sandbox !== undefined) {
    const place = around === origin.sandbox ? "emulated" : outer === undefined ? "independent" : "part"
    level.sandboxed = new SandboxedLevel(place, around.level.sandboxed)
    level.sandboxed.refused = isolationRefusal(origin, outer, options)
  }
  return new Transaction(origin, kind, level, outer, effective, around)
}

/**
 * Returns the failure of a transaction of a program in a sandbox, if it requires a higher isolation
 * than that of the sandbox: a savepoint cannot have an isolation of its own.
 */
const isolationRefusal = (
  { database, sandbox }: Origin,
  outer: Transaction | undefined,
  { isolation }: PlainOptions
): PlainFailure<"QueryFailed"> | undefined => {
  const own = sandbox?.options.isolation ?? "read committed"
  if (sandbox === undefined || outer !== undefined || !isHigher(isolation, own)) return undefined
  const cause = new Error(
    `a transaction is "${isolation}" and the sandbox "${own}": use TestDatabase.layer(Db, { isolation: "${isolation}" }), or TestDatabase.layerTemplate`
  )
  return { _tag: "QueryFailed", database, server: "", cause }
}

/** Returns the settings of a savepoint, and the steps that restore those around it. */
const savepointSettings = (around: Transaction, options: PlainOptions): LevelSettings => {
  const limits = limitsSql(options)
  const readOnly = options.access === "read only" || around.readOnly
  const set = options.access === "read only" ? ["SET LOCAL transaction_read_only = on", ...limits] : limits
  const restore = limits.length === 0 ? none : [...limitsSql(around.options), ...unset(options, around.options)]
  return {
    begin: set.map(wire.step),
    restore: restore.map(wire.step),
    readOnly,
    limit: options.statementTimeout ?? around.options.statementTimeout
  }
}

const unset = (inner: PlainOptions, outer: PlainOptions): ReadonlyArray<string> => {
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
