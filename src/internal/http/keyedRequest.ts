/**
 * A request with an idempotency key: the look-up of its key before it runs, and the storage of the
 * key with its work.
 */
import { type SqlClient, TransactionConnection } from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import {
  ConfigInvalid,
  type DatabaseError,
  isDatabaseError,
  OptionsConflict,
  type PartialCommit,
  refine
} from "../../DatabaseError.js"
import { isMissing } from "../../SqlState.js"
import * as UnitOfWork from "../../UnitOfWork.js"
import {
  findText,
  forgetText,
  isKeyTaken,
  keepStep,
  keepText,
  keepValues,
  type RequestKey
} from "../outcome/requestKey.js"
import type { Origin } from "../transaction/transaction.js"
import { slotOf } from "../transaction/transactionSlot.js"
import type { Unit } from "../unitOfWork/unit.js"
import { isSameContent, type KeyOptions, type KeyProblem, otherContent, storedBefore } from "./idempotencyKey.js"
import { decodeAnswer, encodeAnswer, type KeptAnswer, maxBytesOf } from "./keptAnswer.js"

/** Class of a database that stores keys. */
export interface KeyDatabase<Self> extends UnitOfWork.Named, Effect.Effect<OpenedClient, never, Self> {}

interface OpenedClient {
  readonly writer: SqlClient
}

/** Opened database, with the part that no public type has. */
interface Opened extends OpenedClient {
  readonly executor: Origin & { readonly config: { readonly outcome: string } }
}

/** Answer to a request that an earlier one with the same key has stored. */
export type Earlier = { readonly kept: KeptAnswer } | { readonly problem: KeyProblem }

/** Request with a key, before it runs. */
export class KeyedRequest {
  constructor(
    private readonly opened: Opened,
    private readonly key: RequestKey,
    private readonly keepAnswer: KeyOptions<never, never>["keepAnswer"]
  ) {}

  /** The length of the longest body that is kept, in bytes, or `undefined` if no answer is kept. */
  get maxBytes(): number | undefined {
    return maxBytesOf(this.keepAnswer)
  }

  /** Returns the answer that an earlier request with the key has left, if there was one. */
  get earlier(): Effect.Effect<Earlier | undefined, DatabaseError> {
    const { fingerprint, id } = this.key
    const { writer } = this.opened
    const rows = writer.unsafe<{ fingerprint: string; answer: string | null }>(findText, [id]).withoutTransform
    return UnitOfWork.outside(refine(rows)).pipe(
      // the first transaction creates the table
      Effect.catchTag("QueryFailed", (error) =>
        isMissing(error.sqlState ?? "") ? Effect.succeed([]) : Effect.fail(error)
      ),
      Effect.map(([row]) => {
        if (row === undefined) return undefined
        if (!isSameContent(row.fingerprint, fingerprint)) return { problem: otherContent }
        return row.answer === null ? { problem: storedBefore } : { kept: decodeAnswer(row.answer) }
      })
    )
  }

  /**
   * Stores the key with the work of a unit: in the exchange of its COMMIT if that is all that the
   * end of the unit does, else by a statement before the first COMMIT. It fails, now or at COMMIT,
   * if another request has stored the key meanwhile.
   */
  store(unit: Unit, answer: KeptAnswer | undefined): Effect.Effect<void, DatabaseError> {
    return Effect.suspend(() => {
      const { executor, writer } = this.opened
      const kept = encodeAnswer(answer, this.maxBytes)
      const level = unit.onlyOn(executor)?.level
      // work that is read only leaves nothing to do twice
      const isReadOnly = level?.readOnly ?? unit.settingsFor(executor.database).access === "read only"
      if (isReadOnly) return Effect.void
      if (level?.isBegun === true && level.savepoint === undefined) {
        level.connectionHolder.keyStep = keepStep(this.key, kept)
        return Effect.void
      }
      const statement = writer.unsafe(keepText, keepValues(this.key, kept)).withoutTransform
      return Effect.asVoid(
        Effect.mapInputContext(refine(statement), (context: Context.Context<never>) =>
          Context.add(context, TransactionConnection, slotOf(context, unit))
        )
      )
    })
  }

  /** Removes the kept answer if the key is stored and the work of another database is not. */
  private forgetAnswer({ committed }: PartialCommit): Effect.Effect<void> {
    const { executor, writer } = this.opened
    if (this.maxBytes === undefined || !committed.includes(executor.database)) return Effect.void
    const forgotten = UnitOfWork.outside(refine(writer.unsafe(forgetText, [this.key.id]).withoutTransform))
    return Effect.catchAll(forgotten, (error) => Effect.logError(error.message))
  }

  /**
   * Returns the answer that another request with the key has left, if the work of this one was
   * undone: its own failure may be a consequence of the work of the other one. `failure` is that of
   * the unit, if there was one. A failed look-up is logged; the request then gets its own answer, or
   * 409 if it has collided with the key.
   */
  instead(failure: unknown): Effect.Effect<Earlier | undefined> {
    if (isDatabaseError(failure)) {
      // the stored key may be that of this request
      if (failure._tag === "CommitOutcomeUnknown") return Effect.succeed(undefined)
      if (failure._tag === "PartialCommit") return Effect.as(this.forgetAnswer(failure), undefined)
    }
    const otherwise = isTaken(failure) ? { problem: storedBefore } : undefined
    return Effect.matchEffect(this.earlier, {
      onFailure: (error) => Effect.as(Effect.logError(error.message), otherwise),
      onSuccess: (earlier) => Effect.succeed(earlier ?? otherwise)
    })
  }
}

/** Checks if a request was undone because another request has stored its key. */
const isTaken = (error: unknown): boolean => {
  if (!isDatabaseError(error)) return false
  if (error._tag === "UniqueViolation") return isKeyTaken(error)
  return error._tag === "CommitFailed" && isTaken(error.cause)
}

/** Opens the database of a key; it fails if the database has no markers. */
export const openKeyDatabase = <Self>(database: KeyDatabase<Self>): Effect.Effect<Opened, ConfigInvalid, Self> =>
  Effect.flatMap(database, (client) => {
    // the cast: only a class of `Database.Service` has this type, and its service has the field
    const opened = client as Opened
    const { outcome } = opened.executor.config
    return outcome === "marker"
      ? Effect.succeed(opened)
      : Effect.fail(
          new ConfigInvalid({
            database: database.databaseName,
            setting: "idempotencyKey",
            given: `a database with outcome: ${JSON.stringify(outcome)}`,
            expected: 'a database with outcome: "marker"'
          })
        )
  })

/** Makes the refusal of a key inside of another unit of work, which decides about the COMMIT. */
export const keyConflict = (): OptionsConflict =>
  new OptionsConflict({
    database: "",
    server: "",
    option: "idempotencyKey",
    outer: "the unit of work around",
    inner: "a request"
  })
