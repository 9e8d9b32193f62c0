/** Connections in use: the events that close them, and their use by one task at a time. */
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { DatabaseError } from "effect-db"
import { Db, insert, Place, pid, stored } from "../../databases.js"
import { eventually, turn } from "../../eventually.js"
import { taggedFailure } from "../../failures.js"
import { randoms } from "../../random.js"
import { query } from "../../server.js"
import { hold, kill, processes } from "./connections.js"
import { figures, only, settled, told, watch } from "./observations.js"
import { once, open, type Way } from "./way.js"

export const use = (way: Way): void => {
  it.scopedLive("an error of a statement does not close its connection", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const first = yield* pid
      yield* insert("x")
      yield* taggedFailure("UniqueViolation", insert("x"))
      yield* taggedFailure("UniqueViolation", Db.withTransaction(insert("x")))
      const { sqlState } = yield* taggedFailure("QueryFailed", sql`SELEC 1`)
      assert.strictEqual(sqlState, "42601")
      yield* taggedFailure("InvalidInput", sql`SELECT 1 / 0; SELECT 1`)
      yield* taggedFailure("InvalidInput", sql.unsafe("SELECT $1::int", [Symbol("no text form")]))
      assert.strictEqual(yield* pid, first)
    }).pipe(Effect.provide(open(way, { maxConnections: 1 })))
  )

  it.scopedLive("a connection whose session has become read-only is evicted as one of the wrong role", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const sql = yield* Db.writer
      const first = yield* pid
      // as in sessions that were open when the server was made read-only: the server reports the
      // change with its next answer
      yield* sql`SET default_transaction_read_only = on`
      yield* insert("a")
      yield* insert("b")
      assert.deepStrictEqual(yield* stored, ["a", "b"])
      assert.deepStrictEqual(
        (yield* told(facts, "Closed")).map(({ processId, reason }) => [processId, reason]),
        [[first, "wrongRole"]]
      )
      // a transaction that is read-only on request does not evict its connection
      const second = yield* pid
      yield* taggedFailure("ReadOnlyViolation", Db.withTransaction(insert("c"), { access: "read only" }))
      assert.strictEqual(yield* pid, second)
    }).pipe(Effect.provide([open(way, { maxConnections: 1 }), once]))
  )

  it.scopedLive("a standby in the place of the primary is ConnectFailed, wrongRole, and serves no caller", () =>
    Effect.gen(function* () {
      const { reader } = yield* Place
      yield* Effect.gen(function* () {
        const facts = yield* watch
        const { reason } = yield* taggedFailure("ConnectFailed", insert("a"))
        assert.strictEqual(reason, "wrongRole")
        assert.isEmpty(only(facts, "CheckedOut"))
      }).pipe(Effect.provide(Layer.orDie(Db.layer({ writer: reader, startup: "lazy", strategy: way.strategy }))))
    }).pipe(Effect.provide([open(way), once]))
  )

  it.scopedLive("a disconnect inside a transaction fails it until its end, and then the same client works again", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const outcome = yield* Effect.exit(
        sql.withTransaction(
          Effect.gen(function* () {
            yield* insert("lost")
            const before = yield* pid
            yield* kill(before)
            for (let i = 0; i < 3; i++) {
              const error = yield* taggedFailure("Disconnected", sql`SELECT 1`)
              assert.strictEqual(error.outcome, "undone")
            }
            return before
          })
        )
      )
      assert.isTrue(Exit.isFailure(outcome))
      yield* sql`INSERT INTO item (name) VALUES ('kept')`
      yield* sql.withTransaction(insert("kept, too"))
      assert.deepStrictEqual(yield* stored, ["kept", "kept, too"])
    }).pipe(Effect.provide(open(way, { maxConnections: 1 })))
  )

  it.scopedLive("the interruption of a statement closes neither its connection nor any other", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const sql = yield* Db.writer
      const other = way.strategy === "pooled" ? yield* hold : undefined
      const fiber = yield* Effect.fork(sql`SELECT pg_sleep(1000)`)
      const { name, writer } = yield* Place
      const [row] = yield* eventually(
        query<{ pid: number }>(
          writer,
          "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND query LIKE 'SELECT pg_sleep%' AND state = 'active'",
          [name]
        ),
        (rows) => rows.length === 1
      )
      yield* Fiber.interrupt(fiber)
      assert.strictEqual(yield* pid, row?.pid)
      assert.lengthOf(only(facts, "Closed"), 0)
      if (other !== undefined) {
        assert.include(yield* processes, other.pid)
        assert.isTrue(Exit.isSuccess(yield* other.release))
      }
    }).pipe(Effect.provide(open(way, { maxConnections: 2, startup: "lazy" })))
  )

  it.scopedLive(
    "no two of 200 fibers use a connection at the same time, with interruptions and killed connections",
    () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const busy = new Map<number, number>()
        const wrong: Array<string> = []
        let done = 0
        /** Runs a transaction that checks that its session has the mark of this task all along. */
        const task = (id: number, random: () => number) =>
          Db.withTransaction(
            Effect.gen(function* () {
              const [row] = yield* sql<{ pid: number }>`
                SELECT pg_backend_pid() AS pid, set_config('test.owner', ${String(id)}, true)`
              const process = row?.pid ?? 0
              yield* Effect.acquireUseRelease(
                Effect.sync(() => {
                  if (busy.has(process)) wrong.push(`${process} has ${busy.get(process)} and ${id}`)
                  busy.set(process, id)
                }),
                () =>
                  Effect.gen(function* () {
                    for (let i = 0; i < 3; i++) {
                      const [seen] = yield* sql<{ owner: string; n: number }>`
                        SELECT current_setting('test.owner') AS owner, ${id}::int AS n`
                      if (seen?.owner !== String(id) || seen.n !== id) wrong.push(`${id} saw ${JSON.stringify(seen)}`)
                      if (random() < 0.2) yield* turn
                    }
                    const fate = random()
                    if (fate < 0.04) yield* sql`SELECT pg_terminate_backend(pg_backend_pid())`
                    if (fate < 0.15) yield* sql`SELECT 1 / 0`
                  }),
                () => Effect.sync(() => void busy.delete(process))
              )
              done++
            })
          )
        yield* Effect.forEach(
          Array.from({ length: 200 }, (_, i) => i),
          (id) =>
            Effect.gen(function* () {
              const random = randoms(id)
              for (let i = 0; i < 3; i++) {
                const fiber = yield* Effect.fork(task(id, random))
                if (random() < 0.2) {
                  for (let n = random() * 30; n > 0; n--) yield* turn
                  yield* Fiber.interrupt(fiber)
                }
                const exit = yield* Fiber.await(fiber)
                if (Exit.isSuccess(exit) || Cause.isInterruptedOnly(exit.cause)) continue
                for (const defect of Cause.defects(exit.cause)) wrong.push(`defect ${String(defect)}`)
                for (const error of Cause.failures(exit.cause)) {
                  const { _tag } = DatabaseError.fromUnknown(error)
                  if (_tag !== "InvalidInput" && _tag !== "Disconnected") wrong.push(`${id}: ${String(error)}`)
                }
              }
            }),
          { concurrency: "unbounded", discard: true }
        )
        assert.deepStrictEqual(wrong, [])
        assert.isAbove(done, 300)
        yield* settled({ active: 0, waiting: 0 })
        assert.isAtMost((yield* figures).total, way.strategy === "pooled" ? 8 : 1)
      }).pipe(
        // without load shedding, which may refuse callers on a busy machine
        Effect.provide(open(way, { maxConnections: 8, queueTarget: "1 hour" }))
      ),
    60_000
  )
}
