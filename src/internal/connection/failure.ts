/**
 * Failures of the core as plain values. The core imports nothing of Effect at run time, so it
 * cannot construct the errors that a program receives; `edge` makes the errors from these values.
 */
import type * as Errors from "../../DatabaseError.js"

/** The exports of `DatabaseError`, where the name of an error class is its tag. */
type Classes = typeof Errors

type StatementTag = Errors.StatementError["_tag"]

/** The tags of the failures of COMMIT. */
type CommitTag = "CommitFailed" | "RolledBackAtCommit" | "CommitOutcomeUnknown"

/** The tags of the failures that the core makes. */
export type PlainTag = StatementTag | CommitTag

type FieldsOf<Class> = Class extends new (fields: infer Fields, ...options: never) => unknown ? Fields : never

/** The tags of failures that may follow from an earlier failure in the same transaction. */
type FollowingTag = "QueryFailed" | "TransactionEnded" | "CommitFailed" | "RolledBackAtCommit"

interface Following {
  /** The earlier failure, which becomes a cause of the error. */
  readonly earlier?: StatementFailure
}

/** Failures by their tags, with the fields of the error class of the same tag. */
export type PlainFailures = {
  readonly [Tag in PlainTag]: { readonly _tag: Tag } & FieldsOf<Classes[Tag]> &
    (Tag extends FollowingTag ? Following : unknown)
}

/** Failure with one of the given tags. */
export type PlainFailure<Tag extends PlainTag = PlainTag> = PlainFailures[Tag]

/** Failure of a statement. */
export type StatementFailure = PlainFailure<StatementTag>

/** Failure of a statement or of the end of a transaction. */
export type TransactionFailure = PlainFailure<StatementTag | CommitTag>

/** Failure of a checkout from a pool. No statement of the caller was sent. */
export type CheckoutFailure = PlainFailure<"ConnectFailed" | "PoolExhausted" | "PoolSelfDeadlock" | "DatabaseClosed">

/** Failure of a checkout from a source of connections, such as a replica selection. */
export type SourceFailure = CheckoutFailure | PlainFailure<"NoReplicaCaughtUp" | "TokenFromLostTimeline">
