/**
 * COMMIT and ROLLBACK by hand: they end transactions of the unit of work around, which stays open.
 */
import * as Effect from "effect/Effect"
import { PropagationRefused, TransactionBusy, TransactionEnded, type TransactionError } from "../../DatabaseError.js"
import { rollbackAll } from "../transaction/completion.js"
import { currentContext, type TransactionContext } from "../transaction/context.js"
import type { Origin, Transaction } from "../transaction/transaction.js"
import { finish } from "./commitAll.js"
import type { Outcome } from "./options.js"
import type { Unit } from "./unit.js"
import { unitOf } from "./unitOf.js"

const none: ReadonlyArray<never> = []
const nowhere: Pick<Origin, "database"> = { database: "" }

/** Selection of the transactions to end. */
interface Selection {
  /** The database whose transaction is to end; `undefined` means all databases. */
  readonly database: Pick<Origin, "database"> | undefined
  /**
   * Returns the transactions to end, or the error if they cannot be ended here. Transactions that
   * have nothing but hooks begin before.
   */
  readonly take: (context: TransactionContext, unit: Unit) => ReadonlyArray<Transaction> | PropagationRefused
  /**
   * Returns the transaction that is open without a unit, if there is one. It cannot be ended by
   * hand.
   */
  readonly withoutUnit: (context: TransactionContext) => Transaction | undefined
}

const refuse = ({ database }: Pick<Origin, "database">, propagation: Outcome): PropagationRefused =>
  new PropagationRefused({ database, server: "", propagation })

const endSelected = (
  outcome: Outcome,
  { database, take, withoutUnit }: Selection
): Effect.Effect<void, TransactionError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.withFiberRuntime((fiber) => {
      const context = currentContext(fiber)
      if (context === undefined) return Effect.void
      const unit = unitOf(context)
      if (unit === undefined) {
        const open = withoutUnit(context)
        return open === undefined ? Effect.void : Effect.fail(refuse(open.origin, outcome))
      }
      if (unit.isNested) return Effect.fail(refuse(database ?? unit.begun[0]?.origin ?? nowhere, outcome))
      const selected = take(context, unit)
      if (selected instanceof PropagationRefused) return Effect.fail(selected)
      const [first] = selected
      if (first === undefined) {
        if (outcome === "rollback") unit.dropPending()
        return Effect.void
      }
      const { location } = first.level.connectionHolder
      const otherEnd = (): Effect.Effect<never, TransactionError> | undefined => {
        // the transactions end with the unit, or have ended with it
        if (unit.hasEnded) return Effect.fail(new TransactionEnded(location))
        // another fiber is ending the transactions, or this code runs in a hook of their end
        return outcome === "commit" && unit.isEndOf(selected)
          ? Effect.fail(new TransactionBusy({ ...location, waitedMillis: 0 }))
          : undefined
      }
      const close = (all: ReadonlyArray<Transaction>) => {
        for (const transaction of all) unit.forget(transaction)
      }
      if (outcome === "rollback") {
        const other = otherEnd()
        if (other !== undefined) return other
        close(selected)
        unit.dropPending()
        return rollbackAll(selected, restore)
      }
      const beginAll = () => {
        const now = take(context, unit)
        return now instanceof PropagationRefused ? selected : now
      }
      return Effect.tap(
        finish({ unit, context, beginAll, isEarly: true, otherEnd, close }, unit.commitOptions, restore),
        () => Effect.sync(() => unit.stored(true))
      )
    })
  )

/**
 * Ends the transactions of all databases of the unit of work. The next statement on a database
 * begins another transaction.
 */
export const endAll = (outcome: Outcome): Effect.Effect<void, TransactionError> =>
  endSelected(outcome, {
    database: undefined,
    take: (context, unit) => {
      const { transaction } = context
      if (transaction !== undefined) return refuse(transaction.origin, outcome)
      // a database is left out if this code runs outside of its transaction
      return unit.beginAll().filter((own) => context.find(own.origin) === own)
    },
    withoutUnit: (context) => context.transaction
  })

/**
 * Ends the transaction of the unit of work on one database. The next statement on the database
 * begins another transaction.
 */
export const endEarly = (origin: Origin, outcome: Outcome): Effect.Effect<void, TransactionError> =>
  endSelected(outcome, {
    database: origin,
    take: (context, unit) => {
      const found = context.find(origin)
      if (found === "none") return none
      const own = unit.beginOwn(origin)
      if (found !== undefined && found !== own) return refuse(origin, outcome)
      return own === undefined ? none : [own]
    },
    withoutUnit: (context) => (context.find(origin) === "none" ? undefined : context.around(origin))
  })
