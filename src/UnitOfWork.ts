/**
 * The open transactions of a piece of work: one lazy one per database touched, ended together.
 *
 * @since 0.1.0
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberRef from "effect/FiberRef"
import { dual } from "effect/Function"
import type * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import {
  type ConfigInvalid,
  type DatabaseError,
  OptionsConflict,
  PropagationRefused,
  TransactionBusy,
  TransactionEnded,
  type TransactionError
} from "./DatabaseError.js"
import type { KnownNames } from "./internal/config/knownNames.js"
import { unknownOption } from "./internal/config/unknownOption.js"
import type { Restore } from "./internal/edge/cancellable.js"
import { type CallSite, callSiteOfPart } from "./internal/observability/callSite.js"
import type { Describe, WorkLabel } from "./internal/statement/workLabel.js"
import { rollbackAll } from "./internal/transaction/completion.js"
import { currentContext, type TransactionContext } from "./internal/transaction/context.js"
import { slotOf, withoutSlot } from "./internal/transaction/contextSlot.js"
import type { PartName } from "./internal/transaction/joinedPart.js"
import { retryRefused } from "./internal/transaction/propagation.js"
import type { Origin, Transaction } from "./internal/transaction/transaction.js"
import { mergeSettings, type UnitOptions, type UnitSettings } from "./internal/transaction/unitOptions.js"
import { runAsPart } from "./internal/transaction/withTransaction.js"
import { finish } from "./internal/unitOfWork/commitAll.js"
import { NestedUnit } from "./internal/unitOfWork/nested.js"
import { unknownOfSettings } from "./internal/unitOfWork/optionNames.js"
import { retryUnit } from "./internal/unitOfWork/retry.js"
import { joinableUnitOf, type Order, Unit, type UnitOutcome, unitOf } from "./internal/unitOfWork/unitOfWork.js"

/**
 * @since 0.1.0
 * @category models
 */
export type Outcome = "commit" | "rollback"

export type {
  /**
   * How the transactions of a unit are to be. What is left out is the server's default.
   *
   * @since 0.1.0
   * @category models
   */
  UnitSettings,
  /**
   * What a piece of work is for, as those hear of it who look at the database from outside.
   *
   * @since 0.1.0
   * @category models
   */
  WorkLabel
}

/**
 * The class of a named database, as far as a unit of work needs to know it.
 *
 * @since 0.1.0
 * @category models
 */
export interface Named {
  readonly databaseName: string
}

/**
 * Settings for the transactions of one database; made by {@link on}.
 *
 * @since 0.1.0
 * @category models
 */
export interface DatabaseSettings {
  readonly database: string
  readonly settings: UnitSettings
}

/**
 * @since 0.1.0
 * @category models
 */
export interface Options<A, E> {
  /** How the unit ends. Default: a success commits, a failure, a defect or an interruption rolls back. */
  readonly outcome?: ((exit: Exit.Exit<A, E>) => Outcome) | undefined
  /** For the transactions of all databases. */
  readonly transaction?: UnitSettings | undefined
  /** For those of single ones, before what is said for all. */
  readonly databases?: ReadonlyArray<DatabaseSettings> | undefined
  /**
   * The order of commits, where there are several: `"safest"` (default) has what is least likely to fail last, that is, serializable
   * transactions first and read-only ones last, else as they were touched; `"touched"`; or the databases in their order, others after them.
   */
  readonly order?: "safest" | "touched" | ReadonlyArray<Named> | undefined
  /**
   * Whether, where several databases are to be committed, all but the first check their deferred constraints before any COMMIT, at the
   * same time and in one round trip. What is found then undoes all, where it would have been a `PartialCommit`. Default `true`.
   */
  readonly checkFirst?: boolean | undefined
  /**
   * Runs the whole unit again, from its start, where all of it is undone for certain and may go better. `true` follows the `RetryPolicy`.
   * What its statements have failed with decides, also where the work has made an error of its own, a defect or a rollback of that; an
   * interrupted one is not run again. A part that joins asks it of the whole, and where that cannot be run again it fails with
   * `OptionsConflict`. Not where a part is stored already, by `Db.commit` or in another database, nor where one is done in a transaction that is open around
   * it. Default `false`.
   */
  readonly retry?: boolean | Schedule.Schedule<unknown, DatabaseError> | undefined
  /** What it is for, in observations, in `status`, in `pg_stat_activity` and in the text of statements. */
  readonly work?: WorkLabel | undefined
}

/**
 * Options that are no effect. A pipe that is given a function itself, and not what its call gives, is told to call it.
 *
 * @since 0.2.0
 * @category models
 */
export interface Called<Name extends string> {
  readonly [Effect.EffectTypeId]?: `In a pipe it has to be called: ${Name}`
}

/**
 * Settings for the transactions of one database of a unit.
 *
 * @example
 * import { Effect } from "effect"
 * import { Database, UnitOfWork } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 * class Audit extends Database.Service<Audit>()("audit") {}
 *
 * declare const work: Effect.Effect<void, never, Db | Audit>
 *
 * export const program = UnitOfWork.run(work, {
 *   databases: [UnitOfWork.on(Db, { isolation: "serializable" }), UnitOfWork.on(Audit, { statementTimeout: "1 second" })],
 *   order: [Audit, Db]
 * })
 *
 * @since 0.1.0
 * @category constructors
 */
export const on = ({ databaseName }: Named, settings: UnitSettings): DatabaseSettings => ({
  database: databaseName,
  settings
})

/**
 * An open unit of work, for those who end it by something else than an effect's exit.
 *
 * @internal
 */
export interface Handle {
  readonly unit: Unit
  readonly hasEnded: boolean
  /** Whether it was ended by a rollback that was asked for. */
  readonly isRolledBack: boolean
  /** Ends it at once where nothing was done in it; tells whether it has ended now. */
  readonly endUntouched: () => boolean
  /** Ends it, once. `restore` is for a caller who can be interrupted and has not been. */
  readonly end: (outcome: Outcome, restore: Restore | undefined) => Effect.Effect<void, TransactionError>
}

/** @internal What a unit is opened with. */
export interface Opening {
  /** What is there around it. */
  readonly around: TransactionContext | undefined
  /** Whether it sees the transactions that are open around it. */
  readonly joins: boolean
  readonly rules: UnitOptions | undefined
  readonly ending: UnitOutcome
  readonly describe: Describe | undefined
  /** Its name as a part of the transactions that are open around it. */
  readonly name?: PartName | undefined
}

/** @internal */
export const open = ({ around, describe, ending, joins, name, rules }: Opening): Handle =>
  new OpenUnit(new Unit(joins ? around : undefined, joins ? undefined : around, rules, ending, describe, name))

class OpenUnit implements Handle {
  protected ended = false
  isRolledBack = false

  constructor(readonly unit: Unit) {}

  get hasEnded(): boolean {
    return this.ended
  }

  end(outcome: Outcome, restore: Restore | undefined): Effect.Effect<void, TransactionError> {
    return Effect.suspend(() => {
      if (this.endUntouched()) return Effect.void
      const { unit } = this
      // a fork is at its end before the whole is at its own: what its hooks may veto must not be committed beneath them, and nobody is to be
      // told of a success while it may still fail
      if (outcome === "commit" && unit.isEnding) {
        if (restore === undefined) return this.end("rollback", undefined)
        return Effect.matchCauseEffect(restore(unit.settled), {
          onFailure: (cause) => Effect.zipRight(this.end("rollback", undefined), Effect.failCause(cause)),
          onSuccess: () => this.end(outcome, restore)
        })
      }
      this.ended = true
      this.isRolledBack = outcome === "rollback"
      const close = () => unit.end()
      let all: ReadonlyArray<Transaction>
      try {
        // one that has nothing but hooks is begun here, and what it is asked to be may be impossible
        all = unit.all
      } catch (defect) {
        close()
        return Effect.zipRight(rollbackAll(unit.begun, restore), Effect.die(defect))
      }
      if (outcome === "commit") {
        const committed = finish(
          { unit, ambient: unit, all: () => unit.all, isEarly: false, close },
          unit.ending,
          restore
        )
        // a hook may invalidate something, too
        if (!unit.hasPending && !all.some((transaction) => transaction.hasHooks)) return committed
        return Effect.onExit(committed, (exit) =>
          Effect.sync(() => {
            if (Exit.isSuccess(exit) || unit.keepsPart) unit.stored(false)
          })
        )
      }
      close()
      const undone = rollbackAll(all, restore)
      // what was committed before is stored all the same
      return unit.hasPending && unit.keepsPart
        ? Effect.ensuring(
            undone,
            Effect.sync(() => unit.stored(false))
          )
        : undone
    })
  }

  endUntouched(): boolean {
    if (this.ended) return true
    if (!this.unit.isUntouched) return false
    this.ended = true
    this.unit.end()
    return true
  }
}

/** A nested part, which leaves its hooks and its turn to the unit or transaction around it. */
class OpenNested extends OpenUnit {
  constructor(override readonly unit: NestedUnit) {
    super(unit)
  }

  override end(outcome: Outcome, restore: Restore | undefined): Effect.Effect<void, TransactionError> {
    return Effect.suspend(() => {
      const { unit } = this
      unit.holdHooks()
      return Effect.onExit(super.end(outcome, restore), (exit) =>
        Effect.sync(() => {
          const isKept = outcome === "commit" && Exit.isSuccess(exit)
          unit.passHooksOn(isKept)
          // a kept part belongs to the part around it, which has to know before the next one has its turn
          if (isKept) unit.noteKept()
          unit.leave()
        })
      )
    })
  }
}

/** @internal The rules that options ask for, if any. */
export const rulesOf = ({
  databases,
  transaction = {}
}: Pick<Options<never, never>, "databases" | "transaction">): UnitOptions | undefined =>
  Object.keys(transaction).length === 0 && databases === undefined
    ? undefined
    : {
        all: transaction,
        databases: new Map(databases?.map(({ database, settings }) => [database, mergeSettings(transaction, settings)]))
      }

/** @internal How a unit ends by its options; that of a request does not wait for forks. */
export const endingOf = (
  { checkFirst, order }: Pick<Options<never, never>, "checkFirst" | "order">,
  isRequest = false
): UnitOutcome => ({
  order: orderOf(order ?? "safest"),
  checked: checkFirst ?? true,
  leavesForks: isRequest
})

const orderOf = (order: "safest" | "touched" | ReadonlyArray<Named>): Order =>
  typeof order === "string" ? order : order.map((_) => _.databaseName)

/** How a unit is to end; a fault in the function that says so rolls back, and is seen. */
const decide = <A, E>(options: Options<A, E>, exit: Exit.Exit<A, E>): Exit.Exit<Outcome> => {
  try {
    return Exit.succeed(options.outcome?.(exit) ?? (Exit.isSuccess(exit) ? "commit" : "rollback"))
  } catch (defect) {
    return Exit.die(defect)
  }
}

/** Returns the failure of an exit, if it is one. */
const causeOf = (exit: Exit.Exit<unknown, unknown>): unknown =>
  Exit.isFailure(exit) ? Cause.squash(exit.cause) : undefined

const runIn = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  handle: Handle,
  options: Options<A, E>
): Effect.Effect<A, E | TransactionError, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.withFiberRuntime((fiber) => {
      const outside = fiber.currentContext
      const inside = Context.add(outside, TransactionConnection, slotOf(outside, handle.unit))
      return Effect.zipRight(
        FiberRef.set(FiberRef.currentContext, inside),
        Effect.flatMap(Effect.exit(restore(self)), (exit) => {
          const outcome = decide(options, exit)
          const gone = Exit.isFailure(exit) && Cause.isInterrupted(exit.cause)
          const decided = Exit.isSuccess(outcome) ? outcome.value : "rollback"
          if (decided === "rollback") handle.unit.undoJoined(causeOf(Exit.isFailure(exit) ? exit : outcome))
          const end = handle.end(decided, gone ? undefined : restore)
          return Effect.flatMap(Effect.exit(Effect.zipRight(end, outcome)), (ended) => {
            const result: Exit.Exit<A, E | TransactionError> = Exit.isSuccess(ended)
              ? exit
              : Exit.failCause(Exit.isSuccess(exit) ? ended.cause : Cause.sequential(exit.cause, ended.cause))
            return Effect.zipRight(FiberRef.set(FiberRef.currentContext, outside), result)
          })
        })
      )
    })
  )

const begin = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  around: TransactionContext | undefined,
  joins: boolean,
  options: Options<A, E>,
  describe: Describe | undefined,
  site: CallSite | undefined,
  isRequest = false
): Effect.Effect<A, E | TransactionError, R> => {
  const { retry } = options
  const rules = rulesOf(options)
  const conflict = joins ? demandAround(around, rules) : undefined
  if (conflict !== undefined) return Effect.fail(conflict)
  const opening: Opening = {
    around,
    joins,
    rules,
    ending: endingOf(options, isRequest),
    describe,
    name: { label: options.work?.label, site }
  }
  const once = (handle: Handle) => runIn(self, handle, options)
  const canRunAgain = !isRequest || (retry !== undefined && retry !== false)
  const fresh = () => {
    const handle = open(opening)
    handle.unit.canRunAgain = canRunAgain
    return handle
  }
  if (retry !== undefined && retry !== false)
    return Effect.uninterruptibleMask((restore) => retryUnit(restore, fresh, once, retry))
  // interruptible, a handler of causes would take from that of an interruption what has failed beside it
  return Effect.uninterruptibleMask((restore) => {
    const handle = fresh()
    return Effect.catchAllCause(restore(once(handle)), (cause) => {
      const { unit } = handle
      return unit.askedRetry === undefined
        ? Effect.failCause(cause)
        : retryUnit(restore, fresh, once, unit.askedRetry, { cause, opened: handle })
    })
  })
}

const nestedOptions: KnownNames<NestedOptions<unknown, unknown>> = { outcome: true, work: true }

const allOptions: KnownNames<Options<unknown, unknown>> = {
  ...nestedOptions,
  transaction: true,
  databases: true,
  order: true,
  checkFirst: true,
  retry: true
}

/** Returns the refusal of options with a name that is not known. */
const unknownOf = <A, E>(options: Options<A, E>): ConfigInvalid | undefined =>
  unknownOption("", options, allOptions) ?? unknownOfSettings(options)

const told = ({ work }: Pick<Options<never, never>, "work">): Describe | undefined =>
  work === undefined ? undefined : () => work

/**
 * Has a unit take what a part asks for that joins it; where that is refused, nothing of it is taken.
 *
 * @internal
 */
export const demand = (
  ambient: TransactionContext,
  unit: Unit,
  rules: UnitOptions | undefined,
  { checkFirst, order, retry = false }: Pick<Options<never, never>, "checkFirst" | "order" | "retry">
): OptionsConflict | undefined => {
  const takeRules = rules === undefined ? undefined : ambient.demand(rules, true)
  if (takeRules instanceof OptionsConflict) return takeRules
  const takeEnding = unit.demandEnding(order === undefined ? undefined : orderOf(order), checkFirst)
  if (takeEnding instanceof OptionsConflict) return takeEnding
  if (retry !== false && !ambient.takeRetry(undefined, retry)) return retryRefused(unit.begun[0]?.origin.database ?? "")
  takeRules?.()
  takeEnding()
  return undefined
}

/**
 * Has the transactions that are open around a unit of work, and that it joins, take what it asks for.
 *
 * @internal
 */
export const demandAround = (
  around: TransactionContext | undefined,
  rules: UnitOptions | undefined
): OptionsConflict | undefined => {
  const take = rules === undefined ? undefined : around?.demand(rules, true)
  if (take instanceof OptionsConflict) return take
  take?.()
  return undefined
}

/** A part of a unit of work: its end is left to the whole, but what it asks for must be so. */
const join = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  ambient: TransactionContext,
  unit: Unit,
  options: Options<A, E>,
  name: PartName,
  describe: Describe | undefined
): Effect.Effect<A, E | OptionsConflict, R> => {
  const conflict = demand(ambient, unit, rulesOf(options), options)
  if (conflict !== undefined) return Effect.fail(conflict)
  return runAsPart(self, ambient, name, { describe }, (exit) => decide(options, exit))
}

/**
 * Runs an effect as one unit of work: each database touched inside gets one transaction, begun with its first write; at the end all
 * commit, or all roll back. Inside of another unit it joins that one; a transaction that is open around it, it joins, too, and leaves its
 * end to it.
 *
 * Commits are one after the other, after a check of all: see {@link Options}. If a later one fails after an earlier one has committed, the
 * failure is `PartialCommit`.
 *
 * @example
 * import { Effect } from "effect"
 * import { Database, UnitOfWork } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 * class Audit extends Database.Service<Audit>()("audit") {}
 *
 * export const add = UnitOfWork.run(
 *   Effect.gen(function*() {
 *     const sql = yield* Db.writer
 *     const log = yield* Audit.writer
 *     yield* sql`INSERT INTO todo (title) VALUES ('milk')`
 *     yield* log`INSERT INTO event (what) VALUES ('todo.added')`
 *   })
 * )
 *
 * @since 0.1.0
 * @category combinators
 */
export const run: {
  // the last one is what a pipe looks at, which so refuses it where it is not called, and says how to
  <A, E, R>(self: Effect.Effect<A, E, R>, options?: Options<A, E>): Effect.Effect<A, E | TransactionError, R>
  <A, E>(
    options?: Options<A, E> & Called<"UnitOfWork.run()">
  ): <R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | TransactionError, R>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(self: Effect.Effect<A, E, R>, options: Options<A, E> = {}): Effect.Effect<A, E | TransactionError, R> => {
    const label = options.work?.label
    const site = callSiteOfPart(label)
    return Effect.withFiberRuntime((fiber) => {
      const unknown = unknownOf(options)
      if (unknown !== undefined) return Effect.fail(unknown)
      const ambient = currentContext(fiber)
      const unit = joinableUnitOf(ambient)
      return ambient === undefined || unit === undefined
        ? begin(self, ambient, true, options, told(options), site)
        : join(self, ambient, unit, options, { label, site }, told(options))
    })
  }
)

/**
 * The same for a request, which is described when its first statement runs.
 *
 * @internal
 */
export const runDescribed = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  options: Options<A, E>,
  describe: Describe
): Effect.Effect<A, E | TransactionError, R> =>
  Effect.withFiberRuntime((fiber) => {
    const unknown = unknownOfSettings(options)
    if (unknown !== undefined) return Effect.fail(unknown)
    const ambient = currentContext(fiber)
    const unit = joinableUnitOf(ambient)
    return ambient === undefined || unit === undefined
      ? begin(self, ambient, true, options, describe, undefined, true)
      : join(self, ambient, unit, options, { label: describe(fiber)?.label, site: undefined }, describe)
  })

/**
 * Runs an effect as a unit of work of its own, also inside of another one: neither sees the other's transactions.
 *
 * @since 0.1.0
 * @category combinators
 */
export const runNew: {
  // the last one is what a pipe looks at, which so refuses it where it is not called, and says how to
  <A, E, R>(self: Effect.Effect<A, E, R>, options?: Options<A, E>): Effect.Effect<A, E | TransactionError, R>
  <A, E>(
    options?: Options<A, E> & Called<"UnitOfWork.runNew()">
  ): <R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | TransactionError, R>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(self: Effect.Effect<A, E, R>, options: Options<A, E> = {}): Effect.Effect<A, E | TransactionError, R> =>
    Effect.withFiberRuntime((fiber) => {
      const unknown = unknownOf(options)
      if (unknown !== undefined) return Effect.fail(unknown)
      return begin(self, currentContext(fiber), false, options, told(options), undefined)
    })
)

/**
 * Options of {@link nested}.
 *
 * @since 0.2.0
 * @category models
 */
export interface NestedOptions<A, E> extends Pick<Options<A, E>, "outcome" | "work"> {}

/**
 * Runs an effect as a part of a unit of work, or of a transaction, that fails alone: what it has done is undone on every database, by
 * savepoints, and the whole goes on. A part that succeeds is kept, and stored with the whole.
 *
 * A savepoint is set in the exchange of the first statement on its database; a part without statements costs nothing. Where an undone part
 * was the first to touch a database, its transaction is as if it had not been begun. Parts that run side by side take turns, each from its
 * first statement to its end, so one must not wait for another: after `acquireTimeout` that is `TransactionBusy`. Hooks of an undone part
 * are dropped, but for `afterRollback`. Only its end ends it: `commit` and `rollback` in it are `PropagationRefused`. Outside of all it is a
 * unit of its own, as {@link run}.
 *
 * @see {@link run} for a part whose failure is the failure of the whole.
 *
 * @example
 * import { Effect } from "effect"
 * import { Database, UnitOfWork } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 * class Audit extends Database.Service<Audit>()("audit") {}
 *
 * const bonus = Effect.gen(function*() {
 *   const sql = yield* Db.writer
 *   yield* sql`INSERT INTO bonus (account) VALUES (1)`
 *   const log = yield* Audit.writer
 *   yield* log`INSERT INTO event (what) VALUES ('bonus')`
 * })
 *
 * // a customer without a bonus is a customer all the same
 * export const register = Effect.gen(function*() {
 *   const sql = yield* Db.writer
 *   yield* sql`INSERT INTO account (id) VALUES (1)`
 *   yield* Effect.ignore(UnitOfWork.nested(bonus))
 * }).pipe(UnitOfWork.run())
 *
 * @since 0.2.0
 * @category combinators
 */
export const nested: {
  // the last one is what a pipe looks at, which so refuses it where it is not called, and says how to
  <A, E, R>(self: Effect.Effect<A, E, R>, options?: NestedOptions<A, E>): Effect.Effect<A, E | TransactionError, R>
  <A, E>(
    options?: NestedOptions<A, E> & Called<"UnitOfWork.nested()">
  ): <R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | TransactionError, R>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(
    self: Effect.Effect<A, E, R>,
    options: NestedOptions<A, E> = {}
  ): Effect.Effect<A, E | TransactionError, R> => {
    const label = options.work?.label
    const site = callSiteOfPart(label)
    return Effect.withFiberRuntime((fiber) => {
      const unknown = unknownOption("", options, nestedOptions)
      if (unknown !== undefined) return Effect.fail(unknown)
      const ambient = currentContext(fiber)
      if (ambient === undefined) return begin(self, ambient, true, options, told(options), site)
      // a savepoint that fails after another was released would leave a half, so all are looked at first
      const ending = { ...(unitOf(ambient)?.ending ?? endingOf({})), checked: true }
      const unit = new NestedUnit(fiber, ambient, ending, told(options), { label, site })
      return runIn(self, new OpenNested(unit), options)
    })
  }
)

/**
 * Runs an effect outside of every unit of work and every transaction, of all databases. What is forked in a unit and outlives it belongs
 * in here, or in {@link runNew}: to what is left of an ended unit it would be `TransactionEnded`.
 *
 * @example
 * import { Effect } from "effect"
 * import { Database, UnitOfWork } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * declare const sendMail: Effect.Effect<void, never, Db>
 *
 * export const inBackground = Effect.forkDaemon(UnitOfWork.outside(sendMail))
 *
 * @since 0.1.0
 * @category combinators
 */
export const outside = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.mapInputContext(self, withoutSlot<R>)

/**
 * A stream with all that it needs from here, outside of every unit of work: for the body of a response, which is read after the unit's end.
 *
 * @example
 * import { HttpServerResponse } from "@effect/platform"
 * import { Effect, Stream } from "effect"
 * import { Database, UnitOfWork } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const lines = Stream.unwrap(Effect.map(Db.reader, (sql) => sql<{ title: string }>`SELECT title FROM todo`.stream)).pipe(
 *   Stream.map(({ title }) => `${title}\n`),
 *   Stream.encodeText
 * )
 *
 * export const handler = Effect.map(UnitOfWork.detach(lines), (body) => HttpServerResponse.stream(body))
 *
 * @since 0.1.0
 * @category combinators
 */
export const detach = <A, E, R>(self: Stream.Stream<A, E, R>): Effect.Effect<Stream.Stream<A, E>, never, R> =>
  Effect.map(Effect.context<R>(), (context) => {
    // a context that is given to a stream, or to an effect, is added to that of its reader, who may be in a unit of work
    const outside = withoutSlot(context)
    const pull = Effect.mapInputContext(Stream.toPull(self), (reader: Context.Context<Scope.Scope>) =>
      Context.add(outside, Scope.Scope, Context.get(reader, Scope.Scope))
    )
    return Stream.fromPull(
      Effect.map(
        pull,
        Effect.mapInputContext(() => outside)
      )
    )
  })

const none: ReadonlyArray<never> = []

/** Which transactions of a unit of work are meant; or why they cannot be ended from here. */
type Choose = (ambient: TransactionContext, unit: Unit) => ReadonlyArray<Transaction> | PropagationRefused

const nowhere: Pick<Origin, "database"> = { database: "" }

const refuse = ({ database }: Pick<Origin, "database">, propagation: Outcome): PropagationRefused =>
  new PropagationRefused({ database, server: "", propagation })

/**
 * Ends transactions of the current unit of work, of one database or of all; the unit goes on. Without a unit only `byHand` finds what is open,
 * and is not to be ended.
 */
const endSome = (
  outcome: Outcome,
  database: Pick<Origin, "database"> | undefined,
  choose: Choose,
  byHand: (ambient: TransactionContext) => Transaction | undefined
): Effect.Effect<void, TransactionError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.withFiberRuntime((fiber) => {
      const ambient = currentContext(fiber)
      if (ambient === undefined) return Effect.void
      const unit = unitOf(ambient)
      if (unit === undefined) {
        const open = byHand(ambient)
        return open === undefined ? Effect.void : Effect.fail(refuse(open.origin, outcome))
      }
      if (unit.isNested) return Effect.fail(refuse(database ?? unit.begun[0]?.origin ?? nowhere, outcome))
      const chosen = choose(ambient, unit)
      if (chosen instanceof PropagationRefused) return Effect.fail(chosen)
      const [first] = chosen
      if (first === undefined) {
        if (outcome === "rollback") unit.dropPending()
        return Effect.void
      }
      const { place } = first.level.link
      // they are being ended with the unit, or were
      if (unit.hasEnded) return Effect.fail(new TransactionEnded(place))
      // somebody else, or whoever calls the hook that this comes from, is ending them
      if (outcome === "commit" && unit.isEndOf(chosen)) return Effect.fail(new TransactionBusy({ ...place, waited: 0 }))
      if (outcome === "rollback") {
        for (const transaction of chosen) unit.forget(transaction)
        unit.dropPending()
        return rollbackAll(chosen, restore)
      }
      const close = (all: ReadonlyArray<Transaction>) => {
        for (const transaction of all) unit.forget(transaction)
      }
      const all = () => {
        const now = choose(ambient, unit)
        return now instanceof PropagationRefused ? chosen : now
      }
      return Effect.tap(finish({ unit, ambient, all, isEarly: true, close }, unit.ending, restore), () =>
        Effect.sync(() => unit.stored(true))
      )
    })
  )

/** Commits, or rolls back, what the current unit of work has begun so far on every database; the next statement begins another. */
const endAll = (outcome: Outcome): Effect.Effect<void, TransactionError> =>
  endSome(
    outcome,
    undefined,
    (ambient, unit) => {
      const { transaction } = ambient
      if (transaction !== undefined) return refuse(transaction.origin, outcome)
      // work that was sent outside on purpose is not meant
      return unit.all.filter((own) => ambient.find(own.origin, "writer") === own)
    },
    (ambient) => ambient.transaction
  )

/**
 * Commits what the unit of work has done so far, on every database; the next statement on each begins another transaction. Without a unit
 * there is nothing to commit. In a transaction that was begun by hand it fails with `PropagationRefused`.
 *
 * @since 0.1.0
 * @category combinators
 */
export const commit: Effect.Effect<void, TransactionError> = endAll("commit")

/**
 * Rolls back what the unit of work has done so far, on every database; the next statement on each begins another transaction. Without a
 * unit there is nothing to roll back. In a transaction that was begun by hand it fails with `PropagationRefused`.
 *
 * @since 0.1.0
 * @category combinators
 */
export const rollback: Effect.Effect<void, TransactionError> = endAll("rollback")

/**
 * Ends the transaction that the unit of work has open on one database; the next statement begins another.
 *
 * @internal
 */
export const endEarly = (origin: Origin, outcome: Outcome): Effect.Effect<void, TransactionError> =>
  endSome(
    outcome,
    origin,
    (ambient, unit) => {
      const found = ambient.find(origin, "writer")
      if (found === "none") return none
      const own = unit.own(origin)
      if (found !== undefined && found !== own) return refuse(origin, outcome)
      return own === undefined ? none : [own]
    },
    (ambient) => (ambient.find(origin, "writer") === "none" ? undefined : ambient.around(origin))
  )
