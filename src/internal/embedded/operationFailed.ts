/**
 * The failure of an operation on embedded servers. `EmbeddedPostgres` converts it to its public
 * error.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type { EmbeddedPostgresError } from "../../EmbeddedPostgres.js"

/** Name of an operation. */
export type Operation = EmbeddedPostgresError["operation"]

/** Failure of an operation. `logs` are the last lines of the output of the server or program. */
export class OperationFailed extends Data.TaggedError("OperationFailed")<{
  readonly operation: Operation
  readonly server?: string | undefined
  readonly reason: string
  readonly logs: ReadonlyArray<string>
  readonly cause?: unknown
}> {}

/** Gives failures of the steps of an operation the name of the operation. */
export const inOperation =
  (operation: Operation) =>
  <A, R>(self: Effect.Effect<A, OperationFailed, R>): Effect.Effect<A, OperationFailed, R> =>
    Effect.mapError(
      self,
      ({ cause, logs, reason, server }) => new OperationFailed({ operation, server, reason, logs, cause })
    )
