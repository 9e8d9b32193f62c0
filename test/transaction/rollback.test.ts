/**
 * Rollbacks that the pool sends by itself after a failed statement, so that the work around it can
 * go on. The network fails at that moment: the failure of the statement is returned soon all the
 * same, without a timeout in the settings.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { DatabaseError } from "effect-db"
import { describe } from "vitest"
import { active, Db } from "../support/databases.js"
import { makeProxy, sends } from "../support/proxy.js"
import { freshDatabase } from "../support/server.js"

const failing = (client: typeof Db.writer | typeof Db.reader) => Effect.flatMap(client, (sql) => sql`SELECT 1 / 0`)
const works = Effect.flatMap(Db.writer, (sql) => sql`SELECT 1`)

/**
 * Returns the tags of the failures: first that of the statement, then that of the work around it.
 */
const failures = (around: (statement: Effect.Effect<unknown, unknown, Db>) => Effect.Effect<unknown, unknown, Db>) => {
  const tags: Array<string> = []
  const noted = <A, E, R>(self: Effect.Effect<A, E, R>) =>
    Effect.tapError(self, (error) => Effect.sync(() => tags.push(DatabaseError.fromUnknown(error)._tag)))
  return (statement: Effect.Effect<unknown, unknown, Db>) =>
    Effect.as(Effect.ignore(noted(around(noted(statement)))), tags)
}

interface Case {
  readonly run: Effect.Effect<ReadonlyArray<string>, never, Db>
  /** The command of the rollback that gets no answer. */
  readonly undo: string
  /**
   * The number of earlier messages with the command `undo`. A read inside of a transaction is sent
   * with a `ROLLBACK TO` behind it, which the server skips if the read fails.
   */
  readonly before: number
  readonly expected: ReadonlyArray<string>
}

const cases: Readonly<Record<string, Case>> = {
  "a read on the primary": {
    run: failures((read) => read)(failing(Db.reader)),
    undo: "ROLLBACK",
    before: 0,
    expected: ["InvalidInput", "InvalidInput"]
  },
  "a read inside of a transaction": {
    run: failures((read) => Db.withTransaction(Effect.zipRight(works, Effect.ignore(read))))(failing(Db.reader)),
    undo: "ROLLBACK TO",
    before: 1,
    expected: ["InvalidInput", "Disconnected"]
  },
  "a statement whose failure a nested transaction ignores": {
    run: failures((statement) =>
      Db.withTransaction(
        Effect.zipRight(works, Effect.ignore(Db.withTransaction(Effect.zipRight(works, Effect.ignore(statement)))))
      )
    )(failing(Db.writer)),
    undo: "ROLLBACK TO",
    before: 0,
    expected: ["InvalidInput", "Disconnected"]
  }
}

describe("a failure whose rollback gets no answer", () => {
  for (const [name, { before, expected, run, undo }] of Object.entries(cases)) {
    it.scopedLive(`${name} fails with its own failure, though the rollback gets no answer`, () =>
      Effect.gen(function* () {
        const { writer } = yield* freshDatabase
        const proxy = yield* makeProxy(writer)
        yield* proxy.when(sends(undo), "pass", before)
        const sent = yield* proxy.when(sends(undo), "freeze")
        yield* Effect.gen(function* () {
          assert.deepStrictEqual(yield* Effect.timeout(Effect.zipLeft(run, sent), "3 seconds"), expected)
          assert.strictEqual(yield* active, 0)
          assert.lengthOf(yield* works, 1)
        }).pipe(Effect.provide(Db.layer({ writer: proxy.url })))
      })
    )
  }
})
