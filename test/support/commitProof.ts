/** COMMITs whose answers are lost, and what a program learns about them. */
import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { DatabaseError } from "effect-db"
import type { EmbeddedPostgres } from "effect-db/EmbeddedPostgres"
import { Db, insert, run } from "./databases.js"
import type { Message, Proxy } from "./proxy.js"

/** Writes of a row with the name `a`. One of them needs a function `add` in the database. */
export const writes: ReadonlyArray<readonly [name: string, write: Effect.Effect<unknown, unknown, Db>]> = [
  ["a text with several commands", run("INSERT INTO item VALUES ('a'); SELECT 1")],
  ["a DO", run("DO $$ BEGIN INSERT INTO item VALUES ('a'); END $$")],
  ["a function", run("SELECT add('a')")],
  [
    "a stream",
    Effect.flatMap(Db.writer, (sql) =>
      Stream.runDrain(sql<{ name: string }>`INSERT INTO item VALUES ('a') RETURNING name`.stream)
    )
  ],
  ["a COPY", Effect.flatMap(Db.writer, (sql) => sql.copyFrom("item", ["name"], Stream.make(["a"])))],
  ["a savepoint", Db.withTransaction(insert("a"))]
]

/** The command that creates the function `add`. */
export const createAdd = "CREATE FUNCTION add(text) RETURNS void LANGUAGE sql AS 'INSERT INTO item VALUES ($1)'"

/** Returns the outcome in an error, or its tag if it has none. */
export const outcomeOf = (given: unknown): string => {
  const error = DatabaseError.fromUnknown(given)
  return "outcome" in error ? error.outcome : error._tag
}

/** Runs a write, and returns `stored` or the outcome in its failure. */
export const endOf = <A, E, R>(write: Effect.Effect<A, E, R>): Effect.Effect<string, never, R> =>
  Effect.match(write, { onFailure: outcomeOf, onSuccess: () => "stored" })

/** Checks that an error is a CommitOutcomeUnknown, and returns it. */
export const asUnknown = (error: unknown): DatabaseError.CommitOutcomeUnknown =>
  error instanceof DatabaseError.CommitOutcomeUnknown ? error : assert.fail(`not in doubt: ${error}`)

/** Returns the CommitOutcomeUnknown that is the first failure in the cause of an exit. */
export const unknownIn = (exit: Exit.Exit<unknown, unknown>): DatabaseError.CommitOutcomeUnknown =>
  asUnknown(Exit.isFailure(exit) ? Chunk.toReadonlyArray(Cause.failures(exit.cause))[0] : undefined)

/**
 * Inserts a row in a transaction, ends the server when a message of the transaction is under way, and
 * starts the server again. Returns the end of the transaction.
 */
export const endAfterRestart = (
  { context, proxy }: { readonly context: Context.Context<Db>; readonly proxy: Proxy },
  server: EmbeddedPostgres.Server,
  stop: "kill" | "stop",
  name: string,
  point: (message: Message) => boolean
) =>
  Effect.gen(function* () {
    const gone = yield* proxy.when(point, "freeze")
    const fiber = yield* Effect.fork(endOf(Effect.provide(Db.withTransaction(insert(name)), context)))
    yield* gone
    yield* server[stop]
    yield* server.start
    yield* proxy.cut
    return yield* Fiber.join(fiber)
  })
