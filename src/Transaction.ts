/**
 * BEGIN to COMMIT on one database: options, nesting, outcome, hooks.
 *
 * @since 0.1.0
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FiberRef from "effect/FiberRef"
import type * as Schedule from "effect/Schedule"
import {
  CommitVetoed,
  type DatabaseError,
  OptionsConflict,
  PropagationRefused,
  TransactionBusy,
  type TransactionError
} from "./DatabaseError.js"
import { cancellable } from "./internal/cancellable.js"
import { type Carrier, currentCarrier, type Kind, OutsideCarrier, TransactionCarrier } from "./internal/carrier.js"
import { after, type Hook, type HookKind } from "./internal/hooks.js"
import { type Limits, setLocal } from "./internal/limits.js"
import { type Lender, Link } from "./internal/link.js"
import { Level } from "./internal/session.js"
import * as wire from "./internal/wire.js"
import { nameSql } from "./internal/work.js"
import { Observation, type Observer } from "./Observation.js"
import type { Policy } from "./RetryPolicy.js"

/**
 * @since 0.1.0
 * @category models
 */
export type Isolation = "read committed" | "repeatable read" | "serializable"

/**
 * @since 0.1.0
 * @category models
 */
export type Access = "read write" | "read only"

/**
 * What happens where there is a transaction of the same database already, or none.
 *
 * - `nested` (default): a savepoint inside; without one a new transaction.
 * - `required`: joins it; without one a new transaction.
 * - `requiresNew`: a new transaction, on a connection of its own.
 * - `mandatory`: joins it; without one `PropagationRefused`.
 * - `supports`: joins it; without one no transaction.
 * - `notSupported`: outside of it.
 * - `never`: without a transaction; inside of one `PropagationRefused`.
 *
 * @since 0.1.0
 * @category models
 */
export type Propagation = "nested" | "required" | "requiresNew" | "mandatory" | "supports" | "notSupported" | "never"

/**
 * How a transaction is to be. What is left out is the server's default.
 *
 * @since 0.1.0
 * @category models
 */
export interface Options {
  readonly isolation?: Isolation | undefined
  readonly access?: Access | undefined
  /** Waits for a snapshot that needs no checks; for `serializable` and `read only`. */
  readonly deferrable?: boolean | undefined
  /** Default `"nested"`. */
  readonly propagation?: Propagation | undefined
  /** For every statement inside. */
  readonly statementTimeout?: Duration.DurationInput | undefined
  /** For every lock inside. */
  readonly lockTimeout?: Duration.DurationInput | undefined
  /**
   * Runs the whole again, from its start, where it is undone for certain and may go better: after a serialization failure, a deadlock or
   * a lost connection. `true` follows the `RetryPolicy`. Only the outermost transaction is run again, for failures of its own database;
   * what it has done elsewhere, another database's own transactions among it, is done again. Default `false`.
   */
  readonly retry?: boolean | Schedule.Schedule<unknown, DatabaseError> | undefined
  /** A name for observations and spans. */
  readonly label?: string | undefined
  /** What `pg_stat_activity` and the server's log call the session while it lasts. Printable ASCII, at most 63 characters. */
  readonly applicationName?: string | undefined
}

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
  /** @internal Takes one more attempt of a whole from what is allowed in all, and tells of it. */
  readonly takeReplay: (policy: Policy, attempt: number, message: string) => boolean
}

/**
 * The commands that begin a transaction.
 *
 * @since 0.1.0
 * @category sql
 */
export const beginSql = (options: Options): ReadonlyArray<string> => {
  const begin = [
    "BEGIN",
    options.isolation === undefined ? "" : `ISOLATION LEVEL ${options.isolation.toUpperCase()}`,
    options.access === undefined ? "" : options.access.toUpperCase(),
    options.deferrable === undefined ? "" : options.deferrable ? "DEFERRABLE" : "NOT DEFERRABLE"
  ]
  return [begin.filter((part) => part !== "").join(" "), ...limitsSql(options)]
}

const limitsSql = (options: Options): ReadonlyArray<string> => {
  const limits = setLocal({
    statementTimeout: millis(options.statementTimeout),
    lockTimeout: millis(options.lockTimeout)
  })
  return options.applicationName === undefined ? limits : [...limits, nameSql(options.applicationName)]
}

const millis = (duration: Duration.DurationInput | undefined): number | undefined =>
  duration === undefined ? undefined : Duration.toMillis(duration)

const limitOf = ({ statementTimeout }: Options): number | undefined =>
  statementTimeout === undefined ? undefined : millis(statementTimeout)

const plainBegin: ReadonlyArray<wire.Step> = [wire.constantStep("BEGIN")]
const none: ReadonlyArray<never> = []

/**
 * An open transaction, or a savepoint inside of one.
 *
 * @since 0.1.0
 * @category models
 */
export class Transaction {
  private hooks: Array<Hook> | undefined = undefined
  private readonly startedAt = performance.now()
  /** Where its outermost transaction is. */
  readonly base: Kind

  constructor(
    readonly origin: Origin,
    readonly kind: Kind,
    /** @internal */ readonly level: Level,
    /** The transaction around it, if this is a savepoint of the application. */
    readonly outer: Transaction | undefined,
    readonly options: Options
  ) {
    this.base = outer?.base ?? kind
  }

  /** When it began, in ms since then. */
  get age(): number {
    return performance.now() - this.startedAt
  }

  /** Whether the server refuses writes in it. */
  get readOnly(): boolean {
    return this.level.readOnly
  }

  /** Whether its COMMIT stores something, for all that is known. */
  get stores(): boolean {
    return this.level.touched && !this.level.readOnly
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
      if (kept) this.outer.addHook(hook)
      else if (hook.kind === "afterRollback" || hook.kind === "afterEnd")
        this.outer.addHook({ ...hook, kind: "afterEnd" })
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
  kind: Kind,
  lender: Lender,
  asked: Options,
  carrier: Carrier | undefined
): Transaction => {
  // in a sandbox it is each of a reader's statements that is fenced in: a writer's may be among them, as it may be outside of a sandbox
  if (origin.sandbox !== undefined)
    return nest(origin, carrier?.around(origin) ?? origin.sandbox, kind, undefined, asked)
  const options = withLimits(kind === "reader" ? { ...asked, access: "read only" } : asked, origin.limits)
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
  const all = kind === "reader" ? [...limited, wire.constantStep("SELECT 1")] : limited
  const level = new Level(new Link(lender), undefined, all, none, readOnly, limitOf(options))
  return new Transaction(origin, kind, level, undefined, options)
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
  kind: Kind,
  outer: Transaction | undefined,
  options: Options
): Transaction => {
  const limits = limitsSql(options)
  const readOnly = options.access === "read only" || around.readOnly
  const set = options.access === "read only" ? ["SET LOCAL transaction_read_only = on", ...limits] : limits
  const restore = limits.length === 0 ? none : [...limitsSql(around.options), ...unset(options, around.options)]
  const { applicationName, lockTimeout, statementTimeout } = around.options
  const effective = { applicationName, lockTimeout, statementTimeout, ...options }
  const level = new Level(
    around.level.link,
    around.level,
    set.map(wire.step),
    restore.map(wire.step),
    readOnly,
    limitOf(effective)
  )
  return new Transaction(origin, kind, level, outer, effective)
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

/**
 * Runs an effect with a carrier in the transaction slot.
 *
 * @internal
 */
export const provideCarrier = <A, E, R>(self: Effect.Effect<A, E, R>, carrier: Carrier): Effect.Effect<A, E, R> =>
  Effect.withFiberRuntime((fiber) =>
    Effect.locally(
      self,
      FiberRef.currentContext,
      Context.add(fiber.currentContext, TransactionConnection, carrier.slot)
    )
  )

/**
 * Runs an effect in a transaction and ends it by how the effect ended. `wrap` says how the transaction's own failures are to look.
 *
 * What is open for as long as a transaction is waits in closures, not in object literals, for the reason that `cancellable` gives.
 *
 * @internal
 */
export const run = <A, E, R, X>(
  self: Effect.Effect<A, E, R>,
  carrier: Carrier | undefined,
  transaction: Transaction,
  wrap: (error: TransactionError) => X
): Effect.Effect<A, E | X, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.withFiberRuntime((fiber) => {
      const outside = fiber.currentContext
      const inside = new TransactionCarrier(carrier, transaction)
      const leave = FiberRef.set(FiberRef.currentContext, outside)
      return Effect.zipRight(
        FiberRef.set(FiberRef.currentContext, Context.add(outside, TransactionConnection, inside.slot)),
        Effect.flatMap(
          Effect.catchAllCause(restore(self), (cause) =>
            Effect.zipRight(
              leave,
              Effect.zipRight(
                undo(transaction, Cause.isInterrupted(cause) ? undefined : restore),
                Effect.failCause<E | X>(cause)
              )
            )
          ),
          (value) => {
            const kept = Effect.as(Effect.zipRight(leave, keep(transaction, restore, wrap)), value)
            if (!transaction.hasHooks) return kept
            const agreed = Effect.mapError(
              veto(() => [transaction], inside, restore),
              wrap
            )
            return Effect.zipRight(
              Effect.onError(agreed, () => leave),
              kept
            )
          }
        )
      )
    })
  )

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

/** @internal Commits and runs the hooks; where it cannot be committed, undoes it. */
export const keep = <X>(
  transaction: Transaction,
  restore: Restore,
  wrap: (error: TransactionError) => X
): Effect.Effect<void, X> =>
  Effect.flatMap(
    Effect.catchAllCause(restore(commit(transaction)), (cause) =>
      Effect.zipRight(
        undo(transaction, Cause.isInterrupted(cause) ? undefined : restore),
        Effect.failCause(Cause.map(cause, wrap))
      )
    ),
    () => (transaction.hasHooks ? after(transaction, restore) : Effect.void)
  )

/**
 * Sends COMMIT, or RELEASE. An interruption after it was sent waits for the answer, within a second.
 *
 * @internal
 */
export const commit = (transaction: Transaction): Effect.Effect<void, TransactionError> =>
  cancellable((resume) => {
    const { level } = transaction
    const giveUp = level.commit((error) => {
      observe(transaction)
      resume(error === undefined ? Effect.void : Effect.fail(error))
    })
    return () => Effect.async<void>((settled) => giveUp(() => settled(Effect.void)))
  })

/**
 * Has the server check now what it would check at COMMIT. A transaction that it knows nothing of passes.
 *
 * @internal
 */
export const check = (transaction: Transaction): Effect.Effect<void, TransactionError> =>
  Effect.async((resume) => {
    const giveUp = transaction.level.check((error) => resume(error === undefined ? Effect.void : Effect.fail(error)))
    return Effect.sync(giveUp)
  })

/**
 * Commits for a caller who is not there any more, within a second: it cannot be interrupted, and it does not wait for a turn.
 *
 * @internal
 */
export const commitSoon = (transaction: Transaction): Effect.Effect<void, TransactionError> =>
  Effect.async((resume) => {
    const { level } = transaction
    const giveUp = level.commit((error) => {
      observe(transaction)
      resume(error === undefined ? Effect.void : Effect.fail(error))
    })
    giveUp(() => {
      if (level.state === "open") resume(Effect.fail(new TransactionBusy({ ...level.link.place, waited: 0 })))
    })
  })

/**
 * Rolls back what is still open and runs the hooks of its end, interruptibly where `restore` is given.
 *
 * @internal
 */
export const undo = (transaction: Transaction, restore: Restore | undefined): Effect.Effect<void> =>
  Effect.suspend(() => {
    const { level } = transaction
    const rolledBack =
      level.state !== "open"
        ? Effect.void
        : Effect.async<void>((resume) =>
            level.rollback(
              () => {
                observe(transaction)
                resume(Effect.void)
              },
              restore === undefined ? "hurried" : "usual"
            )
          )
    return transaction.hasHooks ? Effect.zipRight(rolledBack, after(transaction, restore)) : rolledBack
  })

const outcomes = {
  open: "failed",
  committed: "committed",
  rolledBack: "rolledBack",
  failed: "failed",
  unknown: "unknown"
} as const

const observe = (transaction: Transaction): void => {
  const { kind: _, level, options, origin } = transaction
  if (!origin.observer.active || level.parent !== undefined) return
  const { database, server } = level.link.place
  origin.observer.observe(
    Observation.TransactionEnded({
      database,
      server,
      outcome: outcomes[level.state],
      label: options.label,
      took: transaction.age
    })
  )
}

/**
 * Runs the `beforeCommit` hooks, and those that they register, also on databases that they are the first to touch. Where one fails all
 * is undone.
 *
 * @internal
 */
export const veto = (
  open: () => ReadonlyArray<Transaction>,
  carrier: Carrier,
  restore: Restore | undefined
): Effect.Effect<void, TransactionError> =>
  Effect.suspend(() => {
    const hooks = open().flatMap((transaction) =>
      transaction.outer === undefined
        ? transaction.takeHooks("beforeCommit").map((hook) => ({ hook, transaction }))
        : []
    )
    if (hooks.length === 0) return Effect.void
    const all = Effect.forEach(
      hooks,
      ({ hook, transaction }) =>
        Effect.catchAllCause(
          restore === undefined ? hook.run(carrier.slot) : restore(hook.run(carrier.slot)),
          (cause) =>
            Cause.isInterruptedOnly(cause)
              ? Effect.interrupt
              : Effect.fail(new CommitVetoed({ ...transaction.level.link.place, cause: Cause.squash(cause) }))
        ),
      { discard: true }
    )
    return Effect.matchCauseEffect(all, {
      onFailure: (cause) =>
        Effect.zipRight(
          Effect.suspend(() => {
            const heard = Cause.isInterrupted(cause) ? undefined : restore
            return Effect.forEach(open(), (_) => undo(_, heard), { discard: true, concurrency: "unbounded" })
          }),
          Effect.failCause(cause)
        ),
      onSuccess: () => veto(open, carrier, restore)
    })
  })

const effective = { isolation: "read committed", access: "read write" } as const

/** @internal Why a transaction is not as somebody asks who is to join it. */
export const conflict = (outer: Transaction, options: Options): OptionsConflict | undefined => {
  for (const option of ["isolation", "access"] as const) {
    const inner = options[option]
    const around = outer.options[option] ?? effective[option]
    if (inner !== undefined && inner !== around) {
      return new OptionsConflict({ database: outer.origin.database, server: "", option, outer: around, inner })
    }
  }
  return undefined
}

/** @internal What to do for a `withTransaction`. */
export type Plan =
  | { readonly _tag: "join" }
  | { readonly _tag: "outside" }
  | { readonly _tag: "begin" }
  | { readonly _tag: "nest"; readonly outer: Transaction }
  | { readonly _tag: "refuse"; readonly error: TransactionError }

const join: Plan = { _tag: "join" }
const outside: Plan = { _tag: "outside" }
const fresh: Plan = { _tag: "begin" }

/**
 * What a propagation means here: a pure choice.
 *
 * @internal
 */
export const plan = (origin: Origin, current: Transaction | undefined, options: Options): Plan => {
  const propagation = options.propagation ?? "nested"
  if (current === undefined) {
    if (propagation === "mandatory") return refuse(origin, "mandatory")
    return propagation === "supports" || propagation === "notSupported" || propagation === "never" ? outside : fresh
  }
  switch (propagation) {
    case "never":
      return refuse(origin, "never")
    case "notSupported":
      return outside
    case "requiresNew":
      return fresh
    default: {
      const error = conflict(current, options)
      if (error !== undefined) return { _tag: "refuse", error }
      return propagation === "nested" ? { _tag: "nest", outer: current } : join
    }
  }
}

const refuse = (origin: Origin, propagation: PropagationRefused["propagation"]): Plan => ({
  _tag: "refuse",
  error: new PropagationRefused({ database: origin.database, server: "", propagation })
})

/**
 * Runs an effect outside of every transaction of one database.
 *
 * @internal
 */
export const independent = <A, E, R>(self: Effect.Effect<A, E, R>, origin: Origin): Effect.Effect<A, E, R> =>
  Effect.withFiberRuntime((fiber) => {
    const carrier = currentCarrier(fiber)
    return carrier === undefined ? self : provideCarrier(self, new OutsideCarrier(carrier, origin))
  })
