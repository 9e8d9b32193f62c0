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
import type { Connection } from "./Connection.js"
import { PartialCommit, PropagationRefused, type TransactionError } from "./DatabaseError.js"
import { Carrier, currentCarrier, type Kind, type Memory } from "./internal/carrier.js"
import { after, commit, commitSoon, type Origin, type Transaction, undo, veto } from "./Transaction.js"

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

  override held(origin: Origin): ReadonlyArray<Connection> {
    const own = this.transactions.get(origin)?.level.held ?? []
    return [...own, ...super.held(origin), ...(this.behind?.held(origin) ?? [])]
  }

  override memory(origin: Origin): Memory {
    let known = this.memories.get(origin)
    if (known === undefined) {
      known = { reader: undefined, written: false }
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

  owns(transaction: Transaction): boolean {
    return this.transactions.get(transaction.origin) === transaction
  }

  forget(transaction: Transaction): void {
    this.transactions.delete(transaction.origin)
    if (transaction.level.touched) this.memory(transaction.origin).written = true
  }
}

type Restore = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>

const undoAll = (transactions: ReadonlyArray<Transaction>, restore: Restore | undefined): Effect.Effect<void> =>
  Effect.forEach(transactions, (transaction) => undo(transaction, restore), {
    discard: true,
    concurrency: "unbounded"
  })

const names = (transactions: ReadonlyArray<Transaction>) => transactions.map((_) => _.origin.database)

/** Says what is stored, where some databases have committed before one did not. */
const partial = (
  committed: ReadonlyArray<Transaction>,
  failed: Transaction,
  rest: ReadonlyArray<Transaction>,
  cause: Cause.Cause<TransactionError>
): Cause.Cause<TransactionError> => {
  const stored = committed.filter((_) => _.level.touched)
  if (stored.length === 0) return cause
  const error = Cause.failureOption(cause)
  return Cause.fail(
    new PartialCommit({
      ...failed.level.link.place,
      ...(error._tag === "None" ? {} : { cause: error.value }),
      committed: names(stored),
      failed: failed.origin.database,
      outcome: failed.level.state === "unknown" ? "unknown" : "rolledBack",
      rolledBack: names(rest)
    })
  )
}

/**
 * Commits one after the other; a failure rolls the rest back and says what is stored already. An interruption is heard only before the
 * first is committed: after that the rest follow, within a second each, so that nobody leaves a half behind by going away.
 */
const commitAll = (
  transactions: ReadonlyArray<Transaction>,
  restore: Restore | undefined
): Effect.Effect<void, TransactionError> => {
  const step = (i: number, gone: Cause.Cause<TransactionError> | undefined): Effect.Effect<void, TransactionError> => {
    const transaction = transactions[i]
    if (transaction === undefined) {
      const hooks = Effect.forEach(transactions, (_) => after(_, gone === undefined ? restore : undefined), {
        discard: true
      })
      return gone === undefined ? hooks : Effect.zipRight(hooks, Effect.failCause(gone))
    }
    const soon = restore === undefined || gone !== undefined
    return Effect.matchCauseEffect(soon ? commitSoon(transaction) : restore(commit(transaction)), {
      onSuccess: () => step(i + 1, gone),
      onFailure: (cause) => {
        const { state } = transaction.level
        const left = Cause.isInterrupted(cause)
        if (left && state === "committed") return step(i + 1, cause)
        if (left && state === "open" && i > 0 && !soon) return step(i, cause)
        const rest = transactions.slice(i)
        const failure = partial(transactions.slice(0, i), transaction, rest.slice(1), cause)
        const undone = undoAll(rest, left || gone !== undefined ? undefined : restore)
        return Effect.zipRight(undone, Effect.failCause(failure))
      }
    })
  }
  return Effect.suspend(() => step(0, undefined))
}

/** What is to be committed together. */
interface Whole {
  readonly carrier: Carrier
  readonly all: () => ReadonlyArray<Transaction>
  /** Called when all hooks have agreed: from now on nothing may be begun in it. */
  readonly close: () => void
}

/** Runs the hooks that may veto, which may touch further databases, then commits all. */
const finish = ({ all, carrier, close }: Whole, restore: Restore | undefined) => {
  const commits = Effect.suspend(() => {
    close()
    return commitAll(all(), restore)
  })
  return Effect.suspend(() =>
    all().some((transaction) => transaction.hasHooks) ? Effect.zipRight(veto(all, carrier, restore), commits) : commits
  )
}

/**
 * An open unit of work, for those who end it by something else than an effect's exit.
 *
 * @internal
 */
export interface Handle {
  readonly carrier: Carrier
  readonly hasEnded: () => boolean
  /** Ends it, once. `restore` is for a caller who can be interrupted and has not been. */
  readonly end: (outcome: Outcome, restore: Restore | undefined) => Effect.Effect<void, TransactionError>
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
        const close = () => unit.end()
        if (outcome === "commit") {
          return Effect.ensuring(finish({ carrier: unit, all: () => unit.all, close }, restore), Effect.sync(close))
        }
        close()
        return undoAll(unit.all, restore)
      })
  }
}

/** How a unit is to end; a fault in the function that says so rolls back, and is seen. */
const decide = <A, E>(options: Options<A, E>, exit: Exit.Exit<A, E>): Exit.Exit<Outcome> => {
  try {
    return Exit.succeed(options.outcome?.(exit) ?? (Exit.isSuccess(exit) ? "commit" : "rollback"))
  } catch (defect) {
    return Exit.die(defect)
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
          const outcome = decide(options, exit)
          const gone = Exit.isFailure(exit) && Cause.isInterrupted(exit.cause)
          const end = unit.end(Exit.isSuccess(outcome) ? outcome.value : "rollback", gone ? undefined : restore)
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

/**
 * Runs an effect as one unit of work: each database touched inside gets one transaction, begun with its first write; at the end all
 * commit, or all roll back. Inside of another unit it joins that one; a transaction that is open around it, it joins, too, and leaves its
 * end to it.
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
      const unit = carrier?.unit
      if (carrier === undefined || !(unit instanceof Unit) || !unit.owns(found)) {
        return Effect.fail(new PropagationRefused({ database: origin.database, server: "", propagation: outcome }))
      }
      const close = () => unit.forget(found)
      if (outcome === "commit") {
        return Effect.ensuring(finish({ carrier, all: () => [found], close }, restore), Effect.sync(close))
      }
      close()
      return undo(found, restore)
    })
  )
