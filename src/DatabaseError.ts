/**
 * The errors of this library, each with a tag.
 *
 * A statement fails with `SqlError`, as in each client of `@effect/sql`. {@link refine} replaces the
 * `SqlError` by the error of this module that is its cause, so that
 * `Effect.catchTag("UniqueViolation", ...)` works. A failure of `Db.withTransaction` or of
 * `UnitOfWork` itself, such as a failed COMMIT, is an error of this module without a `SqlError`.
 *
 * @since 0.1.0
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as checkoutMessages from "./internal/errors/checkoutMessages.js"
import * as commitMessages from "./internal/errors/commitMessages.js"
import * as consistencyMessages from "./internal/errors/consistencyMessages.js"
import * as inputMessages from "./internal/errors/inputMessages.js"
import * as listenMessages from "./internal/errors/listenMessages.js"
import { markName, messageOf } from "./internal/errors/messageParts.js"
import * as statementMessages from "./internal/errors/statementMessages.js"
import * as transactionMessages from "./internal/errors/transactionMessages.js"
import { isReadOnly } from "./internal/sql/commandScanner.js"
import { isStalePlan } from "./SqlState.js"

/**
 * Mark of every error of this library, by which {@link isDatabaseError} recognises it.
 *
 * @see {@link isDatabaseError}
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: unique symbol = Symbol.for(markName)

/**
 * Type of the mark of every error of this library.
 *
 * @see {@link isDatabaseError}
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

const location = {
  /** The name of the database. */
  database: Schema.String,
  /**
   * The server: `host:port`, `a:5432,b:5432` for several hosts, the folder of a Unix socket, or the
   * `name` of a server that is given as a `socket`. Empty if no server took part.
   */
  server: Schema.String,
  /** The cause, without secrets. */
  cause: Schema.optional(Schema.Defect)
}

const statement = {
  ...location,
  /** The text of the statement, with `$1` in place of values. */
  sql: Schema.optional(Schema.String),
  /** The location in the program, if known: function, file, line and column, or the span. */
  location: Schema.optional(Schema.String)
}

/** Fields of a refused statement, with the server's names. */
const refused = {
  ...statement,
  /** The position of the error in the text of the statement, in characters from 1. */
  position: Schema.optional(Schema.Number),
  /**
   * The functions and triggers that ran on the server, the innermost first, without lines that may
   * contain values.
   */
  where: Schema.optional(Schema.String),
  /** The server's advice. */
  hint: Schema.optional(Schema.String)
}

/** Fields of errors after which the work may be run again. */
const replayable = {
  /** The number of attempts and the reason for their end, if the work was retried without success. */
  retried: Schema.optional(Schema.Struct({ attempts: Schema.Number, endedBy: Schema.Literal("schedule", "budget") }))
}

const violation = {
  ...refused,
  /** The schema of the table, the type or the constraint. */
  schema: Schema.optional(Schema.String),
  /** The name of the table. */
  table: Schema.optional(Schema.String),
  /** The name of the column. */
  column: Schema.optional(Schema.String),
  /** The name of the data type. */
  dataType: Schema.optional(Schema.String),
  /** The name of the constraint, or of its index. */
  constraint: Schema.optional(Schema.String),
  /** The server's details, which may contain values of the row. */
  detail: Schema.optional(Schema.String)
}

const limited = {
  ...refused,
  /** The server's message, which names the limit. */
  limit: Schema.String
}

/**
 * Attempts that failed before an error was reported.
 *
 * `endedBy` is `"schedule"` if the schedule of the retry ended them, and `"budget"` if the retry
 * budget of the database was used up.
 *
 * @see {@link Disconnected}, {@link SerializationFailure}, {@link DeadlockDetected} and
 *   {@link QueryFailed}, which carry it as `retried`
 * @see `RetryPolicy.Policy` for the schedules and the budget
 * @since 0.2.0
 * @category models
 */
export interface Retried {
  /** The number of all attempts, with the first one. */
  readonly attempts: number
  /** The reason for their end. */
  readonly endedBy: "schedule" | "budget"
}

const OutcomeSchema = Schema.Literal("notSent", "undone", "inDoubt")

/**
 * A setting that is not valid.
 *
 * It occurs when a layer is built, for an invalid option of a function, and for an operation that
 * the `mode` of the database excludes. `setting` is the name of the setting, `given` describes its
 * value without secrets, `expected` describes valid values. `database` is empty if the setting
 * belongs to no single database. Correct the setting.
 *
 * @see `DatabaseConfig.make`, which checks settings without a connection
 * @since 0.1.0
 * @category errors
 */
export class ConfigInvalid extends Schema.TaggedError<ConfigInvalid>("effect-db/ConfigInvalid")("ConfigInvalid", {
  database: Schema.String,
  setting: Schema.String,
  given: Schema.String,
  expected: Schema.String
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return inputMessages.configInvalid(this)
  }
}

/**
 * A connect failed.
 *
 * `reason` is the kind of failure, and `cause` the error of the network, the server or a provider;
 * the message has advice for each reason. Nothing was sent. A transient failure is retried until
 * `acquireTimeout`; `"authentication"`, `"noSuchDatabase"`, `"tls"`, `"setup"`, `"poolerMode"`,
 * `"protocol"` and `"outcomeTable"` are not.
 *
 * @see {@link PoolExhausted} for a pool without a free connection
 * @see `SqlState.isTransient` for the reasons after which another attempt may succeed
 * @since 0.1.0
 * @category errors
 */
export class ConnectFailed extends Schema.TaggedError<ConnectFailed>("effect-db/ConnectFailed")("ConnectFailed", {
  ...location,
  reason: Schema.Literal(
    "unreachable",
    "unresponsive",
    "authentication",
    "tls",
    "tooManyConnections",
    "startingUp",
    "noSuchDatabase",
    "wrongRole",
    "credentials",
    "setup",
    "poolerMode",
    "protocol",
    "outcomeTable"
  ),
  /**
   * True if another attempt would fail in the same way, although its reason is transient in
   * general: for `credentials`, a password file that other users may read.
   */
  permanent: Schema.optional(Schema.Boolean)
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return checkoutMessages.connectFailed(this)
  }
}

/**
 * A caller got no connection from the pool.
 *
 * Nothing was sent. `reason` is one of these:
 *
 * - `timeout`: no connection became free within `acquireTimeout`.
 * - `shed`: the pool is overloaded, and the caller waited for twice `queueTarget`, or the queue was
 *   already too long to be served within `queueTarget`.
 * - `outage`: the server is unavailable, and `maxOutageWaiters` callers wait for it already.
 * - `paused`: the database is paused (`Db.pause`), for longer than `acquireTimeout`, or while
 *   `maxOutageWaiters` callers wait already.
 * - `single`: the strategy `assertSingle` allows one connection at a time.
 *
 * The other fields are the figures of the pool at that moment.
 *
 * @see {@link PoolSelfDeadlock} for a transaction that would wait for itself
 * @see `DatabaseConfig.PoolOptions` for the settings of a pool
 * @since 0.1.0
 * @category errors
 */
export class PoolExhausted extends Schema.TaggedError<PoolExhausted>("effect-db/PoolExhausted")("PoolExhausted", {
  ...location,
  reason: Schema.Literal("timeout", "shed", "single", "outage", "paused"),
  /** The time that the caller waited. */
  waitedMillis: Schema.Number,
  /** The number of open connections. */
  total: Schema.Number,
  /** The number of connections in use. */
  active: Schema.Number,
  /** The number of idle connections. */
  idle: Schema.Number,
  /** The number of callers in the wait queue. */
  waiting: Schema.Number,
  /**
   * The number of connects in progress, and the time that the first of them has taken, if there are
   * any.
   */
  connecting: Schema.optional(Schema.Struct({ count: Schema.Number, longestMillis: Schema.Number })),
  /** The last failure to connect, if there was one since the last success. */
  lastConnectFailure: Schema.optional(Schema.String),
  /**
   * The longest checkout, if checkouts are recorded (`leakThreshold`, `assertSingle`). With the
   * reason `single` it is the checkout in progress, or else the first caller in the wait queue.
   */
  longestCheckout: Schema.optional(
    Schema.Struct({
      heldMillis: Schema.Number,
      fiber: Schema.optional(Schema.String),
      /** The location in the program: function, file, line and column. */
      location: Schema.optional(Schema.String)
    })
  )
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return checkoutMessages.poolExhausted(this)
  }
}

/**
 * The database is not open.
 *
 * Its layer has been released, or, if `notYet` is true, `DatabaseRuntime.open` has not been called
 * yet. Use a database only while it is open.
 *
 * @see `Database.Members` for `layer`, which opens a database
 * @since 0.1.0
 * @category errors
 */
export class DatabaseClosed extends Schema.TaggedError<DatabaseClosed>("effect-db/DatabaseClosed")("DatabaseClosed", {
  ...location,
  notYet: Schema.optional(Schema.Boolean)
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return checkoutMessages.databaseClosed(this)
  }
}

/**
 * The connection was lost.
 *
 * `outcome` is the outcome of the work. After `"notSent"` and `"undone"` it is safe to retry. After
 * `"inDoubt"` the server may have applied the statement: check that before retrying.
 *
 * @see {@link CommitOutcomeUnknown} for a loss during COMMIT
 * @see `RetryPolicy.idempotent` for statements that may run twice
 * @since 0.1.0
 * @category errors
 */
export class Disconnected extends Schema.TaggedError<Disconnected>("effect-db/Disconnected")("Disconnected", {
  ...statement,
  ...replayable,
  outcome: OutcomeSchema
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.disconnected(this)
  }
}

/**
 * SQLSTATE 23505: a unique constraint refused the row.
 *
 * `constraint` and `table` name the constraint. Nothing of the statement is stored.
 *
 * @see {@link ExclusionViolation} for a constraint by another operator than equality
 * @see {@link refine} to catch it by its tag
 * @since 0.1.0
 * @category errors
 */
export class UniqueViolation extends Schema.TaggedError<UniqueViolation>("effect-db/UniqueViolation")(
  "UniqueViolation",
  violation
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.violation(this)
  }
}

/**
 * SQLSTATE 23503: a foreign key refused the row.
 *
 * `constraint` and `table` name the constraint. Nothing of the statement is stored.
 *
 * @see {@link CheckViolation}, {@link NotNullViolation} and {@link UniqueViolation} for other
 *   constraints
 * @see {@link refine} to catch it by its tag
 * @since 0.1.0
 * @category errors
 */
export class ForeignKeyViolation extends Schema.TaggedError<ForeignKeyViolation>("effect-db/ForeignKeyViolation")(
  "ForeignKeyViolation",
  violation
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.violation(this)
  }
}

/**
 * SQLSTATE 23514: a check constraint refused the row.
 *
 * `constraint` and `table` name the constraint. Nothing of the statement is stored.
 *
 * @see {@link InvalidInput} for a value that its type excludes
 * @see {@link refine} to catch it by its tag
 * @since 0.1.0
 * @category errors
 */
export class CheckViolation extends Schema.TaggedError<CheckViolation>("effect-db/CheckViolation")(
  "CheckViolation",
  violation
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.violation(this)
  }
}

/**
 * SQLSTATE 23502: a column that must not be null has no value.
 *
 * `table` and `column` name the column. Nothing of the statement is stored.
 *
 * @see {@link CheckViolation} for other conditions on a value
 * @see {@link refine} to catch it by its tag
 * @since 0.1.0
 * @category errors
 */
export class NotNullViolation extends Schema.TaggedError<NotNullViolation>("effect-db/NotNullViolation")(
  "NotNullViolation",
  violation
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.violation(this)
  }
}

/**
 * SQLSTATE 23P01: an exclusion constraint refused the row.
 *
 * `constraint` and `table` name the constraint. Nothing of the statement is stored.
 *
 * @see {@link UniqueViolation} for equal values
 * @see {@link refine} to catch it by its tag
 * @since 0.1.0
 * @category errors
 */
export class ExclusionViolation extends Schema.TaggedError<ExclusionViolation>("effect-db/ExclusionViolation")(
  "ExclusionViolation",
  violation
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.violation(this)
  }
}

/**
 * SQLSTATE 40001, or a read that a standby cancelled because of a conflict with recovery.
 *
 * Run the whole transaction again, or set its option `retry`. A reader's statement outside of a
 * transaction is first retried on another server. `retried` is set if attempts were made.
 *
 * @see {@link DeadlockDetected} for the other conflict of transactions
 * @see `RetryPolicy.isReplayable` for all failures after which a transaction may run again
 * @since 0.1.0
 * @category errors
 */
export class SerializationFailure extends Schema.TaggedError<SerializationFailure>("effect-db/SerializationFailure")(
  "SerializationFailure",
  { ...refused, ...replayable }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.collision(this)
  }
}

/**
 * SQLSTATE 40P01: the server ended the transaction to resolve a deadlock.
 *
 * Run the whole transaction again, or set its option `retry`. To avoid deadlocks, lock rows in the
 * same order everywhere.
 *
 * @see {@link SerializationFailure} for the other conflict of transactions
 * @see `RetryPolicy.isReplayable` for all failures after which a transaction may run again
 * @since 0.1.0
 * @category errors
 */
export class DeadlockDetected extends Schema.TaggedError<DeadlockDetected>("effect-db/DeadlockDetected")(
  "DeadlockDetected",
  { ...refused, ...replayable, detail: Schema.optional(Schema.String) }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.collision(this)
  }
}

/**
 * SQLSTATE 57014: the server cancelled a statement.
 *
 * Its `statement_timeout` passed, or an administrator cancelled the statement. Make the statement
 * faster, or raise `statementTimeout`.
 *
 * @see {@link LockTimeout} for the wait for a lock
 * @see {@link refine} to catch it by its tag
 * @since 0.1.0
 * @category errors
 */
export class StatementTimeout extends Schema.TaggedError<StatementTimeout>("effect-db/StatementTimeout")(
  "StatementTimeout",
  limited
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.statementTimeout(this)
  }
}

/**
 * SQLSTATE 55P03: a lock was not free in time.
 *
 * `lock_timeout` passed, or a statement with NOWAIT found a lock held. Try again, or raise
 * `lockTimeout`.
 *
 * @see {@link StatementTimeout} for the time of a whole statement
 * @see {@link refine} to catch it by its tag
 * @since 0.1.0
 * @category errors
 */
export class LockTimeout extends Schema.TaggedError<LockTimeout>("effect-db/LockTimeout")("LockTimeout", limited) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.lockTimeout(this)
  }
}

/**
 * The server ended a transaction that was idle or open for too long, and rolled it back.
 *
 * Do slow work outside of the transaction, or make the transaction shorter.
 *
 * @see {@link TransactionEnded} for a transaction that the program has ended
 * @see {@link refine} to catch it by its tag
 * @since 0.1.0
 * @category errors
 */
export class IdleTransactionTimeout extends Schema.TaggedError<IdleTransactionTimeout>(
  "effect-db/IdleTransactionTimeout"
)("IdleTransactionTimeout", limited) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.idleTransactionTimeout(this)
  }
}

/**
 * SQLSTATE 25006: a write was refused in a read-only transaction.
 *
 * - `reader`: the statement ran through a reader; run it through the writer.
 * - `transaction`: the transaction was begun with access `"read only"`.
 * - `server`: the server is a standby, or it or the session was made read-only.
 *
 * @see `Transaction.Access` for the access mode of a transaction
 * @see {@link refine} to catch it by its tag
 * @since 0.1.0
 * @category errors
 */
export class ReadOnlyViolation extends Schema.TaggedError<ReadOnlyViolation>("effect-db/ReadOnlyViolation")(
  "ReadOnlyViolation",
  {
    ...refused,
    reason: Schema.optionalWith(Schema.Literal("reader", "transaction", "server"), { default: () => "reader" })
  }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.readOnlyViolation(this)
  }
}

/**
 * SQLSTATE class 22: the server cannot use a value or compute with it.
 *
 * The value is not a valid number, date or JSON, is out of range or too long, or divides by zero.
 * Validate values before they are sent.
 *
 * @see {@link CheckViolation} for a value that a constraint excludes
 * @see {@link refine} to catch it by its tag
 * @since 0.2.0
 * @category errors
 */
export class InvalidInput extends Schema.TaggedError<InvalidInput>("effect-db/InvalidInput")("InvalidInput", {
  ...violation,
  sqlState: Schema.String
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.queryFailed(this)
  }
}

/**
 * Any other refusal of a statement, with its SQLSTATE.
 *
 * `sqlState` is absent if the statement could not be sent. After a failure the server refuses all
 * later statements of the transaction with 25P02: the cause of the cause is then the first
 * failure.
 *
 * @see {@link StatementError} for the refusals that have a class of their own
 * @see {@link refine} to catch it by its tag
 * @since 0.1.0
 * @category errors
 */
export class QueryFailed extends Schema.TaggedError<QueryFailed>("effect-db/QueryFailed")("QueryFailed", {
  ...violation,
  ...replayable,
  sqlState: Schema.optional(Schema.String)
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.queryFailed(this)
  }
}

/**
 * The server refused COMMIT, for example because of a deferred constraint.
 *
 * The transaction was rolled back. `cause` is the refusal, itself a {@link DatabaseError}.
 *
 * @see {@link RolledBackAtCommit} for an earlier failure, {@link CommitVetoed} for a hook
 * @see {@link CommitOutcomeUnknown} for a COMMIT without an answer
 * @since 0.1.0
 * @category errors
 */
export class CommitFailed extends Schema.TaggedError<CommitFailed>("effect-db/CommitFailed")("CommitFailed", {
  ...location,
  sqlState: Schema.String
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return commitMessages.commitFailed(this)
  }
}

/**
 * A `beforeCommit` hook failed, so the transaction was rolled back.
 *
 * `cause` is the failure of the hook.
 *
 * @see `Database.Members` for `beforeCommit`
 * @see {@link CommitFailed} for a refusal of the server
 * @since 0.1.0
 * @category errors
 */
export class CommitVetoed extends Schema.TaggedError<CommitVetoed>("effect-db/CommitVetoed")("CommitVetoed", location) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return commitMessages.commitVetoed(this)
  }
}

/**
 * The transaction was rolled back when the program ended it with success.
 *
 * Either a statement had failed earlier and the program ignored that, so the server answered
 * COMMIT with ROLLBACK; or a part that had joined the transaction ended in rollback after it had
 * sent a writer's statement. `cause` is the failure of the statement or the part, if it is known,
 * and `part` is the label of the part or else its location in the program. Let the failure end the
 * transaction, or run work that may fail in a nested transaction.
 *
 * @see {@link CommitFailed} for a refusal of COMMIT itself
 * @see `UnitOfWork.nested` for a part that can fail alone
 * @since 0.1.0
 * @category errors
 */
export class RolledBackAtCommit extends Schema.TaggedError<RolledBackAtCommit>("effect-db/RolledBackAtCommit")(
  "RolledBackAtCommit",
  { ...location, part: Schema.optional(Schema.String) }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return commitMessages.rolledBackAtCommit(this)
  }
}

/**
 * The connection was lost after COMMIT was sent, so the transaction may be stored or not.
 *
 * The outcome could not be proved within `resolveWithin`: the server was unavailable, it has lost
 * its history in a failover, or the transaction is still open there. Run `resolve`, or check whether
 * the changes are stored, before retrying. `xid`, `systemId` and `timeline` identify the transaction
 * on the server, if they are known; with `outcome: "marker"`, `marker` is the id of its row in
 * `effect_db.outcome`. If the outcome is proved, there is no such error: the transaction
 * succeeds, or fails with {@link Disconnected} and the outcome `undone`.
 *
 * @see {@link Disconnected} for a loss before COMMIT
 * @see `DatabaseConfig.DatabaseOptions` for `outcome` and `resolveWithin`
 * @see {@link PartialCommit} for several databases
 * @since 0.1.0
 * @category errors
 */
export class CommitOutcomeUnknown extends Schema.TaggedError<CommitOutcomeUnknown>("effect-db/CommitOutcomeUnknown")(
  "CommitOutcomeUnknown",
  {
    ...location,
    xid: Schema.optional(Schema.String),
    systemId: Schema.optional(Schema.String),
    timeline: Schema.optional(Schema.Number),
    marker: Schema.optional(Schema.String)
  }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return commitMessages.commitOutcomeUnknown(this)
  }

  /**
   * Asks the server once more, for up to `resolveWithin`, if the transaction is stored. Fails with
   * this error if that cannot be proved, also after the layer of the database is released, and for
   * an error that was decoded from its encoded form. The hooks of the transaction have run already.
   */
  get resolve(): Effect.Effect<"committed" | "undone", CommitOutcomeUnknown> {
    return Effect.fail(this)
  }
}

/**
 * A client was used in a transaction that has ended.
 *
 * A fiber outlived its transaction: join the fiber before the end, or run it in
 * `UnitOfWork.outside`. Or a statement of the program ended the transaction: then `by` is its
 * command. The work before `COMMIT` is stored, the work before `ROLLBACK` is undone. `retry` never
 * repeats such a transaction.
 *
 * @see `UnitOfWork.outside` for work that outlives its transaction
 * @see {@link IdleTransactionTimeout} for a transaction that the server has ended
 * @since 0.1.0
 * @category errors
 */
export class TransactionEnded extends Schema.TaggedError<TransactionEnded>("effect-db/TransactionEnded")(
  "TransactionEnded",
  { ...location, by: Schema.optional(Schema.Literal("COMMIT", "ROLLBACK")) }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return transactionMessages.transactionEnded(this)
  }
}

/**
 * The program interrupted a statement inside of a transaction, for example by `Effect.timeout`,
 * and continued.
 *
 * The effect of the statement is unknown, so the transaction is rolled back: only the innermost
 * nested transaction if the server confirmed the cancel in time, else all of it. If the end of a nested
 * transaction was interrupted, its savepoint is already released, and the transaction around it is
 * rolled back.
 *
 * `retry` never repeats such a transaction, because the next attempt would be interrupted in the
 * same way. Run work with a timeout in a nested transaction.
 *
 * @see `UnitOfWork.nested` for a part that can fail alone
 * @since 0.2.0
 * @category errors
 */
export class TransactionInterrupted extends Schema.TaggedError<TransactionInterrupted>(
  "effect-db/TransactionInterrupted"
)("TransactionInterrupted", {
  ...location,
  /** The text of the statement, without the values of its parameters. */
  statement: Schema.String,
  /**
   * Function, file, line and column of the statement, if call sites are recorded (`leakThreshold`).
   */
  callSite: Schema.optional(Schema.String)
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return transactionMessages.transactionInterrupted(this)
  }
}

/**
 * The transaction could not continue within `acquireTimeout`, because a nested transaction was open,
 * or another fiber was ending the transaction.
 *
 * Nested transactions take turns, each from its first statement to its end, so none may wait for a
 * sibling. A COMMIT that waited in vain is replaced by a rollback. `waitedMillis` is 0 if COMMIT was
 * requested while work in the transaction, or another COMMIT, was in progress. Join forked fibers
 * before the end.
 *
 * @see {@link PoolExhausted} for a wait for a connection
 * @since 0.1.0
 * @category errors
 */
export class TransactionBusy extends Schema.TaggedError<TransactionBusy>("effect-db/TransactionBusy")(
  "TransactionBusy",
  {
    ...location,
    /** The time of the wait. */
    waitedMillis: Schema.Number
  }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return transactionMessages.transactionBusy(this)
  }
}

/**
 * No replica had reached in time the position that a read requires, and the consistency of the read
 * excludes the primary; or all replicas are too far behind, and `whenAllBehind` is `"fail"`.
 *
 * `unproved` lists the servers that could not prove their position. Wait longer, or allow reads from
 * the primary.
 *
 * @see {@link TokenFromLostTimeline} for a token that no server can satisfy
 * @see `Consistency.Consistency` for `AtLeast`, which may exclude the primary
 * @since 0.1.0
 * @category errors
 */
export class NoReplicaCaughtUp extends Schema.TaggedError<NoReplicaCaughtUp>("effect-db/NoReplicaCaughtUp")(
  "NoReplicaCaughtUp",
  {
    database: Schema.String,
    /**
     * `"position"`, or `"maxLag"` if all replicas are further behind than `maxLag` or
     * `maxLagBytes`, and `whenAllBehind` is `"fail"`.
     */
    reason: Schema.Literal("position", "maxLag"),
    /** The time that the read waited. */
    waitedMillis: Schema.Number,
    unproved: Schema.Array(Schema.String)
  }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return consistencyMessages.noReplicaCaughtUp(this)
  }
}

/**
 * A token belongs to a timeline that is no part of the database's history, or to another database.
 *
 * After a failover the writes before the token may have been lost with the old primary. Check on
 * the primary if the writes are stored, and use a new token.
 *
 * @see {@link NoReplicaCaughtUp} for a token that a server will reach later
 * @see `Consistency.Token`
 * @since 0.1.0
 * @category errors
 */
export class TokenFromLostTimeline extends Schema.TaggedError<TokenFromLostTimeline>("effect-db/TokenFromLostTimeline")(
  "TokenFromLostTimeline",
  {
    ...location,
    /** The timeline of the token. */
    timeline: Schema.Number
  }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return consistencyMessages.tokenFromLostTimeline(this)
  }
}

/**
 * A client of another library was used inside of a transaction of this library. Its statement would
 * have run on the connection of the transaction.
 *
 * Wrap its use in `Database.isolate`, or use it outside of the transaction.
 *
 * @see `Database.isolate`
 * @since 0.1.0
 * @category errors
 */
export class ForeignClient extends Schema.TaggedError<ForeignClient>("effect-db/ForeignClient")(
  "ForeignClient",
  location
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return transactionMessages.foreignClient(this)
  }
}

/**
 * A transaction cannot begin or end as requested.
 *
 * Propagation `mandatory` found no transaction, or `never` found one. Or a commit or rollback by hand
 * (`Db.commit`, `UnitOfWork.commit`) was called inside of `withTransaction` or `UnitOfWork.nested`,
 * which end their transactions themselves.
 *
 * @see `Transaction.Propagation`
 * @since 0.1.0
 * @category errors
 */
export class PropagationRefused extends Schema.TaggedError<PropagationRefused>("effect-db/PropagationRefused")(
  "PropagationRefused",
  { ...location, propagation: Schema.Literal("mandatory", "never", "commit", "rollback") }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return transactionMessages.propagationRefused(this)
  }
}

/**
 * A part requires an option that the transaction or unit of work around it does not have and cannot
 * take.
 *
 * Such options are isolation after the first statement, access, limits, the order of commits,
 * `outcome` and `retry`. `outer` and `inner` describe the two values. Use the same value, or
 * propagation `requiresNew`.
 *
 * @see `Transaction.Propagation` for parts that do not join
 * @see `UnitOfWork.Options`
 * @since 0.1.0
 * @category errors
 */
export class OptionsConflict extends Schema.TaggedError<OptionsConflict>("effect-db/OptionsConflict")(
  "OptionsConflict",
  {
    ...location,
    option: Schema.String,
    outer: Schema.String,
    inner: Schema.String
  }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return transactionMessages.optionsConflict(this)
  }
}

/**
 * A new transaction would wait for a connection in vain: all connections of the pool are held by
 * transactions that wait in the same way, among them its own outer transaction.
 *
 * Raise `maxConnections`, or do not nest with `requiresNew` or `independent`.
 *
 * @see {@link PoolExhausted} for a wait that may end
 * @see `UnitOfWork` for the kinds of work that use a connection of their own
 * @since 0.1.0
 * @category errors
 */
export class PoolSelfDeadlock extends Schema.TaggedError<PoolSelfDeadlock>("effect-db/PoolSelfDeadlock")(
  "PoolSelfDeadlock",
  { ...location, maxConnections: Schema.Number }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return checkoutMessages.poolSelfDeadlock(this)
  }
}

/**
 * A unit of work over several databases was committed in part.
 *
 * `committed` lists the databases that have stored their work, `rolledBack` those that have not,
 * and `failed` names the database with the failed COMMIT, and its `outcome`. The program must
 * repeat or undo the missing part.
 *
 * @see {@link CommitFailed} for a unit of which nothing is stored
 * @see `UnitOfWork.Options` for `checkFirst` and `order`, which make it unlikely
 * @since 0.1.0
 * @category errors
 */
export class PartialCommit extends Schema.TaggedError<PartialCommit>("effect-db/PartialCommit")("PartialCommit", {
  ...location,
  committed: Schema.Array(Schema.String),
  failed: Schema.String,
  /**
   * The outcome of the failed COMMIT: `unknown` if the connection was lost during it, and the outcome
   * could not be proved.
   */
  outcome: Schema.Literal("rolledBack", "unknown"),
  rolledBack: Schema.Array(Schema.String)
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return commitMessages.partialCommit(this)
  }
}

/**
 * A channel name or payload that NOTIFY cannot carry.
 *
 * Nothing was sent. `part` names the invalid part, `given` describes its value, and `expected` the
 * limit.
 *
 * @see `Database.Members` for `notify` and `listen`
 * @since 0.1.0
 * @category errors
 */
export class NotificationInvalid extends Schema.TaggedError<NotificationInvalid>("effect-db/NotificationInvalid")(
  "NotificationInvalid",
  {
    database: Schema.String,
    part: Schema.Literal("channel", "payload"),
    given: Schema.String,
    expected: Schema.String
  }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return inputMessages.notificationInvalid(this)
  }
}

/**
 * A schema of `withSchema` or `withTenant` that is not valid, or not possible for this use.
 *
 * Nothing was sent. `given` describes the value, and `expected` describes valid values.
 *
 * @see `Tenant.withTenant`
 * @since 0.1.0
 * @category errors
 */
export class SchemaInvalid extends Schema.TaggedError<SchemaInvalid>("effect-db/SchemaInvalid")("SchemaInvalid", {
  database: Schema.String,
  given: Schema.String,
  expected: Schema.String
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return inputMessages.schemaInvalid(this)
  }
}

/**
 * The data of a COPY was refused, and no row of it is stored.
 *
 * `cause` is the refusal, itself a {@link DatabaseError} if the server refused the data. A refusal
 * without a line, such as by a foreign key, which is checked after all rows, is not wrapped in
 * `CopyFailed`.
 *
 * @see `Copy.Copy` for `copyFrom`
 * @since 0.2.0
 * @category errors
 */
export class CopyFailed extends Schema.TaggedError<CopyFailed>("effect-db/CopyFailed")("CopyFailed", {
  ...statement,
  /** The table, as the program named it. */
  table: Schema.String,
  /** The number of the line or row, from 1. */
  line: Schema.Number,
  column: Schema.optional(Schema.String)
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return statementMessages.copyFailed(
      this,
      isDatabaseError(this.cause) ? (this.cause.cause ?? this.cause) : this.cause
    )
  }
}

/**
 * A listener failed.
 *
 * `cause` is the loss of its connection, if there was one. `reason` is one of these:
 *
 * - `disconnected`: the connection was lost. `Db.listen` reports the loss as a `Gap` and continues
 *   while another attempt may succeed. The `listen` of a client fails, because its stream of payloads
 *   cannot report a gap.
 * - `overflow`: the consumer of a client's `listen` was too slow, and notifications were dropped.
 *
 * Listen again, then read the tables, because notifications may have been missed.
 *
 * @see `Notification.Notification` for `Gap`, by which `Db.listen` reports a loss
 * @since 0.1.0
 * @category errors
 */
export class ListenFailed extends Schema.TaggedError<ListenFailed>("effect-db/ListenFailed")("ListenFailed", {
  ...location,
  channel: Schema.String,
  reason: Schema.Literal("disconnected", "overflow")
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return listenMessages.listenFailed(this)
  }
}

/**
 * Union of all errors of this library.
 *
 * @see {@link isDatabaseError} to recognise an error, {@link catchAll} to handle all
 * @since 0.1.0
 * @category models
 */
export type DatabaseError = StartupError | StatementError | TransactionError | ListenError | ForeignClient

/**
 * Errors of opening a database.
 *
 * @see `Database.Members` for `layer`, which fails with them
 * @since 0.1.0
 * @category models
 */
export type StartupError = ConfigInvalid | ConnectFailed

/**
 * Errors of a single statement.
 *
 * The `SqlError` of a client has one of them as its `cause`.
 *
 * @see {@link refine} to catch them by their tags
 * @see {@link TransactionError} for those of a whole transaction
 * @since 0.1.0
 * @category models
 */
export type StatementError =
  | ConnectFailed
  | PoolExhausted
  | PoolSelfDeadlock
  | DatabaseClosed
  | Disconnected
  | UniqueViolation
  | ForeignKeyViolation
  | CheckViolation
  | NotNullViolation
  | ExclusionViolation
  | SerializationFailure
  | DeadlockDetected
  | StatementTimeout
  | LockTimeout
  | IdleTransactionTimeout
  | ReadOnlyViolation
  | InvalidInput
  | QueryFailed
  | TransactionEnded
  | TransactionInterrupted
  | TransactionBusy
  | NoReplicaCaughtUp
  | TokenFromLostTimeline
  | SchemaInvalid
  | CopyFailed

/**
 * Errors of a listener.
 *
 * Before the first notification, a listener can fail as a statement does, or with `ConfigInvalid`
 * behind a pooler that delivers no notifications. Later it can fail with `ListenFailed`, or with
 * `DatabaseClosed` when the layer is released.
 *
 * @see `Database.Members` for `listen`
 * @see `Notification.Notification` for a loss that is no error
 * @since 0.1.0
 * @category models
 */
export type ListenError = StatementError | NotificationInvalid | ConfigInvalid | ListenFailed

/**
 * Errors of beginning and ending a transaction, and of its statements.
 *
 * `ConfigInvalid` is for an option with an unknown name or an invalid value.
 *
 * @see `Database.Members` for `withTransaction`, and `UnitOfWork.run`
 * @see {@link StatementError} for those of a single statement
 * @since 0.1.0
 * @category models
 */
export type TransactionError =
  | StatementError
  | CommitFailed
  | CommitVetoed
  | RolledBackAtCommit
  | CommitOutcomeUnknown
  | PropagationRefused
  | OptionsConflict
  | ConfigInvalid
  | PartialCommit

/**
 * Checks if a value is an error of this library.
 *
 * @see {@link fromSqlError} for the error inside of a `SqlError`
 * @example
 * ```ts
 * import { DatabaseError } from "effect-db"
 *
 * export const describe = (error: unknown) => (DatabaseError.isDatabaseError(error) ? error._tag : "another error")
 * ```
 *
 * @since 0.1.0
 * @category guards
 */
export const isDatabaseError = (u: unknown): u is DatabaseError => Predicate.hasProperty(u, TypeId)

/**
 * Wraps an error in the `SqlError` of `@effect/sql`, as a client does.
 *
 * @see {@link fromSqlError} for the reverse
 * @example
 * ```ts
 * import type { SqlError } from "@effect/sql/SqlError"
 * import { Effect } from "effect"
 * import { DatabaseError } from "effect-db"
 *
 * // an effect for code that expects the errors of `@effect/sql`
 * export const published = <A, R>(
 *   self: Effect.Effect<A, DatabaseError.DatabaseError, R>
 * ): Effect.Effect<A, SqlError, R> => Effect.mapError(self, DatabaseError.toSqlError)
 * ```
 *
 * @since 0.1.0
 * @category conversions
 */
export const toSqlError = (error: DatabaseError): SqlError => new SqlError({ cause: error, message: error.message })

/**
 * Finds an error of this library in a chain of causes: libraries such as drizzle wrap it in errors
 * of their own.
 */
const findError = (cause: unknown): DatabaseError | undefined => {
  const seen = new Set<unknown>()
  for (let error = cause; !seen.has(error); error = Predicate.hasProperty(error, "cause") ? error.cause : undefined) {
    if (isDatabaseError(error)) return error
    seen.add(error)
  }
  return undefined
}

/**
 * Returns the error of this library in the chain of causes of a `SqlError`.
 *
 * A `SqlError` of another client becomes `QueryFailed` of the database `"unknown"`.
 *
 * @see {@link refine} for an effect
 * @see {@link toSqlError} for the reverse
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, DatabaseError } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const count = Effect.flatMap(Db.reader, (sql) => sql`SELECT count(*) FROM todo`).pipe(
 *   Effect.tapErrorTag("SqlError", (error) => Effect.logError(DatabaseError.fromSqlError(error).message))
 * )
 * ```
 *
 * @since 0.1.0
 * @category conversions
 */
export const fromSqlError = (error: SqlError): DatabaseError =>
  findError(error.cause) ?? new QueryFailed({ database: "unknown", server: "", cause: error.cause ?? error })

/**
 * Converts any failure to an error of this library.
 *
 * @internal
 */
export const fromUnknown = (error: unknown): DatabaseError =>
  error instanceof SqlError
    ? fromSqlError(error)
    : isDatabaseError(error)
      ? error
      : new QueryFailed({ database: "unknown", server: "", cause: error })

/**
 * Replaces each `SqlError` of a cause. If a cause has no failure, and all its defects are errors of
 * this library, the first defect becomes the failure.
 */
const refineCause = <E>(cause: Cause.Cause<E>): Cause.Cause<Exclude<E, SqlError> | DatabaseError> => {
  if (Cause.isFailure(cause)) {
    return Cause.map(cause, (error) =>
      error instanceof SqlError
        ? fromSqlError(error)
        : // an error that is not a SqlError belongs to the rest of E
          (error as Exclude<E, SqlError>)
    )
  }
  const errors = Array.from(Cause.defects(cause), findError)
  const [first] = errors
  // a defect of the program itself must stay visible
  const areOurs = first !== undefined && !errors.includes(undefined)
  // a cause without failures fits any error type
  return areOurs ? Cause.fail(first) : (cause as Cause.Cause<never>)
}

/**
 * Replaces `SqlError` by the error of this library inside of it, so that a program can catch it by
 * its tag.
 *
 * A defect whose cause is an error of this library becomes a failure again, because `Model` of
 * `@effect/sql` turns each `SqlError` into a defect.
 *
 * @see {@link catchAll} to handle all errors of databases at once
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Database, DatabaseError } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const register = (email: string) =>
 *   Effect.gen(function*() {
 *     const sql = yield* Db.writer
 *     yield* sql`INSERT INTO account ${sql.insert({ email })}`
 *     return "registered" as const
 *   }).pipe(
 *     DatabaseError.refine,
 *     Effect.catchTag("UniqueViolation", () => Effect.succeed("taken" as const))
 *   )
 * ```
 *
 * @since 0.1.0
 * @category combinators
 */
export const refine = <A, E, R>(
  self: Effect.Effect<A, E, R>
): Effect.Effect<A, Exclude<E, SqlError> | DatabaseError, R> =>
  Effect.catchAllCause(self, (cause) => Effect.failCause(refineCause(cause)))

/**
 * Handles all errors of databases, failures and defects, as `SqlError` or refined. The program's own
 * errors are not changed.
 *
 * @see {@link toResponse} for a response to a request
 * @see {@link refine} to handle errors by their tags
 * @example
 * ```ts
 * import { Effect, Schema } from "effect"
 * import { Database, DatabaseError } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 * class Taken extends Schema.TaggedError<Taken>()("Taken", {}) {}
 * class Unavailable extends Schema.TaggedError<Unavailable>()("Unavailable", {}) {}
 *
 * // fails with Taken | Unavailable
 * export const register = (email: string) =>
 *   Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO account ${sql.insert({ email })}`).pipe(
 *     DatabaseError.refine,
 *     Effect.catchTag("UniqueViolation", () => new Taken()),
 *     DatabaseError.catchAll((error) => Effect.zipRight(Effect.logError(error.message), new Unavailable()))
 *   )
 * ```
 *
 * @since 0.2.0
 * @category combinators
 */
export const catchAll: {
  <A2, E2, R2>(
    handle: (error: DatabaseError) => Effect.Effect<A2, E2, R2>
  ): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A | A2, Exclude<E, SqlError | DatabaseError> | E2, R | R2>
  <A, E, R, A2, E2, R2>(
    self: Effect.Effect<A, E, R>,
    handle: (error: DatabaseError) => Effect.Effect<A2, E2, R2>
  ): Effect.Effect<A | A2, Exclude<E, SqlError | DatabaseError> | E2, R | R2>
} = dual(
  2,
  <A, E, R, A2, E2, R2>(
    self: Effect.Effect<A, E, R>,
    handle: (error: DatabaseError) => Effect.Effect<A2, E2, R2>
  ): Effect.Effect<A | A2, Exclude<E, SqlError | DatabaseError> | E2, R | R2> =>
    Effect.catchAll(
      refine(self),
      (error): Effect.Effect<A2, Exclude<E, SqlError | DatabaseError> | E2, R2> =>
        isDatabaseError(error)
          ? handle(error)
          : // any other error belongs to the rest of E
            Effect.fail(error as Exclude<E, SqlError | DatabaseError>)
    )
)

/**
 * Answer to a request that failed because of a database, in the form of RFC 9457.
 *
 * It contains nothing of the server's message.
 *
 * @see {@link toProblem}, which returns it
 * @since 0.2.0
 * @category models
 */
export interface Problem {
  /** The kind of problem. By RFC 9457, `about:blank` adds nothing to the meaning of the status. */
  readonly type: "about:blank"
  /** The text for the client. */
  readonly title: string
  /** The status of the response. */
  readonly status: 409 | 500 | 503
}

const problem = (status: Problem["status"], title: string): Problem => ({ type: "about:blank", title, status })

const notStored = problem(500, "The request could not be stored")
const failed = problem(500, "The request failed")
const inDoubt = problem(
  503,
  "The database was lost while the request was stored: check if it is stored before you send it again"
)
const unreachable = problem(503, "The database is unavailable; nothing was stored: send the request again later")
const collided = problem(409, "The request conflicted with another one and was not stored: send it again")
const busy = problem(503, "The database is too busy; nothing was stored: send the request again later")

/**
 * Returns the answer to a request that failed because of a database:
 *
 * - 409 after a conflict with another transaction: the client may send the request again;
 * - 503 if the database was lost, is unavailable or too busy;
 * - 500 after a `PartialCommit`, and for errors that the program should have caught, such as a
 *   violated constraint.
 *
 * @see {@link toResponse} for a web response
 * @example
 * ```ts
 * import { DatabaseError } from "effect-db"
 *
 * declare const reply: (status: number, body: unknown) => void
 *
 * export const onError = (error: unknown) => {
 *   if (!DatabaseError.isDatabaseError(error)) throw error
 *   const problem = DatabaseError.toProblem(error)
 *   reply(problem.status, problem)
 * }
 * ```
 *
 * @since 0.2.0
 * @category responses
 */
export const toProblem = (error: DatabaseError): Problem => {
  switch (error._tag) {
    case "CommitOutcomeUnknown":
      return inDoubt
    case "PartialCommit":
      return problem(500, "The request was stored in part")
    case "Disconnected":
      return error.outcome === "inDoubt" ? inDoubt : unreachable
    case "ConnectFailed":
    case "PoolExhausted":
    case "DatabaseClosed":
      return unreachable
    case "StatementTimeout":
    case "LockTimeout":
    case "IdleTransactionTimeout":
    case "TransactionBusy":
    case "PoolSelfDeadlock":
    case "NoReplicaCaughtUp":
      return busy
    case "SerializationFailure":
    case "DeadlockDetected":
      return collided
    case "QueryFailed":
      return error.sqlState !== undefined && isStalePlan(error.sqlState, messageOf(error.cause))
        ? collided
        : statementProblem(error)
    case "CommitFailed":
    case "CommitVetoed":
    case "RolledBackAtCommit":
      return isDatabaseError(error.cause) ? toProblem(error.cause) : notStored
    default:
      return statementProblem(error)
  }
}

/**
 * Returns the answer for an error that the program should have caught. The answer to a read does not
 * mention storing.
 */
const statementProblem = (error: DatabaseError): Problem =>
  "sql" in error && error.sql !== undefined && isReadOnly(error.sql) ? failed : notStored

/**
 * Returns the web response to a request that failed because of a database: {@link toProblem} as
 * `application/problem+json`.
 *
 * @see `RequestTransaction.commitFailed` for a response of `@effect/platform`
 * @example
 * ```ts
 * import { HttpServerResponse } from "@effect/platform"
 * import { Effect } from "effect"
 * import { Database, DatabaseError } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const handler = Effect.flatMap(Db.reader, (sql) => sql`SELECT title FROM todo`).pipe(
 *   Effect.flatMap((rows) => HttpServerResponse.json(rows)),
 *   DatabaseError.catchAll((error) => Effect.succeed(HttpServerResponse.fromWeb(DatabaseError.toResponse(error))))
 * )
 * ```
 *
 * @since 0.2.0
 * @category responses
 */
export const toResponse = (error: DatabaseError): Response => {
  const answer = toProblem(error)
  return Response.json(answer, { status: answer.status, headers: { "content-type": "application/problem+json" } })
}
