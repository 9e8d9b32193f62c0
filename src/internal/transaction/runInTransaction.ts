/**
 * Runs an effect in a transaction, from its beginning to its end, or outside of all transactions.
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberRef from "effect/FiberRef"
import * as Tracer from "effect/Tracer"
import type { TransactionError } from "../../DatabaseError.js"
import type { Describe } from "../statement/workLabel.js"
import { commitAndRunHooks, rollback, runBeforeCommitHooks } from "./completion.js"
import { currentContext, type TransactionContext } from "./context.js"
import { OpenContext } from "./insideContext.js"
import { JoinedPart, PartContext, type PartName } from "./joinedPart.js"
import { OutsideContext } from "./outsideContext.js"
import type { Origin, Transaction } from "./transaction.js"
import { slotOf } from "./transactionSlot.js"

/**
 * Runs an effect in a transaction, and commits it after a success or rolls it back after a failure.
 * `wrap` converts the failures of the transaction itself.
 *
 * Values that live as long as a transaction are closures, not object literals (see "Performance
 * rules" in CONTRIBUTING.md).
 */
export const runInTransaction = <A, E, R, X>(
  self: Effect.Effect<A, E, R>,
  ambient: TransactionContext | undefined,
  transaction: Transaction,
  wrap: (error: TransactionError) => X
): Effect.Effect<A, E | X, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.withFiberRuntime((fiber) => {
      const outside = fiber.currentContext
      const inside = new OpenContext(ambient, transaction)
      const { span } = transaction
      const around = span === undefined ? outside : Context.add(outside, Tracer.ParentSpan, span.span)
      const leave = FiberRef.set(FiberRef.currentContext, outside)
      return Effect.zipRight(
        FiberRef.set(FiberRef.currentContext, Context.add(around, TransactionConnection, slotOf(outside, inside))),
        Effect.flatMap(
          Effect.catchAllCause(restore(self), (cause) =>
            Effect.zipRight(
              leave,
              Effect.zipRight(
                rollback(transaction, Cause.isInterrupted(cause) ? undefined : restore),
                Effect.failCause<E | X>(cause)
              )
            )
          ),
          (value) => {
            const committed = commitAndRunHooks(transaction, restore, wrap)
            const { level, outer } = transaction
            const part = outer === undefined ? undefined : ambient?.part(outer)
            const recorded =
              part === undefined || outer === undefined
                ? committed
                : Effect.zipRight(
                    committed,
                    Effect.sync(() => level.touched && part.recordSent(outer))
                  )
            const kept = Effect.as(Effect.zipRight(leave, recorded), value)
            if (!transaction.hasHooks || level.undone !== undefined) return kept
            const agreed = Effect.mapError(
              runBeforeCommitHooks(() => [transaction], inside, restore),
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

/** The transaction or unit that a part joins, and the labels of the part. */
export interface PartOf {
  /**
   * The database of the transaction that the part joins; without it the part joins a unit of work.
   */
  readonly database?: Origin | undefined
  readonly describe?: Describe | undefined
}

/**
 * Runs an effect as a part of the transaction or unit of work around it. `decide` returns the
 * outcome of the part; if it fails, the part is rolled back. After a rollback, the transaction or
 * unit must end in rollback, too, if the part has sent a writer's statement.
 */
export const runAsPart = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  ambient: TransactionContext,
  name: PartName,
  of: PartOf,
  decide: (exit: Exit.Exit<A, E>) => Exit.Exit<"commit" | "rollback">
): Effect.Effect<A, E, R> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.withFiberRuntime((fiber) => {
      const outside = fiber.currentContext
      const part = new JoinedPart(ambient, name)
      const slot = slotOf(outside, new PartContext(ambient, part, of.database, of.describe))
      return Effect.zipRight(
        FiberRef.set(FiberRef.currentContext, Context.add(outside, TransactionConnection, slot)),
        Effect.flatMap(Effect.exit(restore(self)), (exit) => {
          const outcome = decide(exit)
          const ended = Exit.isSuccess(exit) && Exit.isFailure(outcome) ? Exit.failCause(outcome.cause) : exit
          if (Exit.isFailure(outcome) || outcome.value === "rollback")
            part.undo(Exit.isFailure(ended) ? Cause.squash(ended.cause) : undefined)
          return Effect.zipRight(FiberRef.set(FiberRef.currentContext, outside), ended)
        })
      )
    })
  )

/** Runs an effect outside of every transaction of one database. */
export const runIndependent = <A, E, R>(self: Effect.Effect<A, E, R>, origin: Origin): Effect.Effect<A, E, R> =>
  Effect.withFiberRuntime((fiber) => {
    const ambient = currentContext(fiber)
    if (ambient === undefined) return self
    const slot = slotOf(fiber.currentContext, new OutsideContext(ambient, origin))
    return Effect.locally(self, FiberRef.currentContext, Context.add(fiber.currentContext, TransactionConnection, slot))
  })
