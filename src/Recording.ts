/**
 * The statements and transactions that a test has recorded, as values.
 *
 * `TestDatabase.layerRecorded` records them, and `TestDatabase.recording` returns them.
 *
 * @since 0.3.0
 */
import * as Schema from "effect/Schema"
import { listOf, nPlusOneMessage, tooManyMessage } from "./internal/errors/recordingMessages.js"
import type { Role } from "./Topology.js"

/**
 * Outcome of a recorded statement or transaction.
 *
 * - `"open"`: it has not ended yet.
 * - `"committed"`: it is stored, as far as the program sees. In a sandbox it is rolled back later.
 * - `"rolledBack"`: its transaction, or a savepoint around it, was rolled back.
 * - `"failed"`: the statement has failed, or the COMMIT of its transaction.
 * - `"unknown"`: the answer to the COMMIT of its transaction was lost.
 *
 * @see {@link RecordedStatement}
 * @since 0.3.0
 * @category models
 */
export type Outcome = "open" | "committed" | "rolledBack" | "failed" | "unknown"

/**
 * Statement of the program, as it was recorded.
 *
 * The values of its parameters are not recorded, because they may be secret. A retried statement is
 * one statement with several attempts; a retried transaction has new statements.
 *
 * @see {@link Recording}
 * @since 0.3.0
 * @category models
 */
export interface RecordedStatement {
  /** The name of the database. */
  readonly database: string
  /** The handle that the program has used. */
  readonly role: Role
  /** The server that it was sent to last, or `undefined` if it was not sent. */
  readonly server: string | undefined
  /** The text, as the program has built it. */
  readonly text: string
  /** The number of parameters. */
  readonly parameters: number
  /** The number of its transaction, or `undefined` if it ran in none. */
  readonly transaction: number | undefined
  /** The location in the program, or `undefined` if it is not known. */
  readonly location: string | undefined
  /** The number of times that it was sent: 0 if it found no connection. */
  readonly attempts: number
  /** The number of its exchanges with the server: more than one for the batches of a stream. */
  readonly roundTrips: number
  /** The number of rows that it has returned. */
  readonly rows: number
  /** The outcome. A statement outside of a transaction is committed when it succeeds. */
  readonly outcome: Outcome
  /** The tag of its error, `"Interrupted"` after an interruption, or `undefined`. */
  readonly error: string | undefined
}

/**
 * Transaction or savepoint of the program in which a statement was recorded.
 *
 * Each attempt of a retried transaction is a transaction of its own. A transaction without a
 * statement sends nothing and is not recorded.
 *
 * @see {@link Recording}
 * @since 0.3.0
 * @category models
 */
export interface RecordedTransaction {
  /** The number of the transaction in the recording, from 1. */
  readonly number: number
  /** The name of the database. */
  readonly database: string
  /** The handle that has begun it. */
  readonly role: Role
  /** The option `label`. */
  readonly label: string | undefined
  /** The number of the transaction around it, if it is a savepoint of the program. */
  readonly around: number | undefined
  /** The number of its own statements, without those of the savepoints in it. */
  readonly statements: number
  /** The outcome. The savepoints of a transaction that is rolled back are rolled back, too. */
  readonly outcome: Outcome
}

/**
 * Statement that the program has repeated, one run after the other, at one place.
 *
 * @see {@link Recording} for `repeated`
 * @since 0.3.0
 * @category models
 */
export interface RepeatedStatement {
  /** The text of the statement. */
  readonly text: string
  /** The location in the program, or `undefined` if it is not known. */
  readonly location: string | undefined
  /** The number of runs of which each began after the end of the one before. */
  readonly times: number
}

/**
 * Statements and transactions that have run on one database.
 *
 * @see `TestDatabase.recording`
 * @since 0.3.0
 * @category models
 */
export interface Recording {
  /** The name of the database. */
  readonly database: string
  /** The statements, in the order of their beginning. */
  readonly statements: ReadonlyArray<RecordedStatement>
  /** The transactions and savepoints, in the order of their first statements. */
  readonly transactions: ReadonlyArray<RecordedTransaction>
  /**
   * The number of exchanges with the servers: a BEGIN is sent with the first statement, and a COMMIT
   * is an exchange of its own. Exchanges that the pool makes by itself, such as a validation, do
   * not count.
   */
  readonly roundTrips: number
  /**
   * The statements with the same text and the same location that ran twice or more, each after the
   * end of the one before; those with the most runs first. Statements that ran at the same time, or
   * were batched into one, are not repeated.
   */
  readonly repeated: ReadonlyArray<RepeatedStatement>
}

/**
 * Figures of a recording that a test can limit.
 *
 * @see `TestDatabase.expectAtMost`
 * @since 0.3.0
 * @category models
 */
export interface Limits {
  /**
   * The number of statements.
   *
   * @default undefined (no limit)
   */
  readonly statements?: number | undefined
  /**
   * The number of transactions and savepoints of the program.
   *
   * @default undefined (no limit)
   */
  readonly transactions?: number | undefined
  /**
   * The number of exchanges with the servers.
   *
   * @default undefined (no limit)
   */
  readonly roundTrips?: number | undefined
}

/**
 * Failure of a test whose program has run more than the test expects.
 *
 * The message lists the statements with their locations.
 *
 * @see `TestDatabase.expectAtMost`
 * @since 0.3.0
 * @category errors
 */
export class TooMany extends Schema.TaggedError<TooMany>("effect-db/TooMany")("TooMany", {
  database: Schema.String,
  /** The limited figure. */
  what: Schema.Literal("statements", "transactions", "roundTrips"),
  most: Schema.Number,
  count: Schema.Number,
  /** The statements, one line for each. */
  ran: Schema.Array(Schema.String)
}) {
  override get message(): string {
    return tooManyMessage(this)
  }
}

/**
 * Failure of a test whose program has repeated a statement for each of many rows: N+1 queries.
 *
 * Ask for all rows at once, by `IN`, a join, or a batched `SqlResolver`.
 *
 * @see `TestDatabase.expectNoNPlusOne`
 * @since 0.3.0
 * @category errors
 */
export class NPlusOne extends Schema.TaggedError<NPlusOne>("effect-db/NPlusOne")("NPlusOne", {
  database: Schema.String,
  repeated: Schema.Array(
    Schema.Struct({
      text: Schema.String,
      location: Schema.UndefinedOr(Schema.String),
      times: Schema.Number
    })
  )
}) {
  override get message(): string {
    return nPlusOneMessage(this)
  }
}

/**
 * Returns the statements of a recording as lines of text, to print or to put into an assertion.
 *
 * @see {@link TooMany}, whose message has these lines
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, Recording, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const print = Effect.flatMap(TestDatabase.recording(Db), (recording) =>
 *   Effect.log(Recording.toLines(recording).join("\n"))
 * )
 * ```
 *
 * @since 0.3.0
 * @category combinators
 */
export const toLines = (recording: Recording): ReadonlyArray<string> => recording.statements.map(listOf)
