/**
 * Every failure of this library, tagged. `catchTag("UniqueViolation", ...)` works after {@link refine}.
 *
 * @since 0.1.0
 */
import { SqlError } from "@effect/sql/SqlError"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import * as messages from "./internal/errors/messages.js"
import { messageOf } from "./internal/errors/parts.js"
import { isReadOnly } from "./internal/sql/commands.js"
import { isStalePlan } from "./SqlState.js"

/**
 * @since 0.1.0
 * @category type ids
 */
export const TypeId: unique symbol = Symbol.for("~effect-db/DatabaseError")

/**
 * @since 0.1.0
 * @category type ids
 */
export type TypeId = typeof TypeId

const place = {
  /** The name of the database. */
  database: Schema.String,
  /** The server, as `host:port`; empty where no server took part. */
  server: Schema.String,
  /** What caused it, without secrets. */
  cause: Schema.optional(Schema.Defect)
}

const ran = {
  ...place,
  /** The text of the statement, with `$1` in place of values. */
  sql: Schema.optional(Schema.String),
  /** The place in the program that ran it, where that is known: function, file, line and column, or the span around it. */
  location: Schema.optional(Schema.String)
}

/** Fields of a refused statement, as the server names them. */
const refused = {
  ...ran,
  /** Where in the text of the statement the server has found the fault: characters, from 1. */
  position: Schema.optional(Schema.Number),
  /** What the server was doing, the innermost first: functions and triggers. What may hold values is left out. */
  where: Schema.optional(Schema.String),
  hint: Schema.optional(Schema.String)
}

/** Of failures after which the work may be run again. */
const replayable = {
  /**
   * Set if the work was run again in vain: the number of attempts, and what ended them, the `schedule` or the `budget` of the database.
   */
  retried: Schema.optional(Schema.Struct({ attempts: Schema.Number, endedBy: Schema.Literal("schedule", "budget") }))
}

const violation = {
  ...refused,
  schema: Schema.optional(Schema.String),
  table: Schema.optional(Schema.String),
  column: Schema.optional(Schema.String),
  dataType: Schema.optional(Schema.String),
  constraint: Schema.optional(Schema.String),
  detail: Schema.optional(Schema.String)
}

const limited = { ...refused, /** What the server said, with the limit. */ limit: Schema.String }

/**
 * The number of attempts that failed, and what ended them: the `schedule` of the retry, or the `budget` of the database for retries.
 *
 * @since 0.2.0
 * @category models
 */
export interface Retried {
  readonly attempts: number
  readonly endedBy: "schedule" | "budget"
}

const OutcomeSchema = Schema.Literal("notSent", "undone", "inDoubt")

/**
 * A setting is wrong. `given` never holds a secret; `database` is empty where it is of no one database.
 *
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
    return messages.configInvalid(this)
  }
}

/**
 * No connection could be made.
 *
 * @since 0.1.0
 * @category errors
 */
export class ConnectFailed extends Schema.TaggedError<ConnectFailed>("effect-db/ConnectFailed")("ConnectFailed", {
  ...place,
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
    "protocol"
  ),
  /** Set where another attempt meets it again, although its reason may pass: for `credentials`, a password file that others may read. */
  permanent: Schema.optional(Schema.Boolean)
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.connectFailed(this)
  }
}

/**
 * No connection became free in time (`timeout`); or it was not worth the wait, because for a while more callers have come than can be
 * served (`shed`); or the server is away, and `maxOutageWaiters` callers wait for it already (`outage`); or there is one already where the
 * strategy is `assertSingle` (`single`). Times are in milliseconds.
 *
 * @since 0.1.0
 * @category errors
 */
export class PoolExhausted extends Schema.TaggedError<PoolExhausted>("effect-db/PoolExhausted")("PoolExhausted", {
  ...place,
  reason: Schema.Literal("timeout", "shed", "single", "outage"),
  waited: Schema.Number,
  total: Schema.Number,
  active: Schema.Number,
  idle: Schema.Number,
  waiting: Schema.Number,
  /** How many connects are under way, and how long the one begun first has been so far, in ms; if there are any. */
  connecting: Schema.optional(Schema.Struct({ count: Schema.Number, longest: Schema.Number })),
  /** The last failure to connect, if there was one since the last success. */
  lastConnectFailure: Schema.optional(Schema.String),
  /** Who holds a connection for longest, where `leakThreshold` or `assertSingle` had it noted down. */
  oldestLoan: Schema.optional(
    Schema.Struct({
      held: Schema.Number,
      fiber: Schema.optional(Schema.String),
      place: Schema.optional(Schema.String)
    })
  )
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.poolExhausted(this)
  }
}

/**
 * The database's layer has been released, or is being released; or, where it is opened by hand, it is not open yet.
 *
 * @since 0.1.0
 * @category errors
 */
export class DatabaseClosed extends Schema.TaggedError<DatabaseClosed>("effect-db/DatabaseClosed")("DatabaseClosed", {
  ...place,
  notYet: Schema.optional(Schema.Boolean)
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.databaseClosed(this)
  }
}

/**
 * A connection was lost. `outcome` says what became of the work.
 *
 * @since 0.1.0
 * @category errors
 */
export class Disconnected extends Schema.TaggedError<Disconnected>("effect-db/Disconnected")("Disconnected", {
  ...ran,
  ...replayable,
  outcome: OutcomeSchema
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.disconnected(this)
  }
}

/**
 * 23505: a unique constraint refuses the row.
 *
 * @since 0.1.0
 * @category errors
 */
export class UniqueViolation extends Schema.TaggedError<UniqueViolation>("effect-db/UniqueViolation")(
  "UniqueViolation",
  violation
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.violation(this)
  }
}

/**
 * 23503: a foreign key refuses the row.
 *
 * @since 0.1.0
 * @category errors
 */
export class ForeignKeyViolation extends Schema.TaggedError<ForeignKeyViolation>("effect-db/ForeignKeyViolation")(
  "ForeignKeyViolation",
  violation
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.violation(this)
  }
}

/**
 * 23514: a check constraint refuses the row.
 *
 * @since 0.1.0
 * @category errors
 */
export class CheckViolation extends Schema.TaggedError<CheckViolation>("effect-db/CheckViolation")(
  "CheckViolation",
  violation
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.violation(this)
  }
}

/**
 * 23502: a column must not be null.
 *
 * @since 0.1.0
 * @category errors
 */
export class NotNullViolation extends Schema.TaggedError<NotNullViolation>("effect-db/NotNullViolation")(
  "NotNullViolation",
  violation
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.violation(this)
  }
}

/**
 * 23P01: an exclusion constraint refuses the row.
 *
 * @since 0.1.0
 * @category errors
 */
export class ExclusionViolation extends Schema.TaggedError<ExclusionViolation>("effect-db/ExclusionViolation")(
  "ExclusionViolation",
  violation
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.violation(this)
  }
}

/**
 * 40001, or a read that a standby has cancelled for what it had to replay: run the whole transaction again, or give it `{ retry }`. A
 * reader's statement outside of a transaction is tried again on another server first.
 *
 * @since 0.1.0
 * @category errors
 */
export class SerializationFailure extends Schema.TaggedError<SerializationFailure>("effect-db/SerializationFailure")(
  "SerializationFailure",
  { ...refused, ...replayable }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.collision(this)
  }
}

/**
 * 40P01: run the whole transaction again, or give it `{ retry }`.
 *
 * @since 0.1.0
 * @category errors
 */
export class DeadlockDetected extends Schema.TaggedError<DeadlockDetected>("effect-db/DeadlockDetected")(
  "DeadlockDetected",
  { ...refused, ...replayable, detail: Schema.optional(Schema.String) }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.collision(this)
  }
}

/**
 * The server cancelled a statement: its `statement_timeout` passed, or an administrator asked for it.
 *
 * @since 0.1.0
 * @category errors
 */
export class StatementTimeout extends Schema.TaggedError<StatementTimeout>("effect-db/StatementTimeout")(
  "StatementTimeout",
  limited
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.statementTimeout(this)
  }
}

/**
 * A lock was not free in time (`lock_timeout`, or NOWAIT).
 *
 * @since 0.1.0
 * @category errors
 */
export class LockTimeout extends Schema.TaggedError<LockTimeout>("effect-db/LockTimeout")("LockTimeout", limited) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.lockTimeout(this)
  }
}

/**
 * The server ended a transaction that was idle, or open, for too long. It is rolled back.
 *
 * @since 0.1.0
 * @category errors
 */
export class IdleTransactionTimeout extends Schema.TaggedError<IdleTransactionTimeout>(
  "effect-db/IdleTransactionTimeout"
)("IdleTransactionTimeout", limited) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.idleTransactionTimeout(this)
  }
}

/**
 * 25006: a write where none may be. `reason` says what refuses it: the `reader`, a `transaction` that was begun read-only, or the `server`,
 * which is a standby, or was made read-only.
 *
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
    return messages.readOnlyViolation(this)
  }
}

/**
 * Class 22: a value that the server cannot take, or cannot compute with. It is no number, date or JSON, is out of range or too long, or divides
 * by zero.
 *
 * @since 0.2.0
 * @category errors
 */
export class InvalidInput extends Schema.TaggedError<InvalidInput>("effect-db/InvalidInput")("InvalidInput", {
  ...violation,
  sqlState: Schema.String
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.queryFailed(this)
  }
}

/**
 * Any other refusal of a statement. `sqlState` is absent where the statement could not even be sent.
 *
 * What follows a failure in the same transaction is refused as well (25P02): the cause of its cause is that first failure.
 *
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
    return messages.queryFailed(this)
  }
}

/**
 * The server refused COMMIT, for example for a deferred constraint. Everything is rolled back.
 *
 * `cause` is the refusal, itself a {@link DatabaseError}.
 *
 * @since 0.1.0
 * @category errors
 */
export class CommitFailed extends Schema.TaggedError<CommitFailed>("effect-db/CommitFailed")("CommitFailed", {
  ...place,
  sqlState: Schema.String
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.commitFailed(this)
  }
}

/**
 * A `beforeCommit` hook failed, so the transaction was rolled back. `cause` is the hook's failure.
 *
 * @since 0.1.0
 * @category errors
 */
export class CommitVetoed extends Schema.TaggedError<CommitVetoed>("effect-db/CommitVetoed")("CommitVetoed", place) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.commitVetoed(this)
  }
}

/**
 * The end of a transaction kept nothing: COMMIT was answered with ROLLBACK, because a statement had failed earlier and its failure was
 * ignored; or a part that had joined the transaction ended in rollback after it had sent a writer's statement, and the whole went on.
 *
 * `cause` is the failure of the statement or of the part, if it was seen. `part` is the label of the part, else where it was written.
 *
 * @since 0.1.0
 * @category errors
 */
export class RolledBackAtCommit extends Schema.TaggedError<RolledBackAtCommit>("effect-db/RolledBackAtCommit")(
  "RolledBackAtCommit",
  { ...place, part: Schema.optional(Schema.String) }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.rolledBackAtCommit(this)
  }
}

/**
 * The connection was lost after COMMIT was handed to the socket: the transaction may be stored, or not.
 *
 * @since 0.1.0
 * @category errors
 */
export class CommitOutcomeUnknown extends Schema.TaggedError<CommitOutcomeUnknown>("effect-db/CommitOutcomeUnknown")(
  "CommitOutcomeUnknown",
  {
    ...place,
    xid: Schema.optional(Schema.String),
    systemId: Schema.optional(Schema.String),
    timeline: Schema.optional(Schema.Number)
  }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.commitOutcomeUnknown(this)
  }
}

/**
 * A client was used in a transaction that has ended, for example by a fiber that outlived it; or a statement has ended its own transaction.
 *
 * `by` is then the command of that statement: after `COMMIT` what was done before it is stored, after `ROLLBACK` it is undone. Such a
 * transaction never runs again by `retry`.
 *
 * @since 0.1.0
 * @category errors
 */
export class TransactionEnded extends Schema.TaggedError<TransactionEnded>("effect-db/TransactionEnded")(
  "TransactionEnded",
  { ...place, by: Schema.optional(Schema.Literal("COMMIT", "ROLLBACK")) }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.transactionEnded(this)
  }
}

/**
 * The program interrupted a statement inside of a transaction, for example by `Effect.timeout`, and went on. What the statement did is
 * unknown, so its transaction is rolled back: the innermost nested one, if the server answered the cancel in time, else the whole. Where the
 * end of a nested one was interrupted, its savepoint is released already, and the transaction around it is rolled back.
 *
 * It never runs again by `retry`: the next run would be interrupted in the same way.
 *
 * @since 0.2.0
 * @category errors
 */
export class TransactionInterrupted extends Schema.TaggedError<TransactionInterrupted>(
  "effect-db/TransactionInterrupted"
)("TransactionInterrupted", {
  ...place,
  /** The text of the statement, without the values of its parameters. */
  statement: Schema.String,
  /** Function, file, line and column of the statement, where call sites are noted down (`leakThreshold`). */
  callSite: Schema.optional(Schema.String)
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.transactionInterrupted(this)
  }
}

/**
 * A statement, or the end, of a transaction waited for `acquireTimeout` while a nested transaction of it, or another end, did not end.
 * Siblings take turns, each from its first statement to its end, so a nested transaction must not wait for what runs beside it. An end that
 * has waited so is a rollback. `waited` is in milliseconds; it is 0 where a transaction was to be committed while something in it, or
 * another end of it, was under way.
 *
 * @since 0.1.0
 * @category errors
 */
export class TransactionBusy extends Schema.TaggedError<TransactionBusy>("effect-db/TransactionBusy")(
  "TransactionBusy",
  {
    ...place,
    waited: Schema.Number
  }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.transactionBusy(this)
  }
}

/**
 * No replica had what the read was to see within the time that it was given, and the primary was not to be read instead. `unproved` are the
 * servers of which it cannot be told how far they are.
 *
 * @since 0.1.0
 * @category errors
 */
export class NoReplicaCaughtUp extends Schema.TaggedError<NoReplicaCaughtUp>("effect-db/NoReplicaCaughtUp")(
  "NoReplicaCaughtUp",
  {
    database: Schema.String,
    /** In milliseconds. */
    waited: Schema.Number,
    unproved: Schema.Array(Schema.String)
  }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.noReplicaCaughtUp(this)
  }
}

/**
 * A token tells of a history that is not that of the database any more: there was a failover, and what the token tells of may have been lost
 * with the old primary. Or it is a token of another database.
 *
 * @since 0.1.0
 * @category errors
 */
export class TokenFromLostTimeline extends Schema.TaggedError<TokenFromLostTimeline>("effect-db/TokenFromLostTimeline")(
  "TokenFromLostTimeline",
  {
    ...place,
    /** Of the token. */
    timeline: Schema.Number
  }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.tokenFromLostTimeline(this)
  }
}

/**
 * A client that is not of this library was used inside one of our transactions; it would have run on our connection.
 *
 * @since 0.1.0
 * @category errors
 */
export class ForeignClient extends Schema.TaggedError<ForeignClient>("effect-db/ForeignClient")(
  "ForeignClient",
  place
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.foreignClient(this)
  }
}

/**
 * What was asked for is not possible here: propagation `mandatory` without a transaction, `never` inside of one, `Db.commit` and
 * `Db.rollback` inside of `withTransaction`, which ends its transaction itself.
 *
 * @since 0.1.0
 * @category errors
 */
export class PropagationRefused extends Schema.TaggedError<PropagationRefused>("effect-db/PropagationRefused")(
  "PropagationRefused",
  { ...place, propagation: Schema.Literal("mandatory", "never", "commit", "rollback") }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.propagationRefused(this)
  }
}

/**
 * A part asks for something that the transaction, or the unit of work, which it is to join cannot be: its isolation once a statement was
 * sent, its access, a limit, the order of commits, or to be run again (`retry`).
 *
 * @since 0.1.0
 * @category errors
 */
export class OptionsConflict extends Schema.TaggedError<OptionsConflict>("effect-db/OptionsConflict")(
  "OptionsConflict",
  {
    ...place,
    option: Schema.String,
    outer: Schema.String,
    inner: Schema.String
  }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.optionsConflict(this)
  }
}

/**
 * A new transaction would wait for a connection of a pool whose connections are all held by transactions that wait in the
 * same way, this one's outer transaction among them.
 *
 * @since 0.1.0
 * @category errors
 */
export class PoolSelfDeadlock extends Schema.TaggedError<PoolSelfDeadlock>("effect-db/PoolSelfDeadlock")(
  "PoolSelfDeadlock",
  { ...place, maxConnections: Schema.Number }
) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.poolSelfDeadlock(this)
  }
}

/**
 * A unit of work over several databases ended in the middle: `committed` are stored, `rolledBack` are not, and `failed` is as `outcome`
 * says.
 *
 * @since 0.1.0
 * @category errors
 */
export class PartialCommit extends Schema.TaggedError<PartialCommit>("effect-db/PartialCommit")("PartialCommit", {
  ...place,
  committed: Schema.Array(Schema.String),
  failed: Schema.String,
  /** What became of the one that failed: `unknown` where the connection was lost during its COMMIT. */
  outcome: Schema.Literal("rolledBack", "unknown"),
  rolledBack: Schema.Array(Schema.String)
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.partialCommit(this)
  }
}

/**
 * The name of a channel or a payload that NOTIFY cannot carry. Nothing was sent.
 *
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
    return messages.notificationInvalid(this)
  }
}

/**
 * The schema of a scope, by `withSchema` or `withTenant`, that cannot be one, or where there can be none. Nothing was sent.
 *
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
    return messages.schemaInvalid(this)
  }
}

/**
 * The data of a COPY was refused, and nothing of it is stored. `cause` is the refusal, itself a {@link DatabaseError} where the server
 * refused it. What has no line, as a foreign key that is checked at the end, is the refusal itself instead.
 *
 * @since 0.2.0
 * @category errors
 */
export class CopyFailed extends Schema.TaggedError<CopyFailed>("effect-db/CopyFailed")("CopyFailed", {
  ...ran,
  /** The table, as it was given. */
  table: Schema.String,
  /** The line of the data, or the row, counted from 1. */
  line: Schema.Number,
  column: Schema.optional(Schema.String)
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.copyFailed(this, isDatabaseError(this.cause) ? (this.cause.cause ?? this.cause) : this.cause)
  }
}

/**
 * A listener cannot go on. `cause` is how the connection was lost, where it was.
 *
 * - `disconnected`: the connection was lost. `Db.listen` survives that, with a `Gap`, for as long as another attempt may help; the
 *   `listen` of a client does not, for a stream of payloads has no other way to say that some may have been missed.
 * - `overflow`: of the `listen` of a client only, for the same reason.
 *
 * @since 0.1.0
 * @category errors
 */
export class ListenFailed extends Schema.TaggedError<ListenFailed>("effect-db/ListenFailed")("ListenFailed", {
  ...place,
  channel: Schema.String,
  reason: Schema.Literal("disconnected", "overflow")
}) {
  readonly [TypeId]: TypeId = TypeId
  override get message(): string {
    return messages.listenFailed(this)
  }
}

/**
 * Every failure of this library.
 *
 * @since 0.1.0
 * @category models
 */
export type DatabaseError = StartupError | StatementError | TransactionError | ListenError | ForeignClient

/**
 * What opening a database can fail with.
 *
 * @since 0.1.0
 * @category models
 */
export type StartupError = ConfigInvalid | ConnectFailed

/**
 * What a single statement can fail with; it is the `cause` of the `SqlError` of a client.
 *
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
 * What a listener can fail with. Before it hears: as a statement, or `ConfigInvalid` where the settings lead to a pooler behind which
 * nothing can be heard. Then: `ListenFailed`, or `DatabaseClosed` where the layer is released.
 *
 * @since 0.1.0
 * @category models
 */
export type ListenError = StatementError | NotificationInvalid | ConfigInvalid | ListenFailed

/**
 * What beginning and ending a transaction can fail with, beside the failures of its statements. `ConfigInvalid` is for an option whose name is
 * not known, which only a program without types can give.
 *
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
 * Whether a value is a failure of this library.
 *
 * @since 0.1.0
 * @category guards
 */
export const isDatabaseError = (u: unknown): u is DatabaseError => Predicate.hasProperty(u, TypeId)

/**
 * The ecosystem's error around one of ours.
 *
 * @since 0.1.0
 * @category conversions
 */
export const toSqlError = (error: DatabaseError): SqlError => new SqlError({ cause: error, message: error.message })

/** Our failure in a chain of causes: libraries such as drizzle put errors of their own around it. */
const inside = (cause: unknown): DatabaseError | undefined => {
  const seen = new Set<unknown>()
  for (let one = cause; !seen.has(one); one = Predicate.hasProperty(one, "cause") ? one.cause : undefined) {
    if (isDatabaseError(one)) return one
    seen.add(one)
  }
  return undefined
}

/**
 * The failure inside of a `SqlError`, however deep; one of another client becomes `QueryFailed` of the database `"unknown"`.
 *
 * @since 0.1.0
 * @category conversions
 */
export const fromSqlError = (error: SqlError): DatabaseError =>
  inside(error.cause) ?? new QueryFailed({ database: "unknown", server: "", cause: error.cause ?? error })

/**
 * Any failure as one of ours.
 *
 * @internal
 */
export const fromUnknown = (error: unknown): DatabaseError =>
  error instanceof SqlError
    ? fromSqlError(error)
    : isDatabaseError(error)
      ? error
      : new QueryFailed({ database: "unknown", server: "", cause: error })

/** The failure of ours that a cause ends with: a failure, or, where there is no other, what a program has died of. */
const refined = <E>(cause: Cause.Cause<E>): Cause.Cause<Exclude<E, SqlError> | DatabaseError> => {
  if (Cause.isFailure(cause)) {
    return Cause.map(cause, (error) =>
      error instanceof SqlError
        ? fromSqlError(error)
        : // whatever is not a SqlError is of the rest of E
          (error as Exclude<E, SqlError>)
    )
  }
  const known = Array.from(Cause.defects(cause), inside)
  const [first] = known
  // a defect of the program itself is not to be hidden behind one of ours
  const isOurs = first !== undefined && !known.includes(undefined)
  // without failures it is a cause of any
  return isOurs ? Cause.fail(first) : (cause as Cause.Cause<never>)
}

/**
 * Replaces `SqlError` by what it says, so that a program can catch one kind of failure by its tag. What a program has died of is a failure
 * again if its cause is of this library, as where `Model` of `@effect/sql` dies of a `SqlError`.
 *
 * @example
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
 *
 * @see {@link catchAll} to handle all failures of databases at once.
 * @since 0.1.0
 * @category combinators
 */
export const refine = <A, E, R>(
  self: Effect.Effect<A, E, R>
): Effect.Effect<A, Exclude<E, SqlError> | DatabaseError, R> =>
  Effect.catchAllCause(self, (cause) => Effect.failCause(refined(cause)))

/**
 * Handles all failures of databases, as `SqlError` or refined, failed with or died of, and leaves the program's own failures as they are.
 *
 * @example
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
 *
 * @see {@link toResponse} for an answer to a request.
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
          : // what is neither is of the rest of E
            Effect.fail(error as Exclude<E, SqlError | DatabaseError>)
    )
)

/**
 * An answer to a request that a failure of a database has ended, as RFC 9457 has it. It shows nothing of what the database said.
 *
 * @since 0.2.0
 * @category models
 */
export interface Problem {
  readonly type: "about:blank"
  readonly title: string
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
 * Returns what is answered to a request that a failure of a database has ended:
 *
 * - 409 where it collided with another one: it may simply be sent again;
 * - 503 where the database was lost, cannot be reached, or is too busy;
 * - 500 for all that the program has to catch, such as a violated constraint.
 *
 * @example
 * import { DatabaseError } from "effect-db"
 *
 * declare const reply: (status: number, body: unknown) => void
 *
 * export const onError = (error: unknown) => {
 *   if (!DatabaseError.isDatabaseError(error)) throw error
 *   const problem = DatabaseError.toProblem(error)
 *   reply(problem.status, problem)
 * }
 *
 * @see {@link toResponse} for a web response.
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
        : ofStatement(error)
    case "CommitFailed":
    case "CommitVetoed":
    case "RolledBackAtCommit":
      return isDatabaseError(error.cause) ? toProblem(error.cause) : notStored
    default:
      return ofStatement(error)
  }
}

/** Returns the answer to a request that the program has to catch the failure of: if a read has failed, storing was not what failed. */
const ofStatement = (error: DatabaseError): Problem =>
  "sql" in error && error.sql !== undefined && isReadOnly(error.sql) ? failed : notStored

/**
 * Returns the web response to a request that a failure of a database has ended: {@link toProblem} as `application/problem+json`. For
 * `@effect/platform` it is `RequestTransaction.commitFailed`.
 *
 * @example
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
 *
 * @since 0.2.0
 * @category responses
 */
export const toResponse = (error: DatabaseError): Response => {
  const answer = toProblem(error)
  return Response.json(answer, { status: answer.status, headers: { "content-type": "application/problem+json" } })
}
