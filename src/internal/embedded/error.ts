/**
 * The error of embedded servers.
 */
import * as Schema from "effect/Schema"

/**
 * Error of an operation on an embedded server.
 *
 * `reason` says what happened and what to do about it, `logs` are the last lines that the server
 * wrote. Neither they nor `cause` hold the cluster's password.
 *
 * @since 0.1.0
 * @category errors
 * @example
 * ```ts
 * import { EmbeddedPostgres } from "effect-db/EmbeddedPostgres"
 * import * as Console from "effect/Console"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.flatMap(EmbeddedPostgres, (postgres) => postgres.primary.promote).pipe(
 *   Effect.catchTag("EmbeddedPostgresError", (error) => Console.log(error.operation, error.server, error.reason)),
 *   Effect.provide(EmbeddedPostgres.layer())
 * )
 * ```
 */
export class EmbeddedPostgresError extends Schema.TaggedError<EmbeddedPostgresError>("effect-db/EmbeddedPostgresError")(
  "EmbeddedPostgresError",
  {
    operation: Schema.Literal(
      "configure",
      "install",
      "initialize",
      "start",
      "stop",
      "kill",
      "freeze",
      "thaw",
      "promote",
      "createDatabase",
      "dropDatabase",
      "awaitReplicas",
      "terminateBackends"
    ),
    server: Schema.optional(Schema.String),
    reason: Schema.String,
    logs: Schema.Array(Schema.String),
    cause: Schema.optional(Schema.Defect)
  }
) {
  override get message(): string {
    const server = this.server === undefined ? "" : ` (${this.server})`
    const logs = this.logs.length === 0 ? "" : `\n  ${this.logs.join("\n  ")}`
    return `EmbeddedPostgres ${this.operation}${server}: ${this.reason}${logs}`
  }
}

/** Name of an operation. */
export type Operation = EmbeddedPostgresError["operation"]
