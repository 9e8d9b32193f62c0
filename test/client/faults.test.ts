/**
 * Faults on demand: each happens at the server and statement that it names, and as a user would see it.
 */
import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { EmbeddedPostgres, TestDatabase } from "effect-db"
import { describe } from "vitest"
import { Db, fresh, insert, look, pid, run, setting } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually } from "../support/eventually.js"
import { failure, faulty } from "../support/faulty.js"

const names = Effect.map(look<{ name: string }>("SELECT name FROM item ORDER BY name"), (rows) =>
  rows.map((_) => _.name)
)

describe("faults at a statement", () => {
  it.scopedLive("a connection that is lost before the statement reaches the server leaves no row", () =>
    faulty((faults) =>
      Effect.gen(function* () {
        const lost = yield* faults.disconnect({ statement: "INSERT" })
        // a transaction whose BEGIN is not answered does not exist, and is begun again
        yield* Db.withTransaction(insert("retried"))
        assert.strictEqual(yield* lost.count, 1)
        const again = yield* faults.disconnect({ statement: "INSERT" })
        const error = yield* failure(Db.withTransaction(Effect.zipRight(run("SELECT 1"), insert("a"))))
        assert.deepStrictEqual([error._tag, "outcome" in error && error.outcome], ["Disconnected", "undone"])
        yield* again.happened
        yield* Db.withTransaction(insert("b"))
        assert.deepStrictEqual(yield* names, ["b", "retried"])
      })
    )
  )

  it.scopedLive("a COMMIT whose answer is lost is stored, and reported as stored or as unknown", () =>
    faulty((faults) =>
      Effect.gen(function* () {
        const lost = yield* faults.loseAnswer({ statement: /^COMMIT$/ })
        yield* Db.withTransaction(insert("a"))
        assert.strictEqual(yield* lost.count, 1)
        assert.deepStrictEqual(yield* names, ["a"])
      })
    ).pipe(
      Effect.zipRight(
        faulty(
          (faults) =>
            Effect.gen(function* () {
              yield* faults.loseAnswer({ statement: "COMMIT", skip: 1, times: 2 })
              yield* Db.withTransaction(insert("a"))
              for (const name of ["b", "c"])
                assert.strictEqual((yield* failure(Db.withTransaction(insert(name))))._tag, "CommitOutcomeUnknown")
              yield* Db.withTransaction(insert("d"))
              assert.deepStrictEqual(yield* names, ["a", "b", "c", "d"])
            }),
          { outcome: "unknown" }
        )
      )
    )
  )

  it.scopedLive("a refused statement has the error of the server, prepared or not, and aborts its transaction", () =>
    faulty((faults) =>
      Effect.gen(function* () {
        const collision = { sqlState: "40001", message: "could not serialize access" }
        yield* Db.withTransaction(insert("first"))
        yield* Effect.scoped(
          Effect.gen(function* () {
            yield* faults.refuse({ statement: "INSERT INTO item" }, collision)
            const error = yield* failure(insert("a"))
            assert.deepStrictEqual(
              [error._tag, error.message.includes(collision.message)],
              ["SerializationFailure", true]
            )
          })
        )
        yield* faults.refuse({ statement: "COMMIT" }, { sqlState: "23503" })
        const refused = yield* failure(Db.withTransaction(insert("b")))
        assert.deepStrictEqual([refused._tag, "sqlState" in refused && refused.sqlState], ["CommitFailed", "23503"])
        // a text of several commands is sent by the simple protocol
        yield* faults.refuse({ statement: "SELECT 2" }, { sqlState: "53200" })
        assert.strictEqual((yield* failure(run("SELECT 1; SELECT 2")))._tag, "QueryFailed")
        // the retry finds the third COMMIT without a fault
        yield* faults.refuse({ statement: "COMMIT", times: 2 }, collision)
        let attempts = 0
        const counted = Effect.zipRight(
          Effect.sync(() => ++attempts),
          insert("c")
        )
        yield* Db.withTransaction(counted, { retry: true })
        assert.strictEqual(attempts, 3)
        assert.deepStrictEqual(yield* names, ["c", "first"])
      })
    )
  )

  it.scopedLive("a frozen statement fails in time, and the connection works again for others after the scope", () =>
    faulty((faults) =>
      Effect.gen(function* () {
        const scope = yield* Scope.make()
        const frozen = yield* Scope.extend(faults.freeze({ statement: "INSERT", server: "writer" }), scope)
        const ended = yield* Effect.timed(Effect.exit(Effect.timeout(insert("a"), 300)))
        assert.isTrue(ended[1]._tag === "Failure")
        assert.strictEqual(yield* frozen.count, 1)
        yield* insert("b")
        yield* Scope.close(scope, ended[1])
      })
    )
  )

  it.scopedLive("a delayed statement arrives late, and all others in time", () =>
    faulty((faults) =>
      Effect.gen(function* () {
        yield* run("SELECT 1")
        yield* faults.delay("100 millis", { statement: "INSERT" })
        const [took] = yield* Effect.timed(insert("a"))
        assert.isAtLeast(Duration.toMillis(took), 99)
        const scope = yield* Scope.make()
        const long = yield* Scope.extend(faults.delay("1 hour", { statement: "DELETE" }), scope)
        const fiber = yield* Effect.fork(run("DELETE FROM item WHERE name = 'b'"))
        yield* long.happened
        yield* Scope.close(scope, yield* Effect.exit(Effect.void))
        yield* Fiber.join(fiber)
        assert.deepStrictEqual(yield* names, ["a"])
      })
    )
  )
})

describe("faults of a server", () => {
  it.scopedLive("an unreachable server closes its connections, refuses new ones, and is back after the scope", () =>
    faulty(
      (faults) =>
        Effect.gen(function* () {
          const before = yield* pid
          yield* Effect.scoped(
            Effect.gen(function* () {
              const away = yield* faults.unreachable({ server: "writer" })
              const error = yield* failure(insert("a"))
              assert.deepStrictEqual([error._tag, "reason" in error && error.reason], ["ConnectFailed", "unreachable"])
              assert.isAtLeast(yield* away.count, 2)
              // the replica is another server
              const sql = yield* Db.reader
              assert.lengthOf(yield* sql`SELECT 1`, 1)
            })
          )
          assert.notStrictEqual(yield* pid, before)
        }),
      { acquireTimeout: "3 seconds" }
    )
  )

  it.scopedLive("a refused login is a wrong password, or the given error", () =>
    faulty(
      (faults) =>
        Effect.gen(function* () {
          yield* Effect.scoped(
            Effect.gen(function* () {
              yield* faults.refuseLogin({ server: "writer" })
              yield* faults.disconnect({ server: "writer" })
              const error = yield* failure(insert("a"))
              assert.deepStrictEqual(
                [error._tag, "reason" in error && error.reason],
                ["ConnectFailed", "authentication"]
              )
            })
          )
          yield* insert("b")
          yield* faults.refuseLogin({}, { sqlState: "53300", message: "sorry, too many clients already" })
          yield* faults.disconnect()
          const fiber = yield* Effect.fork(failure(insert("c")))
          assert.include((yield* Fiber.join(fiber)).message, "too many clients")
        }),
      { acquireTimeout: "3 seconds" }
    )
  )

  it.scopedLive("frozen connections and new ones are silent until the scope ends, then they go on", () =>
    faulty((faults) =>
      Effect.gen(function* () {
        const scope = yield* Scope.make()
        yield* run("SELECT 1")
        yield* Scope.extend(faults.freeze({ server: "writer" }), scope)
        const fiber = yield* Effect.fork(setting("server_version"))
        assert.isTrue((yield* Effect.exit(Effect.timeout(insert("a"), 300)))._tag === "Failure")
        yield* Scope.close(scope, yield* Effect.exit(Effect.void))
        assert.notStrictEqual(yield* Fiber.join(fiber), "")
      })
    )
  )

  it.scopedLive("an exhausted pool gives no connection until the scope ends", () =>
    faulty(
      (faults) =>
        Effect.gen(function* () {
          yield* Effect.scoped(
            Effect.gen(function* () {
              yield* faults.exhaustPool({ server: "writer" })
              assert.strictEqual((yield* failure(insert("a")))._tag, "PoolExhausted")
            })
          )
          yield* insert("b")
          assert.deepStrictEqual(yield* names, ["b"])
        }),
      { acquireTimeout: "3 seconds", maxConnections: 3 }
    )
  )

  it.scopedLive("a fault in a stream and in a sandbox over the faults happens as elsewhere", () =>
    Effect.gen(function* () {
      const faults = yield* TestDatabase.faults(Db)
      yield* insert("a")
      yield* faults.disconnect({ statement: "generate_series" })
      const rows = Effect.flatMap(Db.reader, (sql) => Stream.runDrain(sql`SELECT generate_series(1, 10)`.stream))
      assert.strictEqual((yield* failure(rows))._tag, "Disconnected")
    }).pipe(
      Effect.scoped,
      Effect.provide(TestDatabase.layer(Db)),
      Effect.provide(Layer.provideMerge(TestDatabase.layerFaults(Db), fresh()))
    )
  )
})

describe("conditions of faults", () => {
  it.scopedLive("a name that every object has is no server", () =>
    faulty((faults) =>
      Effect.map(Effect.flip(faults.disconnect({ server: "constructor" })), ({ _tag }) =>
        assert.strictEqual(_tag, "ConfigInvalid")
      )
    )
  )

  it.scopedLive("a copy of a template over the faults has them as well", () =>
    Effect.gen(function* () {
      const faults = yield* TestDatabase.faults(Db)
      yield* faults.refuse({ statement: "SELECT 7" }, { sqlState: "40001" })
      assert.strictEqual((yield* failure(run("SELECT 7")))._tag, "SerializationFailure")
    }).pipe(
      Effect.scoped,
      Effect.provide(TestDatabase.layerTemplate(Db, { migrate: Effect.void })),
      Effect.provide(Layer.provideMerge(TestDatabase.layerFaults(Db), fresh()))
    )
  )

  it.scopedLive("a server that the database does not have, and a wrong number, are refused", () =>
    faulty((faults) =>
      Effect.gen(function* () {
        const unknown = yield* Effect.flip(faults.disconnect({ server: "elsewhere:1" }))
        assert.deepStrictEqual([unknown._tag, unknown.setting], ["ConfigInvalid", "server"])
        assert.include(unknown.message, '"writer"')
        const negative = yield* Effect.flip(faults.loseAnswer({ statement: "COMMIT", times: -1 }))
        assert.strictEqual(negative.setting, "times")
        assert.strictEqual((yield* Effect.flip(faults.freeze({ statement: "x", skip: 0.5 }))).setting, "skip")
      })
    )
  )

  it.scopedLive("a database without the layer, and the layer over a sandbox, are refused", () =>
    Effect.gen(function* () {
      const without = yield* Effect.flip(TestDatabase.faults(Db))
      assert.include(without.message, "TestDatabase.layerFaults")
      const over = Layer.provide(TestDatabase.layerFaults(Db), TestDatabase.layer(Db))
      const error = yield* Effect.flip(Layer.build(over))
      assert.deepStrictEqual(
        [error._tag, error.message.includes("put the sandbox over the faults")],
        ["ConfigInvalid", true]
      )
    }).pipe(Effect.provide(fresh()))
  )
})

it.scopedLive("a replica whose replay is paused shows no new commits, and a promoted one takes the writes", () =>
  Effect.gen(function* () {
    const { awaitReplicas, primary, replicas } = yield* EmbeddedPostgres.make({ directory, replicas: 1 })
    const [replica = assert.fail("no replica")] = replicas
    const hosts = [primary, replica].map(({ host, port }) => `${host}:${port}`)
    const url = Redacted.make(Redacted.value(primary.url()).replace(hosts[0] ?? "", hosts.join()))
    yield* Effect.gen(function* () {
      const faults = yield* TestDatabase.faults(Db)
      yield* run("CREATE TABLE item (name text)")
      yield* awaitReplicas
      const seen = Effect.flatMap(Db.reader, (sql) => Effect.map(sql`SELECT FROM item`, (rows) => rows.length))
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* faults.pauseReplay()
          yield* insert("a")
          assert.strictEqual(yield* seen, 0)
        })
      )
      yield* eventually(seen, (count) => count === 1)
      yield* faults.promote(hosts[1] ?? "")
      const sql = yield* Db.writer
      const [row] = yield* Effect.retry(
        sql<{ port: number }>`INSERT INTO item VALUES ('b') RETURNING inet_server_port() AS port`,
        { times: 3 }
      )
      assert.strictEqual(row?.port, replica.port)
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layerFaults(Db)), Effect.provide(Db.layer({ hosts: url })))
  })
)
