/**
 * The end of a database of tests.
 */
import * as Reactivity from "@effect/experimental/Reactivity"
import * as Effect from "effect/Effect"
import type { DatabaseConfig } from "../../DatabaseConfig.js"
import { type DatabaseError, refine } from "../../DatabaseError.js"
import { isInUse } from "../../SqlState.js"
import type { NamedClass } from "../client/databaseNames.js"
import { openConfigured } from "../client/openDatabase.js"
import { makeListen } from "../listen/streams.js"
import { quoteIdentifier, quoteLiteral } from "../sql/quote.js"
import { withDatabase } from "./adminSettings.js"
import type { TestRun } from "./testRun.js"

/** Returns a function that drops a database with its connections, if it exists. */
export const makeDrop = (
  owner: NamedClass,
  admin: DatabaseConfig,
  query: TestRun["query"]
): Effect.Effect<(name: string) => Effect.Effect<void, DatabaseError>, never, Reactivity.Reactivity> =>
  Effect.map(Reactivity.Reactivity, (reactivity) => (name) => {
    const drop = Effect.asVoid(query(`DROP DATABASE IF EXISTS ${quoteIdentifier(name)} WITH (FORCE)`))
    /** A test in which a process "dies" between the two phases leaves prepared transactions. */
    const rollBackPrepared = Effect.gen(function* () {
      const left = yield* query<{ readonly gid: string }>(
        `SELECT gid FROM pg_prepared_xacts WHERE database = ${quoteLiteral(name)}`
      )
      if (left.length === 0) return
      // only a session in the database may end them
      const { writer } = yield* openConfigured(owner, withDatabase(admin, name), makeListen)
      yield* Effect.forEach(left, ({ gid }) => refine(writer.unsafe(`ROLLBACK PREPARED ${quoteLiteral(gid)}`)))
    }).pipe(Effect.scoped, Effect.provideService(Reactivity.Reactivity, reactivity))
    return Effect.catchIf(
      drop,
      (error) => error._tag === "QueryFailed" && isInUse(error.sqlState ?? ""),
      () => Effect.zipRight(rollBackPrepared, drop)
    )
  })
