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
import { PartialCommit, PropagationRefused, type TransactionError } from "./DatabaseError.js"
import { Carrier, currentCarrier, type Kind, type Memory } from "./internal/carrier.js"
import { after, commit, type Origin, type Transaction, undo, veto } from "./Transaction.js"

/**
 * @since 0.1.0
 * @category models
 */
export type Outcome = "commit" | "rollback"

/**
 * @since 0.1.0
 * @category models
 */
export interface Options<A, E> {
  /** How the unit ends. Default: a success commits, a failure, a defect or an interruption rolls back. */
  readonly outcome?: ((exit: Exit.Exit<A, E>) => Outcome) | undefined
}

class Unit extends Carrier {
  private readonly transactions = new Map<Origin, Transaction>()
  private readonly memories = new Map<Origin, Memory>()
  private ended = false

  constructor(
    parent: Carrier | undefined,
    /** What was there before, where this unit does not see it. */
    private readonly behind: Carrier | undefined
  ) {
    super(parent, "of a unit of work")
  }

  override get unit(): Unit {
    return this
  }

  override around(origin: Origin): Transaction | undefined {
    return this.transactions.get(origin) ?? super.around(origin) ?? this.behind?.around(origin)
  }

  override find(origin: Origin, kind: Kind): Transaction | "none" | undefined {
    const own = kind === "writer" ? this.transactions.get(origin) : undefined
    return own ?? super.find(origin, kind)
  }

  override open(origin: Origin, begin: () => Transaction): Transaction {
    const transaction = begin()
    // a fiber that outlives the unit must not begin what nobody will end
    if (this.ended) transaction.level.rollback(() => {})
    else this.transactions.set(origin, transaction)
    return transaction
  }

  override memory(origin: Origin): Memory {
    let known = this.memories.get(origin)
    if (known === undefined) {
      known = { reader: undefined }
      this.memories.set(origin, known)
    }
    return known
  }

  /** The transactions, in the order in which they were begun. */
  get all(): ReadonlyArray<Transaction> {
    return [...this.transactions.values()]
  }

  /** From now on nothing can be begun in it. */
  end(): void {
    this.ended = true
  }

  forget(transaction: Transaction): boolean {
    return this.transactions.get(transaction.origin) === transaction && this.transactions.delete(transaction.origin)
  }
}

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

const undoAll = (transactions: ReadonlyArray<Transaction>): Effect.Effect<void> =>
  Effect.forEach(transactions, undo, { discard: true, concurrency: "unbounded" })

const afterAll = (transactions: ReadonlyArray<Transaction>): Effect.Effect<void> =>
  Effect.forEach(transactions, after, { discard: true })

/** Commits one after the other; a failure rolls the rest back and says what is stored already. */
const commitAll = (
  transactions: ReadonlyArray<Transaction>,
  restore: Restore
): Effect.Effect<void, TransactionError> => {
  const step = (i: number): Effect.Effect<void, TransactionError> => {
    const transaction = transactions[i]
    if (transaction === undefined) return afterAll(transactions)
    return Effect.matchCauseEffect(restore(commit(transaction)), {
      onSuccess: () => step(i + 1),
      onFailure: (cause) => {
        const names = (some: ReadonlyArray<Transaction>) => some.map((_) => _.origin.database)
        const committed = transactions.slice(0, i).filter((_) => _.level.touched)
        const rest = transactions.slice(i)
        const failure = Cause.failureOption(cause)
        const error =
          committed.length === 0 || failure._tag === "None"
            ? Effect.failCause(cause)
            : Effect.fail(
                new PartialCommit({
                  ...transaction.level.link.place,
                  cause: failure.value,
                  committed: names(committed),
                  failed: transaction.origin.database,
                  rolledBack: names(transactions.slice(i + 1))
                })
              )
        return Effect.zipRight(undoAll(rest), error)
      }
    })
  }
  return Effect.suspend(() => step(0))
}

/** Runs the hooks that may veto, which may touch further databases, then commits all. */
const finish = (unit: { readonly all: ReadonlyArray<Transaction> }, restore: Restore) =>
  Effect.suspend(() =>
    unit.all.some((transaction) => transaction.hasHooks)
      ? Effect.zipRight(
          veto(() => unit.all, restore),
          Effect.suspend(() => commitAll(unit.all, restore))
        )
      : commitAll(unit.all, restore)
  )

/**
 * An open unit of work, for those who end it by something else than an effect's exit.
 *
 * @internal
 */
export interface Handle {
  readonly carrier: Carrier
  readonly hasEnded: () => boolean
  /** Ends it, once. */
  readonly end: (outcome: Outcome, restore: Restore) => Effect.Effect<void, TransactionError>
}

/**
 * Opens a unit of work. With `joins` it sees the transactions that are open around it.
 *
 * @internal
 */
export const open = (carrier: Carrier | undefined, joins: boolean): Handle => {
  const unit = joins ? new Unit(carrier, undefined) : new Unit(undefined, carrier)
  let ending = false
  return {
    carrier: unit,
    hasEnded: () => ending,
    end: (outcome, restore) =>
      Effect.suspend(() => {
        if (ending) return Effect.void
        ending = true
        const ended = outcome === "commit" ? finish(unit, restore) : undoAll(unit.all)
        return Effect.ensuring(
          ended,
          Effect.sync(() => unit.end())
        )
      })
  }
}

const runIn = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  carrier: Carrier | undefined,
  joins: boolean,
  options: Options<A, E>
): Effect.Effect<A, E | TransactionError, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.withFiberRuntime((fiber) => {
      const outside = fiber.currentContext
      const unit = open(carrier, joins)
      const inside = Context.add(outside, TransactionConnection, unit.carrier.slot)
      return Effect.zipRight(
        FiberRef.set(FiberRef.currentContext, inside),
        Effect.flatMap(Effect.exit(restore(self)), (exit) => {
          const outcome = options.outcome?.(exit) ?? (Exit.isSuccess(exit) ? "commit" : "rollback")
          return Effect.flatMap(Effect.exit(unit.end(outcome, restore)), (ended) => {
            const result: Exit.Exit<A, E | TransactionError> = Exit.isSuccess(ended)
              ? exit
              : Exit.failCause(Exit.isSuccess(exit) ? ended.cause : Cause.sequential(exit.cause, ended.cause))
            return Effect.zipRight(FiberRef.set(FiberRef.currentContext, outside), result)
          })
        })
      )
    })
  )

/**
 * Runs an effect as one unit of work: each database touched inside gets one transaction, begun with its first write; at the end all
 * commit, or all roll back. Inside of another unit it joins that one.
 *
 * Commits are one after the other, in the order in which the databases were touched: if a later one fails after an earlier one has
 * committed, the failure is `PartialCommit`.
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
  <A, E>(options?: Options<A, E>): <R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | TransactionError, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, options?: Options<A, E>): Effect.Effect<A, E | TransactionError, R>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(self: Effect.Effect<A, E, R>, options: Options<A, E> = {}): Effect.Effect<A, E | TransactionError, R> =>
    Effect.withFiberRuntime((fiber) => {
      const carrier = currentCarrier(fiber)
      return carrier?.unit === undefined ? runIn(self, carrier, true, options) : self
    })
)

/**
 * Runs an effect as a unit of work of its own, also inside of another one: neither sees the other's transactions.
 *
 * @since 0.1.0
 * @category combinators
 */
export const runNew: {
  <A, E>(options?: Options<A, E>): <R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | TransactionError, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, options?: Options<A, E>): Effect.Effect<A, E | TransactionError, R>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(self: Effect.Effect<A, E, R>, options: Options<A, E> = {}): Effect.Effect<A, E | TransactionError, R> =>
    Effect.withFiberRuntime((fiber) => runIn(self, currentCarrier(fiber), false, options))
)

/**
 * Ends the transaction that the unit of work has open on one database; the next statement begins another.
 *
 * @internal
 */
export const endEarly = (origin: Origin, outcome: Outcome): Effect.Effect<void, TransactionError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.withFiberRuntime((fiber) => {
      const carrier = currentCarrier(fiber)
      const found = carrier?.find(origin, "writer")
      if (found === undefined || found === "none") return Effect.void
      if (!(carrier?.unit instanceof Unit && carrier.unit.forget(found))) {
        return Effect.fail(new PropagationRefused({ database: origin.database, server: "", propagation: outcome }))
      }
      return outcome === "commit" ? finish({ all: [found] }, restore) : undo(found)
    })
  )
