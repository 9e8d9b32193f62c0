/**
 * The one place where failures of the core become errors of the library.
 */
import * as Errors from "../../DatabaseError.js"
import type { PlainFailure, PlainFailures, PlainTag, SourceFailure } from "../connection/failure.js"
import { messageOf, withoutLocation } from "../errors/messageParts.js"

/** Error of the library with the given tag. */
type ErrorOf<Tag extends PlainTag> = Extract<Errors.TransactionError, { readonly _tag: Tag }>

// the fields come from the core itself, so they need no validation
const trusted = { disableValidation: true } as const

/** Constructors of the errors, which have the tags as their names. */
const constructors: {
  readonly [Tag in PlainTag]: new (
    failure: PlainFailures[Tag],
    options: typeof trusted
  ) => ErrorOf<Tag>
} = Errors

/**
 * The tags of failed checkouts. Several callers may share such a failure, so each call builds a new
 * error for it.
 */
const checkoutTags: Readonly<Record<SourceFailure["_tag"], true>> = {
  ConnectFailed: true,
  DatabaseClosed: true,
  NoReplicaCaughtUp: true,
  PoolExhausted: true,
  PoolSelfDeadlock: true,
  TokenFromLostTimeline: true
}

/**
 * The errors that were built for failures other than those of checkouts. A transaction may report
 * such a failure again: by a later statement, by COMMIT, or as the cause of another failure. All
 * reports share one error, with the fields that were added to it later, such as its location.
 */
const errors = new WeakMap<PlainFailure, Errors.TransactionError>()

/** Returns the first line of a message; the others are about the statement. */
const firstLine = (cause: unknown): string => messageOf(cause).split("\n")[0] ?? ""

/**
 * Replaces the field `earlier` of a failure by a cause: the error of the earlier failure. If the
 * failure has a cause already, its new cause is an error with the messages of both, whose own cause
 * is the error of the earlier failure.
 */
const withCause = (failure: PlainFailure): PlainFailure => {
  if (!("earlier" in failure) || failure.earlier === undefined) return failure
  const { earlier, ...fields } = failure
  const first = toDatabaseError(earlier)
  if (fields.cause === undefined) return { ...fields, cause: first }
  const firstText = withoutLocation(firstLine(first), failure)
  const cause = new Error(`${firstLine(fields.cause)}; the first failure in it: ${firstText}`, { cause: first })
  return { ...fields, cause }
}

const construct = <Tag extends PlainTag>(tag: Tag, failure: PlainFailures[Tag]): ErrorOf<Tag> => {
  if (tag !== "PoolExhausted") return new constructors[tag](failure, trusted)
  // without a stack, because load shedding makes many of these errors, and the stack of a callback
  // has no frame of the caller
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  const error = new constructors[tag](failure, trusted)
  Error.stackTraceLimit = stackTraceLimit
  return error
}

/**
 * Builds the error of a failure by its tag. For the same failure of a statement or of a COMMIT,
 * returns the same error each time.
 */
export const toDatabaseError = <Failure extends PlainFailure>(failure: Failure): ErrorOf<Failure["_tag"]> => {
  type Tag = Failure["_tag"]
  // the casts: a failure has the fields of its tag, and its error has the tag, which TypeScript
  // cannot infer for a union
  const known = errors.get(failure) as ErrorOf<Tag> | undefined
  if (known !== undefined) return known
  const error = construct(failure._tag as Tag, withCause(failure) as PlainFailures[Tag])
  if (!(failure._tag in checkoutTags)) errors.set(failure, error)
  return error
}
