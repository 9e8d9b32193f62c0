/**
 * The end of several transactions in two phases: all but one are prepared, the COMMIT of the last one
 * decides by its marker, and then the others follow the decision.
 *
 * A process may be killed at every step. The recovery of each database finds what is still prepared,
 * and asks the deciding database for the marker. Without it, the unit is undone and cannot commit any
 * more.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { ConfigInvalid, OptionsConflict, type TransactionError } from "../../DatabaseError.js"
import type { Restore } from "../edge/cancellable.js"
import { CommitMarker } from "../outcome/commitMarker.js"
import { type DatabaseIdentity, gidOf } from "../outcome/preparedTransactionCommands.js"
import { runAfterHooks } from "../transaction/afterHooks.js"
import { commitUninterruptibly, isSavepoint, rollbackAll, sendCommit } from "../transaction/completion.js"
import { interruptedTimeout } from "../transaction/levelPrepare.js"
import { beginUnit } from "../transaction/preparedTransactionRecovery.js"
import type { Transaction } from "../transaction/transaction.js"
import {
  endPrepared,
  identify,
  leavePrepared,
  type PreparableTransaction,
  preparable,
  prepare
} from "../transaction/twoPhaseEffects.js"

/** Transaction that is prepared, or to be prepared, with its name. */
interface Participant extends PreparableTransaction {
  readonly gid: string
  isPrepared: boolean
}

type End = Effect.Effect<void, TransactionError>

/** Returns the transactions that must end together, or the reason why they cannot. */
const preparables = (
  storing: ReadonlyArray<Transaction>,
  around: ReadonlyArray<Transaction>
): ReadonlyArray<PreparableTransaction> | OptionsConflict | ConfigInvalid => {
  const all: Array<PreparableTransaction> = []
  const outside = around[0] ?? storing.find(isSavepoint)
  if (outside !== undefined) {
    const outer = "a transaction around the unit, which ends later"
    const { database } = outside.origin
    return new OptionsConflict({ database, server: "", option: "atomic", outer, inner: "twoPhase" })
  }
  for (const transaction of storing) {
    const { database } = transaction.origin
    const found = preparable(transaction)
    if (found === undefined) {
      const expected = 'true, with outcome: "marker", on each database of a unit with atomic: "twoPhase"'
      return new ConfigInvalid({ database, setting: "twoPhase", given: "false", expected })
    }
    all.push(found)
  }
  return all
}

/**
 * Identifies all databases, which also starts their recovery. Each is awaited, because a transaction is
 * locked meanwhile.
 */
const identifyAll = (
  decider: PreparableTransaction,
  others: ReadonlyArray<PreparableTransaction>
): Effect.Effect<DatabaseIdentity, TransactionError> =>
  Effect.flatMap(
    Effect.zip(
      Effect.exit(identify(decider)),
      Effect.forEach(others, (one) => Effect.exit(identify(one)), { concurrency: "unbounded" }),
      { concurrent: true }
    ),
    ([identity, rest]) => rest.find(Exit.isFailure) ?? identity
  )

/** Prepares all participants at the same time. A failure of one leaves the others prepared. */
const prepareAll = (participants: ReadonlyArray<Participant>): End =>
  Effect.flatMap(
    Effect.forEach(
      participants,
      (participant) =>
        Effect.exit(
          prepare(participant.transaction, participant.gid, () => {
            participant.isPrepared = true
          })
        ),
      { concurrency: "unbounded" }
    ),
    (exits) => exits.find(Exit.isFailure) ?? Effect.void
  )

const endAll = (participants: ReadonlyArray<Participant>, decision: "commit" | "rollback", timeout?: number) =>
  Effect.suspend(() =>
    Effect.forEach(
      participants.filter(({ isPrepared }) => isPrepared),
      (participant) => endPrepared(participant, participant.gid, decision, timeout ?? participant.prepared.timeout),
      { concurrency: "unbounded", discard: true }
    )
  )

/**
 * Rolls back the transactions that a lost PREPARE may have left, which would hold their locks until
 * the recovery. If the server is still at the PREPARE, this comes too early, and the recovery ends
 * the transaction.
 */
const endLost = (participants: ReadonlyArray<Participant>) =>
  Effect.suspend(() =>
    Effect.forEach(
      participants.filter(
        ({ isPrepared, transaction }) => !isPrepared && transaction.level.connectionHolder.lost !== undefined
      ),
      ({ gid, prepared }) =>
        Effect.async<void>((resume) => {
          prepared.end(gid, "rollback", interruptedTimeout, undefined, () => resume(Effect.void))
        }),
      { concurrency: "unbounded", discard: true }
    )
  )

/**
 * Commits transactions in two phases, if several of them store work; `undefined` if the end needs only
 * one phase.
 */
export const commitTwoPhase = (
  transactions: ReadonlyArray<Transaction>,
  /** The transactions around the unit in which the unit has written. */
  around: ReadonlyArray<Transaction>,
  restore: Restore | undefined
): End | undefined => {
  const storing = transactions.filter((transaction) => transaction.stores)
  const origins = new Set([...storing, ...around].map(({ origin }) => origin))
  // a sandbox stores nothing
  if (origins.size < 2 || storing.some(({ origin }) => origin.sandbox !== undefined)) return undefined
  // a nested part ends with the unit around it
  if (around.length === 0 && storing.every(isSavepoint)) return undefined
  const all = preparables(storing, around)
  const undo = (cause: Cause.Cause<TransactionError>, participants: ReadonlyArray<Participant>): End => {
    const isInterrupted = Cause.isInterrupted(cause)
    const ended = Effect.zipRight(
      endAll(participants, "rollback", isInterrupted ? interruptedTimeout : undefined),
      endLost(participants)
    )
    const rolledBack = Effect.suspend(() => {
      const isCommitted = ({ level }: Transaction) => level.state === "committed"
      const committed = transactions.filter(isCommitted)
      const rest = transactions.filter((transaction) => !isCommitted(transaction))
      return rollbackAll(rest, isInterrupted ? undefined : restore, committed)
    })
    return Effect.zipRight(Effect.zipRight(ended, rolledBack), Effect.failCause(cause))
  }
  if (!("length" in all)) return undo(Cause.fail(all), [])
  const decider = all[all.length - 1]
  if (decider === undefined) return undefined
  const { transaction: deciding } = decider
  const commit = (transaction: Transaction) =>
    restore === undefined ? commitUninterruptibly(transaction) : sendCommit(transaction, restore)
  const within = <A>(effect: Effect.Effect<A, TransactionError>) => (restore === undefined ? effect : restore(effect))
  return Effect.matchCauseEffect(within(identifyAll(decider, all.slice(0, -1))), {
    onFailure: (cause) => undo(cause, []),
    onSuccess: (identity) => {
      const marker = new CommitMarker(false, true)
      deciding.level.connectionHolder.decision = marker
      const participants = all.slice(0, -1).map((one, i): Participant => {
        return { ...one, gid: gidOf(identity.key, marker.id, i), isPrepared: false }
      })
      const others = transactions.filter((transaction) => !storing.includes(transaction))
      const decided = (interruption: Cause.Cause<TransactionError> | undefined): End => {
        if (interruption === undefined) {
          return Effect.matchCauseEffect(within(endAll(participants, "commit")), {
            onSuccess: () => runAfterHooks(transactions, restore),
            onFailure: (cause) => Effect.zipRight(runAfterHooks(transactions, undefined), Effect.failCause(cause))
          })
        }
        const ended = endAll(participants, "commit", interruptedTimeout)
        const hooks = runAfterHooks(transactions, undefined)
        return Effect.zipRight(Effect.zipRight(ended, hooks), Effect.failCause(interruption))
      }
      const undecided = (cause: Cause.Cause<TransactionError>): End => {
        for (const participant of participants) leavePrepared(participant)
        // for their hooks, the outcome is that of the unit
        for (const { level } of others) level.state = "unknown"
        return Effect.zipRight(runAfterHooks(transactions, undefined), Effect.failCause(cause))
      }
      const decide = Effect.suspend(() =>
        Effect.matchCauseEffect(commit(deciding), {
          onSuccess: () => decided(undefined),
          onFailure: (cause) => {
            const { state } = deciding.level
            if (state === "committed") return decided(cause)
            return state === "unknown" ? undecided(cause) : undo(cause, participants)
          }
        })
      )
      // the transactions that store nothing are committed first: after the decision, a failure of
      // theirs could not undo the others any more
      const first = Effect.zipRight(Effect.forEach(others, commit, { discard: true }), within(prepareAll(participants)))
      const ended = Effect.matchCauseEffect(first, {
        onFailure: (cause) => undo(cause, participants),
        onSuccess: () => decide
      })
      return Effect.ensuring(ended, Effect.sync(beginUnit(marker.id)))
    }
  })
}
