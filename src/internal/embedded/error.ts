/**
 * The failure of an operation on embedded servers. `EmbeddedPostgres` makes its public error of it.
 */
import * as Data from "effect/Data"
import type { EmbeddedPostgresError } from "../../EmbeddedPostgres.js"

/** Name of an operation. */
export type Operation = EmbeddedPostgresError["operation"]

/** Failure of an operation; `logs` are the last lines of the server. */
export class OperationFailed extends Data.TaggedError("OperationFailed")<{
  readonly operation: Operation
  readonly server?: string | undefined
  readonly reason: string
  readonly logs: ReadonlyArray<string>
  readonly cause?: unknown
}> {}
