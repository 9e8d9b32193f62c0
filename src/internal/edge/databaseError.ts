/**
 * The one place where failures of the core become errors of the library.
 */
import * as Errors from "../../DatabaseError.js"
import type { PlainFailure, PlainFailures, PlainTag } from "../connection/plainFailure.js"

/** Error of the library with the given tag. */
type ErrorOf<Tag extends PlainTag> = Extract<Errors.StatementError, { readonly _tag: Tag }>

// the fields come from the core itself, so they need no validation
const trusted = { disableValidation: true } as const

/** Constructors of the errors, which have the tags as their names. */
const constructors: {
  readonly [Tag in PlainTag]: new (
    failure: PlainFailures[Tag],
    options: typeof trusted
  ) => ErrorOf<Tag>
} = Errors

const construct = <Tag extends PlainTag>(tag: Tag, failure: PlainFailures[Tag]): ErrorOf<Tag> => {
  if (tag !== "PoolExhausted") return new constructors[tag](failure, trusted)
  // load shedding makes many of these, and the stack of a callback has no frame of the caller
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  const error = new constructors[tag](failure, trusted)
  Error.stackTraceLimit = stackTraceLimit
  return error
}

/** Builds the error of a failure by its tag. */
export const toDatabaseError = <Failure extends PlainFailure>(failure: Failure): ErrorOf<Failure["_tag"]> =>
  // the casts: a failure has the fields of its tag, which TypeScript cannot infer for a union
  construct(failure._tag as Failure["_tag"], failure as PlainFailures[Failure["_tag"]])

/** Builds the error of a failure, unless it is one already. */
export const asStatementError = (failure: PlainFailure | Errors.StatementError): Errors.StatementError =>
  Errors.isDatabaseError(failure) ? failure : toDatabaseError(failure)
