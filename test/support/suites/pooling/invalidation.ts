/** The invalidation of connections: soft, from the next checkout on, or hard, at once. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { Db, insert, Place, pid, stored } from "../../databases.js"
import { eventually } from "../../eventually.js"
import { taggedFailure } from "../../failures.js"
import { sends } from "../../proxy.js"
import { query } from "../../server.js"
import { hold, processes, warmUp } from "./connections.js"
import { figures, only, settled, told, watch } from "./observations.js"
import { connects, Network, once, open, openOverNetwork, type Way } from "./way.js"

const sleep = Effect.flatMap(Db.writer, (sql) => sql`SELECT pg_sleep(1000)`)

/** Waits until the server runs a statement with this text. */
const isRunning = (text: string) =>
  Effect.flatMap(Place, ({ name, writer }) =>
    eventually(
      query(
        writer,
        "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND state = 'active' AND query LIKE $2 AND pid <> pg_backend_pid()",
        [name, `%${text}%`]
      ),
      (rows) => rows.length === 1
    )
  )

export const invalidation = (way: Way): void => {
  const isPooled = way.strategy === "pooled"
  const modes = ["soft", "hard"] as const

  it.scopedLive("a soft invalidation replaces an idle connection at its next checkout", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const first = yield* pid
      assert.strictEqual(yield* Db.invalidate(), 1)
      assert.strictEqual((yield* figures).idle, 1)
      assert.notStrictEqual(yield* pid, first)
      const [closed] = yield* told(facts, "Closed")
      assert.strictEqual(closed?.reason, "invalidated")
      assert.deepStrictEqual(
        only(facts, "Invalidated").map(({ connections, mode }) => [mode, connections]),
        [["soft", 1]]
      )
    }).pipe(Effect.provide(open(way, { maxConnections: 1 })))
  )

  it.scopedLive("a soft invalidation lets work go on, and the connection is closed at check-in", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const holder = yield* hold
      assert.strictEqual(yield* Db.invalidate(), 1)
      assert.isTrue(Exit.isSuccess(yield* holder.release))
      assert.notStrictEqual(yield* pid, holder.pid)
      assert.deepStrictEqual(
        (yield* told(facts, "Closed")).map(({ processId, reason }) => [processId, reason]),
        [[holder.pid, "invalidated"]]
      )
    }).pipe(Effect.provide(open(way, { maxConnections: 1 })))
  )

  it.scopedLive("a hard invalidation closes an idle connection at once", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      yield* pid
      assert.strictEqual(yield* Db.invalidate({ mode: "hard" }), 1)
      yield* eventually(processes, (all) => all.length === 0)
      const [closed] = yield* told(facts, "Closed")
      assert.strictEqual(closed?.reason, "invalidated")
      assert.strictEqual((yield* figures).total, 0)
    }).pipe(Effect.provide(open(way, { maxConnections: 1 })))
  )

  it.scopedLive("a hard invalidation fails a transaction between two statements with Disconnected, undone", () =>
    Effect.gen(function* () {
      const error = yield* insert("lost").pipe(
        Effect.zipRight(Db.invalidate({ mode: "hard" })),
        Effect.zipRight(insert("after")),
        Db.withTransaction(),
        (self) => taggedFailure("Disconnected", self)
      )
      assert.strictEqual(error.outcome, "undone")
      yield* insert("next")
      assert.deepStrictEqual(yield* stored, ["next"])
    }).pipe(Effect.provide([open(way, { maxConnections: 1 }), once]))
  )

  for (const [what, work] of [
    ["a statement", sleep],
    ["a statement of a transaction", Db.withTransaction(Effect.zipRight(insert("lost"), sleep))],
    ["the first statement of a transaction", Db.withTransaction(sleep)]
  ] as const) {
    it.scopedLive(`a hard invalidation cancels ${what} that is under way, which fails with Disconnected, undone`, () =>
      Effect.gen(function* () {
        const facts = yield* watch
        const fiber = yield* Effect.fork(taggedFailure("Disconnected", work))
        yield* isRunning("pg_sleep")
        yield* Db.invalidate({ mode: "hard" })
        const { message, outcome } = yield* Fiber.join(fiber)
        assert.strictEqual(outcome, "undone")
        assert.include(message, "invalidated")
        yield* eventually(processes, (all) => all.length === 0)
        yield* insert("next")
        assert.deepStrictEqual(yield* stored, ["next"])
        assert.strictEqual((yield* told(facts, "Closed"))[0]?.reason, "invalidated")
      }).pipe(Effect.provide([open(way, { maxConnections: 1, startup: "lazy" }), once]))
    )
  }

  it.scopedLive("a hard invalidation that cancels a COMMIT fails it with Disconnected, undone", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      yield* query(
        writer,
        `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(1000); RETURN NULL; END';
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION slow()`
      )
      const fiber = yield* Effect.fork(taggedFailure("Disconnected", Db.withTransaction(insert("lost"))))
      yield* isRunning("COMMIT")
      yield* Db.invalidate({ mode: "hard" })
      assert.strictEqual((yield* Fiber.join(fiber)).outcome, "undone")
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide([open(way, { maxConnections: 1, startup: "lazy" }), once]))
  )

  it.scopedLive("a hard invalidation fails a statement without an answer within 2 seconds, in doubt", () =>
    Effect.gen(function* () {
      const network = yield* Network
      const sent = yield* network.when(sends("INSERT"), "freeze")
      const fiber = yield* Effect.fork(taggedFailure("Disconnected", insert("a")))
      yield* sent
      const start = performance.now()
      yield* Db.invalidate({ mode: "hard" })
      assert.strictEqual((yield* Fiber.join(fiber)).outcome, "inDoubt")
      assert.isBelow(performance.now() - start, 2000)
      yield* insert("b")
    }).pipe(Effect.provide([openOverNetwork(way, { maxConnections: 1 }), once]))
  )

  if (isPooled) {
    for (const mode of modes) {
      it.scopedLive(`a ${mode} invalidation of one connection leaves the others`, () =>
        Effect.gen(function* () {
          const facts = yield* watch
          const [first = 0, second = 0] = yield* warmUp(2)
          assert.strictEqual(yield* Db.invalidate({ mode, processId: first }), 1)
          assert.strictEqual(yield* Db.invalidate({ mode, processId: first, server: "elsewhere:1" }), 0)
          const after = yield* warmUp(2)
          assert.include(after, second)
          assert.notInclude(after, first)
          yield* told(facts, "Closed")
          assert.deepStrictEqual(
            only(facts, "Closed").map(({ processId, reason }) => [processId, reason]),
            [[first, "invalidated"]]
          )
        }).pipe(Effect.provide(open(way, { maxConnections: 2, startup: "lazy" })))
      )

      it.scopedLive(`a ${mode} invalidation of the connections older than half a second leaves the younger ones`, () =>
        Effect.gen(function* () {
          const { writer } = yield* Place
          const older = yield* hold
          yield* query(writer, "SELECT pg_sleep(1)")
          const younger = yield* hold
          yield* Effect.all([older.release, younger.release])
          const olderThan = "500 millis"
          assert.strictEqual(yield* Db.invalidate({ mode, olderThan, processId: younger.pid }), 0)
          assert.strictEqual(yield* Db.invalidate({ mode, olderThan }), 1)
          const after = yield* warmUp(2)
          assert.include(after, younger.pid)
          assert.notInclude(after, older.pid)
        }).pipe(Effect.provide(open(way, { maxConnections: 2, startup: "lazy" })))
      )

      it.scopedLive(`a ${mode} invalidation of the whole pool replaces every connection`, () =>
        Effect.gen(function* () {
          const before = yield* warmUp(3)
          assert.strictEqual(yield* Db.invalidate({ mode }), 3)
          for (const process of yield* warmUp(3)) assert.notInclude(before, process)
        }).pipe(Effect.provide(open(way, { maxConnections: 3, startup: "lazy" })))
      )
    }
  }

  for (const mode of modes) {
    it.scopedLive(`a ${mode} invalidation replaces a connection that is being opened, and no caller fails`, () =>
      Effect.gen(function* () {
        const network = yield* Network
        const facts = yield* watch
        const asked = yield* network.when(connects, "freeze")
        const fiber = yield* Effect.fork(pid)
        yield* asked
        assert.strictEqual(yield* Db.invalidate({ mode }), 0)
        yield* network.thaw
        const served = yield* Fiber.join(fiber)
        const [closed] = yield* told(facts, "Closed")
        assert.strictEqual(closed?.reason, "invalidated")
        assert.notStrictEqual(closed?.processId, served)
        assert.lengthOf(only(facts, "Connected"), 2)
      }).pipe(Effect.provide([openOverNetwork(way, { maxConnections: 1, startup: "lazy" }), once]))
    )

    it.scopedLive(`a ${mode} invalidation replaces a connection under validation, and its caller gets another`, () =>
      Effect.gen(function* () {
        const network = yield* Network
        const facts = yield* watch
        const first = yield* pid
        const asked = yield* network.when(({ from }) => from === "client", "freeze")
        const fiber = yield* Effect.fork(pid)
        yield* asked
        assert.strictEqual(yield* Db.invalidate({ mode }), 1)
        yield* network.thaw
        assert.notStrictEqual(yield* Fiber.join(fiber), first)
        assert.strictEqual((yield* told(facts, "Closed"))[0]?.reason, "invalidated")
      }).pipe(Effect.provide([openOverNetwork(way, { maxConnections: 1, validateAfterIdle: 0 }), once]))
    )

    for (const task of ["onConnect", "onCheckout", "resetOnReturn"] as const) {
      it.scopedLive(`a ${mode} invalidation replaces a connection during ${task}, and no caller fails`, () => {
        const latch = Effect.unsafeMakeLatch(true)
        const arrived = Effect.unsafeMakeLatch(false)
        return Effect.gen(function* () {
          const facts = yield* watch
          yield* latch.close
          if (task === "resetOnReturn") yield* pid
          const fiber = yield* Effect.fork(pid)
          yield* arrived.await
          yield* settled({ waiting: 1 })
          const [first] = yield* processes
          assert.strictEqual(yield* Db.invalidate({ mode }), 1)
          yield* latch.open
          assert.notStrictEqual(yield* Fiber.join(fiber), first)
          const closed = yield* told(facts, "Closed")
          assert.deepStrictEqual(
            closed.map(({ processId, reason }) => [processId, reason]),
            [[first, "invalidated"]]
          )
          assert.isEmpty(only(facts, "ConnectFailed"))
        }).pipe(
          Effect.provide([
            open(way, {
              maxConnections: 1,
              startup: "lazy",
              [task]: Effect.zipRight(arrived.open, latch.await)
            }),
            once
          ])
        )
      })
    }
  }
}
