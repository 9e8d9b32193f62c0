/** Callers while the server of a database is away: up to `maxOutageWaiters` of them wait for it. */
import { inspect } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { type Database, DatabaseError, type Observation, RetryPolicy, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { behind } from "../support/behind.js"
import { changedUrl } from "../support/changedUrl.js"
import { Db, freshTable, insert, stored } from "../support/databases.js"
import { eventually, until } from "../support/eventually.js"
import { failure } from "../support/failures.js"
import { makeProxy, type Proxy, sends } from "../support/proxy.js"
import { query } from "../support/server.js"
import { only, watch } from "../support/suites/pooling/observations.js"

const count = (facts: ReadonlyArray<Observation.Observation>, tag: Observation.Observation["_tag"]) =>
  only(facts, tag).length

/**
 * Takes the server away: no connection is accepted, and open ones are lost. Waits until the pools
 * have noticed that.
 */
const vanish = (proxy: Proxy) =>
  Effect.zipRight(
    Effect.zipRight(proxy.refuse, proxy.cut),
    eventually(Db.status, ({ servers }) =>
      servers.every(({ reads, writes }) => reads.total === 0 && (writes?.total ?? 0) === 0)
    )
  )

/** Waits until a caller has been retried `times` times. */
const triedAgain = (facts: ReadonlyArray<Observation.Observation>, times: number) =>
  until(() => only(facts, "Retried").some(({ attempt }) => attempt >= times))

const read = Effect.flatMap(Db.reader, (sql) => sql`SELECT 1 AS n`)

describe("callers while the server is away", () => {
  it.scopedLive("writes, reads, transactions, streams and reservations wait, and go on when the server is back", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* insert("before")
        yield* vanish(proxy)
        const facts = yield* watch
        const fibers = yield* Effect.forEach(
          [
            insert("write"),
            read,
            Db.withTransaction(insert("transaction")),
            UnitOfWork.run(insert("unit")),
            Stream.runDrain(sql`SELECT 1`.stream),
            Effect.scoped(sql.reserve)
          ],
          (self) => Effect.fork(Effect.asVoid(self))
        )
        yield* triedAgain(facts, 6)
        for (const fiber of fibers) assert.isTrue((yield* Fiber.poll(fiber))._tag === "None")
        yield* proxy.accept
        yield* Fiber.joinAll(fibers)
        assert.deepStrictEqual(yield* stored, ["before", "transaction", "unit", "write"])
      })
    )
  )

  it.scopedLive(
    "a read and an idempotent write that were under way at the loss wait for the server as later callers do",
    () =>
      behind({}, (proxy) =>
        Effect.gen(function* () {
          const sql = yield* Db.writer
          const reader = yield* Db.reader
          const held = yield* Effect.all([
            proxy.when(sends("'read'"), "freeze"),
            proxy.when(sends("'write'"), "freeze")
          ])
          const fibers = yield* Effect.forEach(
            [
              reader`SELECT 'read'`,
              RetryPolicy.idempotent(sql`INSERT INTO item (name) VALUES ('write') ON CONFLICT DO NOTHING`)
            ],
            (self) => Effect.fork(Effect.asVoid(self))
          )
          yield* Effect.all(held)
          const facts = yield* watch
          yield* vanish(proxy)
          yield* triedAgain(facts, 6)
          yield* proxy.accept
          yield* Fiber.joinAll(fibers)
          assert.deepStrictEqual(yield* stored, ["write"])
        })
      )
  )

  it.scopedLive("a transaction with retry that was under way at the loss runs again when the server is back", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const held = yield* proxy.when(sends("INSERT"), "freeze")
        const fiber = yield* Effect.fork(Db.withTransaction(insert("once"), { retry: true }))
        yield* held
        const facts = yield* watch
        yield* vanish(proxy)
        yield* triedAgain(facts, 6)
        yield* proxy.accept
        yield* Fiber.join(fiber)
        assert.deepStrictEqual(yield* stored, ["once"])
      })
    )
  )

  it.scopedLive("a caller that only waits for a connection takes nothing from the retry budget", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        yield* vanish(proxy)
        const facts = yield* watch
        const fibers = yield* Effect.forEach([insert("a"), insert("b"), Db.withTransaction(insert("c"))], Effect.fork)
        yield* until(() => count(facts, "Retried") >= 6)
        yield* proxy.accept
        yield* Fiber.joinAll(fibers)
        assert.deepStrictEqual(yield* stored, ["a", "b", "c"])
      }).pipe(RetryPolicy.with({ budget: { burst: 0, perSecond: 0 } }))
    )
  )

  it.scopedLive("retries of a statement that a server has received are taken from the retry budget", () =>
    behind({}, () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* sql`CREATE SEQUENCE runs`
        const suicide = sql`SELECT nextval('runs'), pg_terminate_backend(pg_backend_pid())`
        const error = yield* suicide.pipe(
          RetryPolicy.idempotent,
          RetryPolicy.with({ statement: Schedule.forever, budget: { burst: 5, perSecond: 0 } }),
          failure
        )
        assert.strictEqual(error._tag, "Disconnected")
        const [row] = yield* sql<{ n: string }>`SELECT last_value AS n FROM runs`
        assert.strictEqual(row?.n, "6")
      })
    )
  )

  it.scopedLive("callers fail at acquireTimeout, with the reason, or at an earlier deadline of their own", () =>
    behind({ acquireTimeout: "800 millis" }, (proxy) =>
      Effect.gen(function* () {
        yield* vanish(proxy)
        const facts = yield* watch
        const own = yield* Effect.fork(Effect.either(Effect.timeout(insert("own"), "300 millis")))
        for (const self of [
          insert("write"),
          read,
          Db.withTransaction(insert("transaction")),
          Db.withTransaction(insert("replayed"), { retry: true }),
          UnitOfWork.run(insert("unit"), { retry: true })
        ]) {
          const error = yield* failure(self)
          assert.isTrue(error._tag === "ConnectFailed" && error.reason === "unreachable", inspect(error))
        }
        const given = yield* Fiber.join(own)
        assert.isTrue(given._tag === "Left" && given.left._tag === "TimeoutException", inspect(given))
        // a transaction that has waited for acquireTimeout is not run again, to wait for it once more
        assert.isFalse(facts.some((fact) => fact._tag === "Retried" && fact.what === "transaction"))
        yield* proxy.accept
        yield* insert("after")
        assert.deepStrictEqual(yield* stored, ["after"])
      })
    )
  )

  it.scopedLive("all callers together connect no more often than a single one would", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        yield* insert("before")
        yield* vanish(proxy)
        const facts = yield* watch
        const since = performance.now()
        const fibers = yield* Effect.forEach(
          Array.from({ length: 60 }, (_, i) => insert(`${i}`)),
          Effect.fork
        )
        yield* triedAgain(facts, 5)
        const connects = count(facts, "ConnectFailed")
        // at least 100 ms are between an attempt and the next
        assert.isAtMost(connects, (performance.now() - since) / 100 + 2)
        yield* proxy.accept
        yield* Fiber.joinAll(fibers)
        assert.lengthOf(yield* stored, 61)
      })
    )
  )

  for (const [what, frozen] of [
    ["refuses connections", false],
    ["does not answer", true]
  ] as const) {
    it.scopedLive(`maxOutageWaiters callers wait when the server ${what}, and the rest fail at once`, () =>
      behind({ maxOutageWaiters: 5, connectTimeout: "600 millis", startup: "lazy" }, (proxy) =>
        Effect.gen(function* () {
          yield* vanish(proxy)
          if (frozen) yield* Effect.zipRight(proxy.freeze, proxy.accept)
          const facts = yield* watch
          const fibers = yield* Effect.forEach(
            Array.from({ length: 8 }, (_, i) => Effect.either(DatabaseError.refine(insert(`early ${i}`)))),
            Effect.fork
          )
          yield* until(() => count(facts, "Exhausted") === 3)
          // a caller that comes now does not even wait for the next attempt to connect
          const before = count(facts, "ConnectFailed")
          for (const self of [insert("late"), Db.withTransaction(insert("late"), { retry: true })]) {
            const error = yield* failure(self)
            assert.isTrue(error._tag === "PoolExhausted" && error.reason === "outage", inspect(error))
            assert.include(error.message, "maxOutageWaiters")
          }
          assert.isAtMost(count(facts, "ConnectFailed") - before, 1)
          // a caller that leaves makes room for another
          const waits = yield* Effect.filter(fibers, (fiber) => Effect.map(Fiber.poll(fiber), (_) => _._tag === "None"))
          assert.lengthOf(waits, 5)
          const [left, ...stay] = waits
          if (left !== undefined) yield* Fiber.interrupt(left)
          const next = yield* Effect.fork(insert("next"))
          yield* triedAgain(facts, 4)
          yield* frozen ? proxy.thaw : proxy.accept
          yield* Fiber.join(next)
          for (const exit of yield* Fiber.joinAll(stay)) assert.strictEqual(exit._tag, "Right", inspect(exit))
          assert.lengthOf(yield* stored, 5)
        })
      )
    )
  }

  it.scopedLive("the callers of all pools of a database count towards its maxOutageWaiters", () =>
    behind({ maxOutageWaiters: 5, connectTimeout: "20 seconds", startup: "lazy" }, (proxy) =>
      Effect.gen(function* () {
        yield* vanish(proxy)
        // each pool has noticed that its server is away
        for (const self of [insert("seen"), read]) yield* failure(RetryPolicy.with(self, RetryPolicy.never))
        // the next connect hangs, so callers wait in the queue of their pool, and not between two connects
        yield* Effect.zipRight(proxy.freeze, proxy.accept)
        const facts = yield* watch
        const started = Array.from({ length: 3 }, (_, i) => [insert(`write ${i}`), Effect.asVoid(read)]).flat()
        const fibers = yield* Effect.forEach(started, (self) => Effect.fork(Effect.either(DatabaseError.refine(self))))
        yield* until(() => count(facts, "Exhausted") === 1)
        const { servers } = yield* Db.status
        const waiting = servers.flatMap(({ reads, writes }) => [reads.waiting, writes?.waiting ?? 0])
        assert.strictEqual(
          waiting.reduce((sum, one) => sum + one, 0),
          5
        )
        for (const self of [insert("late"), Effect.asVoid(read)]) {
          const error = yield* failure(self)
          assert.isTrue(error._tag === "PoolExhausted" && error.reason === "outage", inspect(error))
        }
        yield* proxy.thaw
        const exits = yield* Fiber.joinAll(fibers)
        assert.lengthOf(
          exits.filter((exit) => exit._tag === "Right"),
          5
        )
      })
    )
  )

  it.scopedLive("no caller is shed during an outage or after it, although more came than could be served before", () =>
    behind({ maxConnections: 2, queueTarget: "20 millis", maxOutageWaiters: 10_000 }, (proxy) =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const facts = yield* watch
        const writes = Effect.map(Db.status, ({ servers }) => servers[0]?.writes)
        const one = Effect.forkDaemon(Effect.ignore(sql`SELECT pg_sleep(0.01)`))
        const coming = yield* Effect.fork(Effect.repeat(Effect.replicateEffect(one, 5), Schedule.spaced("2 millis")))
        yield* eventually(writes, (figures) => figures?.overloaded === true)
        yield* vanish(proxy)
        yield* Fiber.interrupt(coming)
        const late = yield* Effect.fork(insert("late"))
        yield* triedAgain(facts, 4)
        yield* proxy.accept
        yield* Fiber.join(late)
        yield* eventually(writes, (figures) => figures?.waiting === 0)
        const lost = facts.findLastIndex(({ _tag }) => _tag === "Lost")
        assert.isAtLeast(lost, 0)
        assert.isAbove(count(facts.slice(0, lost), "Exhausted"), 0)
        assert.strictEqual(count(facts.slice(lost), "Exhausted"), 0)
      })
    )
  )
})

describe("permanent connect errors", () => {
  const wrong = {
    "a wrong password": [(url: URL) => Reflect.set(url, "password", "wrong"), "authentication"],
    "an unknown database": [(url: URL) => Reflect.set(url, "pathname", "/not_there"), "noSuchDatabase"],
    "TLS that the server does not have": [(url: URL) => url.searchParams.set("sslmode", "require"), "tls"]
  } as const

  for (const [what, [change, reason]] of Object.entries(wrong)) {
    it.scopedLive(`${what} is not retried, by a write, a read or a transaction`, () =>
      Effect.gen(function* () {
        const { writer } = yield* freshTable
        yield* Effect.gen(function* () {
          const facts = yield* watch
          for (const self of [insert("a"), read, Db.withTransaction(insert("b"), { retry: true })]) {
            const error = yield* failure(self)
            assert.isTrue(error._tag === "ConnectFailed" && error.reason === reason, inspect(error))
          }
          yield* until(() => count(facts, "ConnectFailed") === 3)
          assert.strictEqual(count(facts, "Retried"), 0)
        }).pipe(Effect.scoped, Effect.provide(Db.layer({ writer: changedUrl(writer, change), startup: "lazy" })))
      })
    )

    it.scopedLive(`${what} at a replica leaves reads to the others, each of which is tried once`, () =>
      Effect.gen(function* () {
        const { reader, writer } = yield* freshTable
        const bad = changedUrl(reader, change)
        yield* Effect.gen(function* () {
          assert.deepStrictEqual(yield* read, [{ n: 1 }])
        }).pipe(Effect.scoped, Effect.provide(Db.layer({ writer, readers: [bad], startup: "lazy" })))
        yield* Effect.gen(function* () {
          const facts = yield* watch
          const error = yield* failure(read)
          assert.isTrue(error._tag === "ConnectFailed" && error.reason === reason, inspect(error))
          yield* until(() => count(facts, "ConnectFailed") === 2)
          assert.strictEqual(count(facts, "Retried"), 1)
        }).pipe(
          Effect.scoped,
          Effect.provide(Db.layer({ writer: changedUrl(writer, change), readers: [bad], startup: "lazy" }))
        )
      })
    )
  }
})

describe("a start that verifies the servers", () => {
  /**
   * Opens a database whose server accepts no connection yet, and runs `come` after three attempts to
   * connect.
   */
  const comes = (options: Partial<Database.Options>, come: (proxy: Proxy) => Effect.Effect<void>) =>
    Effect.gen(function* () {
      const { writer } = yield* freshTable
      const proxy = yield* makeProxy(writer)
      yield* proxy.refuse
      let attempts = 0
      const logger = Logger.make(({ message }) => {
        if (inspect(message).includes("ECONNREFUSED")) attempts++
      })
      const opening = yield* Effect.fork(
        Effect.exit(
          Effect.provide(
            read,
            Db.layer({ writer: proxy.url, echo: true, ...options }).pipe(
              Layer.provide(Logger.replace(Logger.defaultLogger, logger))
            )
          )
        )
      )
      yield* until(() => attempts >= 3)
      yield* come(proxy)
      return yield* Fiber.join(opening)
    })

  it.scopedLive("a start waits for a server that does not listen yet", () =>
    Effect.gen(function* () {
      const exit = yield* comes({}, (proxy) => proxy.accept)
      assert.isTrue(Exit.isSuccess(exit), inspect(exit))
    })
  )

  it.scopedLive("a start fails after connectTimeout, with the reason, if the server never listens", () =>
    Effect.gen(function* () {
      const exit = yield* comes({ connectTimeout: "600 millis" }, () => Effect.void)
      const error = Exit.isFailure(exit) && exit.cause._tag === "Fail" ? exit.cause.error : undefined
      assert.isTrue(error?._tag === "ConnectFailed" && error.reason === "unreachable", inspect(exit))
    })
  )
})

it.scopedLive("an infinite maxOutageWaiters is refused", () =>
  Effect.gen(function* () {
    const { writer } = yield* freshTable
    assert.isNotEmpty(yield* query(writer, "SELECT 1 AS n"))
    const error = yield* Effect.flip(
      Effect.scoped(Layer.build(Db.layer({ writer, maxOutageWaiters: Number.POSITIVE_INFINITY })))
    )
    assert.isTrue(error._tag === "ConfigInvalid" && error.setting === "maxOutageWaiters", inspect(error))
  })
)
