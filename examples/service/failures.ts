import { HttpApiSchema, HttpServerResponse } from "@effect/platform"
import { Effect, Schema } from "effect"
import { DatabaseError, RetryPolicy } from "effect-db"
import { Audit } from "./databases.js"

/**
 * The outcome of a change that was answered with an error.
 *
 * - `no`: nothing is stored; send it again.
 * - `partly`: the change is not stored, but its audit event may be; send it again.
 * - `unknown`: the outcome is unknown; check before you send it again.
 */
const Stored = Schema.Literal("no", "partly", "unknown")

const advice = {
  no: "nothing is stored, send it again",
  partly: "the change is not stored, but its audit event may be; send it again",
  unknown: "it may be stored or not; check before you send it again"
} as const

export class Unavailable extends Schema.TaggedError<Unavailable>()(
  "Unavailable",
  { message: Schema.String, reason: Schema.String, stored: Stored },
  HttpApiSchema.annotations({ status: 503, description: "A database is out of reach, or too busy" })
) {
  static because(reason: string, stored: typeof Stored.Type): Unavailable {
    return new Unavailable({ message: `the service cannot do this now (${reason}): ${advice[stored]}`, reason, stored })
  }
}

export class Broken extends Schema.TaggedError<Broken>()(
  "Broken",
  { message: Schema.String },
  HttpApiSchema.annotations({ status: 500, description: "A fault of the service; its log says more" })
) {}

export const broken = new Broken({ message: "the service has a fault; its log says more" })

const stored = (error: DatabaseError.DatabaseError): typeof Stored.Type => {
  switch (error._tag) {
    case "CommitOutcomeUnknown":
      // the audit commits first, so the change itself has been rolled back
      return error.database === Audit.databaseName ? "partly" : "unknown"
    case "PartialCommit":
      // the event was committed; the change was rolled back, or its outcome is unknown
      return error.outcome === "unknown" ? "unknown" : "partly"
    case "Disconnected":
      return error.outcome === "inDoubt" ? "unknown" : "no"
    default:
      return "no"
  }
}

const passing = new Set<DatabaseError.DatabaseError["_tag"]>([
  "ConnectFailed",
  "PoolExhausted",
  "PoolSelfDeadlock",
  "DatabaseClosed",
  "Disconnected",
  "CommitOutcomeUnknown",
  "PartialCommit",
  "StatementTimeout",
  "LockTimeout",
  "IdleTransactionTimeout"
])

/** The part of a database failure that the client receives. The server's own text stays in the log. */
export const fromDatabase = (error: DatabaseError.DatabaseError): Unavailable | Broken =>
  passing.has(error._tag) || RetryPolicy.isReplayable(error) ? Unavailable.because(error._tag, stored(error)) : broken

/** Turns the failures of databases into those of the API. Fails with `Unavailable` after six seconds. */
export const answer = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  DatabaseError.refine(self).pipe(
    Effect.timeoutFail({ duration: "6 seconds", onTimeout: () => Unavailable.because("Timeout", "no") }),
    Effect.catchIf(DatabaseError.isDatabaseError, (error) =>
      Effect.zipRight(Effect.logError(error.message), Effect.fail(fromDatabase(error)))
    )
  )

export const encode = Schema.encodeSync(Schema.Union(Unavailable, Broken))

/** Makes the response for a failure outside of the handlers. */
export const respond = (error: Unavailable | Broken): HttpServerResponse.HttpServerResponse =>
  HttpServerResponse.unsafeJson(encode(error), { status: error._tag === "Unavailable" ? 503 : 500 })

export const brokenResponse = respond(broken)
