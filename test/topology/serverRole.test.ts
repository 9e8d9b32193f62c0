/** Every login of a writer checks that its server takes writes: the name of a primary may lead to a standby later. */
import { inspect } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { DatabaseError, EmbeddedPostgres, RetryPolicy, TestDatabase, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { behind } from "../support/behind.js"
import { type Bouncer, behindBouncer, hasBouncer, makeBouncer } from "../support/bouncer.js"
import { Db, freshTable, insert, Place, stored } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually, until } from "../support/eventually.js"
import { failure } from "../support/failures.js"
import { behindPooler } from "../support/pooler.js"
import { makeProxy, sends } from "../support/proxy.js"
import { query } from "../support/server.js"
import { figures, only, watch } from "../support/suites/pooling/observations.js"

const wrongRoles = (facts: Effect.Effect.Success<typeof watch>) =>
  only(facts, "ConnectFailed").filter(({ reason }) => reason === "wrongRole").length

describe("the login of a writer", () => {
  it.scopedLive(
    "a writer's login to a standby fails as wrongRole, serves no caller, and is retried until the name leads to a primary",
    () =>
      behind({ startup: "lazy" }, (proxy) =>
        Effect.gen(function* () {
          const { reader, writer } = yield* Place
          const facts = yield* watch
          yield* proxy.retarget(reader)
          const error = yield* failure(RetryPolicy.with(insert("never"), RetryPolicy.never))
          assert.isTrue(error._tag === "ConnectFailed" && error.reason === "wrongRole", inspect(error))
          const waiting = yield* Effect.forEach(
            [insert("write"), Db.withTransaction(insert("transaction")), UnitOfWork.run(insert("unit"))],
            Effect.fork
          )
          yield* until(() => wrongRoles(facts) >= 3)
          yield* proxy.retarget(writer)
          yield* Fiber.joinAll(waiting)
          const first = facts.findIndex(({ _tag }) => _tag === "Connected")
          assert.isAbove(first, 0)
          assert.isEmpty(only(facts.slice(0, first), "CheckedOut"))
          assert.deepStrictEqual(yield* stored, ["transaction", "unit", "write"])
        })
      )
  )

  it.scopedLive("a writer's login that finds a standby retires the other connections, and cuts none in use", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const { reader, writer } = yield* Place
        const facts = yield* watch
        const isHeld = yield* Deferred.make<void>()
        const letGo = yield* Deferred.make<void>()
        const hold = (name: string) =>
          Db.withTransaction(
            Effect.all([insert(name), Deferred.succeed(isHeld, undefined), Deferred.await(letGo)], { discard: true })
          )
        const held = yield* Effect.fork(hold("held"))
        yield* Deferred.await(isHeld)
        yield* insert("idle")
        yield* eventually(figures, ({ active, idle }) => active === 1 && idle === 1)
        yield* proxy.retarget(reader)
        const isAlso = yield* Deferred.make<void>()
        const also = yield* Effect.fork(
          Db.withTransaction(
            Effect.all([insert("also"), Deferred.succeed(isAlso, undefined), Deferred.await(letGo)], {
              discard: true
            })
          )
        )
        yield* Deferred.await(isAlso)
        // with both in use another connection is needed, and finds a standby
        const next = yield* Effect.fork(insert("next"))
        yield* until(() => wrongRoles(facts) >= 1)
        assert.isEmpty(only(facts, "Lost"))
        yield* Deferred.succeed(letGo, undefined)
        yield* Fiber.joinAll([held, also])
        yield* eventually(figures, ({ total }) => total === 0)
        yield* proxy.retarget(writer)
        yield* Fiber.join(next)
        assert.deepStrictEqual(yield* stored, ["also", "held", "idle", "next"])
        assert.isAtLeast(only(facts, "Closed").filter(({ reason }) => reason === "wrongRole").length, 2)
      })
    )
  )

  it.scopedLive(
    "a writer's login that finds a standby retires the connections open then, and none that is opened later",
    () =>
      behind({ maxConnections: 2 }, (proxy) =>
        Effect.gen(function* () {
          const { reader, writer } = yield* Place
          const sql = yield* Db.writer
          const facts = yield* watch
          const isHeld = yield* Deferred.make<void>()
          const letGo = yield* Deferred.make<void>()
          const held = yield* Effect.fork(
            Db.withTransaction(
              Effect.all([insert("held"), Deferred.succeed(isHeld, undefined), Deferred.await(letGo)], {
                discard: true
              })
            )
          )
          yield* Deferred.await(isHeld)
          yield* proxy.retarget(reader)
          const next = yield* Effect.fork(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`)
          yield* until(() => wrongRoles(facts) >= 1)
          yield* proxy.retarget(writer)
          const fresh = yield* Fiber.join(next)
          yield* Deferred.succeed(letGo, undefined)
          yield* Fiber.join(held)
          yield* until(() => only(facts, "Closed").some(({ reason }) => reason === "wrongRole"))
          assert.deepStrictEqual(yield* sql`SELECT pg_backend_pid() AS pid`, fresh)
          assert.deepStrictEqual(yield* stored, ["held"])
        })
      )
  )

  it.scopedLive("a writer's login that finds a standby closes an idle connection at once", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const { reader } = yield* Place
        const facts = yield* watch
        const hold = (name: string) =>
          Effect.gen(function* () {
            const isHeld = yield* Deferred.make<void>()
            const letGo = yield* Deferred.make<void>()
            const work = Effect.all([insert(name), Deferred.succeed(isHeld, undefined), Deferred.await(letGo)])
            const fiber = yield* Effect.fork(Db.withTransaction(work))
            yield* Deferred.await(isHeld)
            return Effect.zipRight(Deferred.succeed(letGo, undefined), Fiber.join(fiber))
          })
        const first = yield* hold("first")
        const second = yield* hold("second")
        yield* proxy.retarget(reader)
        const connecting = yield* proxy.when(({ type }) => type === "startup", "freeze")
        const next = yield* Effect.fork(insert("next"))
        yield* connecting
        // the connection of the second serves the next, and is idle when the login finds the standby
        yield* second
        yield* Fiber.join(next)
        assert.deepStrictEqual([(yield* figures).active, (yield* figures).idle, wrongRoles(facts)], [1, 1, 0])
        yield* proxy.thaw
        yield* until(() => only(facts, "Closed").some(({ reason }) => reason === "wrongRole"))
        assert.deepStrictEqual([(yield* figures).active, (yield* figures).idle, wrongRoles(facts)], [1, 0, 1])
        yield* first
        assert.deepStrictEqual(yield* stored, ["first", "next", "second"])
      })
    )
  )

  it.scopedLive("a writer's login that finds a standby retires all connections of the pool", () =>
    behind({ validateAfterIdle: "1 minute", strategy: "pooled", minConnections: 0, order: "lifo" }, (proxy) =>
      Effect.gen(function* () {
        const { reader, writer } = yield* Place
        const sql = yield* Db.writer
        yield* Effect.all([sql`SELECT pg_sleep(0.05)`, sql`SELECT pg_sleep(0.05)`], { concurrency: 2 })
        yield* eventually(figures, ({ idle }) => idle === 2)
        yield* proxy.retarget(reader)
        const facts = yield* watch
        // the pool has two connections, and connects for the other two statements
        const many = yield* Effect.fork(
          Effect.all(
            [1, 2, 3, 4].map(() => sql`SELECT pg_sleep(0.3)`),
            { concurrency: "unbounded" }
          )
        )
        yield* until(() => wrongRoles(facts) >= 1)
        yield* proxy.retarget(writer)
        yield* Fiber.join(many)
        yield* until(() => only(facts, "Closed").filter(({ reason }) => reason === "wrongRole").length >= 2)
      })
    )
  )
})

describe("the proof of the role behind a pooler", () => {
  it.scopedLive("a write whose connection is lost during the proof of the role was not sent, and is retried", () =>
    Effect.gen(function* () {
      const place = yield* freshTable
      const proxy = yield* makeProxy(place.writer)
      const db = Db.layer({ writer: proxy.url, mode: "transactionPooler", startup: "lazy", maxConnections: 1 })
      const writes: Record<string, Effect.Effect<unknown, unknown, Db>> = {
        alone: insert("alone"),
        copied: Effect.flatMap(Db.writer, (sql) => sql.copyFrom("item", ["name"], Stream.make(["copied"]))),
        transaction: Db.withTransaction(insert("transaction"))
      }
      for (const [name, write] of Object.entries(writes)) {
        yield* proxy.when(sends("pg_is_in_recovery"), "cut")
        const exit = yield* Effect.exit(Effect.provide(write, db))
        assert.isTrue(Exit.isSuccess(exit), `${name}: ${inspect(exit)}`)
      }
      yield* proxy.when(sends("pg_is_in_recovery"), "cut")
      const error = yield* failure(Effect.provide(RetryPolicy.with(insert("never"), RetryPolicy.never), db))
      assert.isTrue(error._tag === "Disconnected" && error.outcome === "notSent", inspect(error))
      assert.deepStrictEqual(yield* Effect.provideService(stored, Place, place), ["alone", "copied", "transaction"])
    })
  )

  it.scopedLive("a reader's refused write in a writing transaction does not put the server's role in doubt", () =>
    Effect.gen(function* () {
      const place = yield* freshTable
      const db = Db.layer({ writer: place.writer, mode: "transactionPooler", maxConnections: 1 })
      const refused = Effect.flatMap(Db.reader, (sql) => failure(sql`DELETE FROM item`))
      const run = Db.withTransaction(Effect.zipLeft(refused, insert("stored")))
      const sandboxed = Effect.provide(refused, TestDatabase.layer(Db))
      const errors = yield* Effect.provide(Effect.all([run, sandboxed]), db)
      assert.deepStrictEqual(
        errors.map(({ _tag }) => _tag),
        ["ReadOnlyViolation", "ReadOnlyViolation"]
      )
      assert.deepStrictEqual(yield* Effect.provideService(stored, Place, place), ["stored"])
    })
  )
})

describe("a server that becomes read-only while it is used", () => {
  /** Runs a test with a server of its own. */
  const alone = <A, E>(
    body: (admin: {
      readonly readOnly: (is: boolean) => Effect.Effect<void>
    }) => Effect.Effect<A, E, Db | Place | Scope.Scope>
  ) =>
    Effect.gen(function* () {
      const { primary } = yield* EmbeddedPostgres.make({ directory })
      const url = primary.url()
      yield* query(url, "CREATE TABLE item (id int GENERATED BY DEFAULT AS IDENTITY, name text UNIQUE)")
      const readOnly = (is: boolean) =>
        query(
          url,
          is
            ? "ALTER SYSTEM SET default_transaction_read_only = on"
            : "ALTER SYSTEM RESET default_transaction_read_only"
        ).pipe(
          Effect.zipRight(query(url, "SELECT pg_reload_conf()")),
          Effect.zipRight(
            eventually(
              query(url, "SHOW default_transaction_read_only"),
              ([row]) => row?.default_transaction_read_only === (is ? "on" : "off")
            )
          ),
          Effect.asVoid
        )
      const live = Db.layer({ writer: url, validateAfterIdle: "1 hour" })
      const place = Layer.succeed(Place, { name: "postgres", writer: url, reader: url })
      return yield* Effect.provide(Effect.scoped(body({ readOnly })), Layer.merge(live, place))
    })

  it.scopedLive("a read-only server delays first writes, also in transactions, until it takes writes again", () =>
    alone(({ readOnly }) =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* Effect.all(
          [1, 2, 3].map(() => sql`SELECT pg_sleep(0.1)`),
          { concurrency: 3 }
        )
        yield* readOnly(true)
        const facts = yield* watch
        const waiting = yield* Effect.forEach(
          [
            insert("write"),
            Db.withTransaction(insert("transaction")),
            UnitOfWork.run(Effect.zipRight(insert("unit"), insert("unit, too")))
          ],
          Effect.fork
        )
        yield* until(() => wrongRoles(facts) >= 3)
        for (const fiber of waiting) assert.strictEqual((yield* Fiber.poll(fiber))._tag, "None")
        yield* readOnly(false)
        yield* Fiber.joinAll(waiting)
        assert.deepStrictEqual(yield* stored, ["transaction", "unit", "unit, too", "write"])
        assert.isAtLeast(only(facts, "Closed").filter(({ reason }) => reason === "wrongRole").length, 1)
      })
    )
  )

  it.scopedLive("a read-only server refuses a write after a read in a transaction, which runs again with retry", () =>
    alone(({ readOnly }) =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* sql`SELECT 1`
        yield* readOnly(true)
        const facts = yield* watch
        const waiting = yield* Effect.fork(
          Db.withTransaction(Effect.zipRight(sql`SELECT 1`, insert("later")), { retry: true })
        )
        yield* until(() => wrongRoles(facts) >= 1)
        yield* readOnly(false)
        yield* Fiber.join(waiting)
        assert.deepStrictEqual(yield* stored, ["later"])
      })
    )
  )

  it.scopedLive("a write in a read-only transaction fails with ReadOnlyViolation, and closes no connection", () =>
    alone(() =>
      Effect.gen(function* () {
        const facts = yield* watch
        const error = yield* failure(Db.withTransaction(insert("no"), { access: "read only", retry: true }))
        assert.strictEqual(error._tag, "ReadOnlyViolation")
        assert.isEmpty(only(facts, "Closed"))
      })
    )
  )
})

describe.skipIf(!hasBouncer)(behindBouncer, () => {
  /** Leads the pooler to another server, for its present clients as well. */
  const turn = (bouncer: Bouncer, to: Place["Type"]["writer"]) =>
    Effect.zipRight(bouncer.aim(to), Effect.asVoid(bouncer.admin("RECONNECT")))

  it.scopedLive("a new connection proves the role of the server once, in a round trip of its own", () =>
    Effect.gen(function* () {
      const place = yield* freshTable
      const bouncer = yield* makeBouncer(place.writer)
      const proxy = yield* makeProxy(bouncer.url)
      yield* Effect.gen(function* () {
        yield* Db.withTransaction(insert("a"))
        const first = proxy.roundTrips
        yield* Db.withTransaction(insert("b"))
        assert.strictEqual(first, 3)
        assert.strictEqual(proxy.roundTrips, 5)
      }).pipe(
        Effect.provide(
          Db.layer({
            writer: proxy.url,
            mode: "transactionPooler",
            startup: "lazy",
            maxConnections: 1,
            // the first transaction of a database would query its id in a round trip of its own
            outcome: "unknown"
          })
        )
      )
    })
  )

  it.scopedLive("the proof of the role allows statements that have to be the first in a transaction, or alone", () =>
    Effect.gen(function* () {
      const place = yield* freshTable
      const bouncer = yield* makeBouncer(place.writer)
      const db = Db.layer({ writer: bouncer.url, mode: "transactionPooler", startup: "lazy", maxConnections: 1 })
      const level = Effect.gen(function* () {
        const sql = yield* Db.writer
        const [row] = yield* sql<{ level: string }>`SELECT current_setting('transaction_isolation') AS level`
        return row?.level
      })
      const firsts: Record<string, Effect.Effect<unknown, unknown, Db | Scope.Scope>> = {
        serializable: Db.withTransaction(level, { isolation: "serializable" }),
        deferrable: Db.withTransaction(level, { isolation: "serializable", access: "read only", deferrable: true }),
        byHand: Db.withTransaction(
          Effect.gen(function* () {
            const sql = yield* Db.writer
            yield* sql`SET TRANSACTION ISOLATION LEVEL SERIALIZABLE`
            return yield* level
          })
        ),
        stream: Db.withTransaction(
          Effect.flatMap(Db.writer, (sql) =>
            Stream.runHead(sql<{ level: string }>`SELECT current_setting('transaction_isolation') AS level`.stream)
          ).pipe(Effect.map((row) => Option.getOrThrow(row).level)),
          { isolation: "serializable" }
        ),
        alone: Effect.flatMap(Db.writer, (sql) => Effect.as(sql`VACUUM item`, "serializable")),
        several: Effect.flatMap(Db.writer, (sql) =>
          Effect.as(sql.unsafe("INSERT INTO item (name) VALUES ('c'); SELECT 1").unprepared, "serializable")
        )
      }
      for (const [name, first] of Object.entries(firsts)) {
        // each on a new connection
        assert.strictEqual(yield* Effect.provide(first, db), "serializable", name)
      }
      assert.deepStrictEqual(yield* Effect.provideService(stored, Place, place), ["c"])
    })
  )

  it.scopedLive("writes wait while the pooler leads to a standby, in and outside of transactions", () =>
    behindPooler({}, {}, (bouncer) =>
      Effect.gen(function* () {
        const { reader, writer } = yield* Place
        yield* insert("before")
        yield* turn(bouncer, reader)
        const facts = yield* watch
        const sql = yield* Db.writer
        const waiting = yield* Effect.forEach(
          [
            insert("write"),
            Db.withTransaction(insert("transaction")),
            UnitOfWork.run(insert("unit")),
            Stream.runDrain(sql.copyTo(sql`INSERT INTO item (name) VALUES ('copy') RETURNING name`)),
            sql.copyFrom("item", ["name"], Stream.make(["rows"])),
            sql.unsafe("SELECT 1 AS one; INSERT INTO item (name) VALUES ('text')").unprepared
          ],
          (self) => Effect.fork(Effect.either(DatabaseError.refine(self)))
        )
        yield* until(() => only(facts, "Closed").filter(({ reason }) => reason === "wrongRole").length >= 2)
        yield* turn(bouncer, writer)
        const exits = yield* Fiber.joinAll(waiting)
        for (const exit of exits.slice(0, -1)) assert.strictEqual(exit._tag, "Right", inspect(exit))
        const names = yield* stored
        assert.deepStrictEqual(
          names.filter((name) => name !== "text"),
          ["before", "copy", "rows", "transaction", "unit", "write"]
        )
      })
    )
  )

  it.scopedLive("a COPY of a writer waits while the pooler leads to a standby, also if it only reads", () =>
    behindPooler({}, {}, (bouncer) =>
      Effect.gen(function* () {
        const { reader, writer } = yield* Place
        yield* insert("before")
        yield* turn(bouncer, reader)
        yield* Db.invalidate({ mode: "hard" })
        const facts = yield* watch
        const sql = yield* Db.writer
        const isStandby = sql.copyTo(sql`SELECT pg_is_in_recovery()`)
        const copying = yield* Effect.fork(Stream.mkString(Stream.decodeText(isStandby)))
        yield* until(
          () => only(facts, "Closed").some(({ reason }) => reason === "wrongRole") || copying.unsafePoll() !== null
        )
        yield* turn(bouncer, writer)
        assert.strictEqual(yield* Fiber.join(copying), "f\n")
      })
    )
  )

  it.scopedLive("a write that the program itself has made read-only fails with ReadOnlyViolation", () =>
    behindPooler({}, {}, () =>
      Effect.gen(function* () {
        const { writer } = yield* Place
        yield* query(
          writer,
          `CREATE FUNCTION refuse() RETURNS void LANGUAGE plpgsql SET transaction_read_only = on
           AS $$ BEGIN INSERT INTO item (name) VALUES ('no'); END $$`
        )
        const sql = yield* Db.writer
        yield* sql`SELECT 1`
        for (const self of [sql`SELECT refuse()`, Db.withTransaction(sql`SELECT refuse()`)]) {
          const error = yield* failure(self)
          assert.strictEqual(error._tag, "ReadOnlyViolation", inspect(error))
        }
        yield* insert("after")
        assert.deepStrictEqual(yield* stored, ["after"])
      })
    )
  )
})
