/**
 * The wait of reads for a replica of PostgreSQL 19, by `WAIT FOR LSN` in place of queries at intervals.
 */
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import { Consistency, type Database } from "effect-db"
import { Cluster, caughtUp, cluster, open, patient, pause, read, replica, resume, write } from "../support/cluster.js"
import { Db } from "../support/databases.js"
import { until } from "../support/eventually.js"
import { fakeTimers } from "../support/fakeTimers.js"
import { makeProxy } from "../support/proxy.js"
import { query } from "../support/server.js"
import { createWaitFunction, emulateWaitForLsn } from "../support/waitForLsn.js"

/** Opens the database with the first replica behind a proxy that knows the command. */
const given = (sql?: Parameters<typeof emulateWaitForLsn>[1], options: Partial<Database.Options> = {}) =>
  Effect.gen(function* () {
    const { primary } = yield* Cluster
    const server = yield* replica(0)
    const [row] = yield* query<{ there: boolean }>(
      primary.url("app"),
      "SELECT to_regproc('wait_for_lsn') IS NOT NULL AS there"
    )
    if (row?.there !== true) yield* createWaitFunction(primary.url("app"))
    yield* caughtUp
    const proxy = yield* makeProxy(server.url("app"))
    const commands = yield* emulateWaitForLsn(proxy, sql)
    return { commands, layer: open([], { readers: [proxy.url], ...options }), proxy, server }
  })

layer(cluster, { excludeTestServices: true, timeout: "30 seconds" })("a replica that has WAIT FOR LSN", (it) => {
  it.scoped("a read is served when WAIT FOR LSN reports its write, without a poll", () =>
    Effect.gen(function* () {
      const { commands, layer, server } = yield* given()
      yield* Effect.gen(function* () {
        // the first wait opens the connection of the command
        yield* pause(server)
        const first = yield* Effect.fork(Effect.flatMap(write, read))
        yield* until(() => commands.count() > 0)
        yield* resume(server)
        assert.strictEqual((yield* Fiber.join(first)).port, server.port)
        yield* pause(server)
        const before = commands.count()
        const id = yield* write
        yield* Effect.gen(function* () {
          yield* fakeTimers
          const reading = yield* Effect.fork(read(id))
          while (commands.count() === before) yield* query(server.url(), "SELECT 1")
          yield* resume(server)
          assert.deepStrictEqual(yield* Fiber.join(reading), { port: server.port, there: true })
        }).pipe(Effect.scoped)
      }).pipe(Consistency.withSession(patient()), Effect.provide(layer))
    })
  )

  it.scoped("reads that wait by WAIT FOR LSN share one connection, and hold none of the pool", () =>
    Effect.gen(function* () {
      const { commands, layer, server } = yield* given(undefined, { maxConnections: 2 })
      yield* Effect.gen(function* () {
        yield* pause(server)
        const reading = yield* Effect.fork(
          Effect.forEach(Array(30), () => Effect.flatMap(write, read), { concurrency: "unbounded" }).pipe(
            Consistency.withSession(patient())
          )
        )
        yield* until(() => commands.count() > 5)
        const sql = yield* Db.reader
        yield* Db.withConsistency(sql`SELECT 1`, Consistency.Eventual())
        yield* resume(server)
        for (const seen of yield* Fiber.join(reading)) {
          assert.deepStrictEqual(seen, { port: server.port, there: true })
        }
        assert.strictEqual(commands.connections(), 1)
      }).pipe(Effect.provide(layer))
    })
  )

  const failing: ReadonlyArray<readonly [string, Parameters<typeof emulateWaitForLsn>[1]]> = [
    ["is refused", "as it is"],
    ["reports a promotion", () => "SELECT 'not in recovery' AS status"],
    ["returns no row", () => "SELECT WHERE false"],
    ["ends its session", () => "SELECT pg_terminate_backend(pg_backend_pid())"]
  ]
  /** Runs a check while a read waits for the paused replica, and then lets the replica serve the read. */
  const whileWaiting = (
    use: (opened: Effect.Effect.Success<ReturnType<typeof given>>) => Effect.Effect<unknown, unknown, Scope.Scope>,
    ...settings: Parameters<typeof given>
  ) =>
    Effect.gen(function* () {
      const all = yield* given(...settings)
      const { layer, server } = all
      yield* Effect.gen(function* () {
        yield* pause(server)
        const reading = yield* Effect.fork(Effect.flatMap(write, read))
        yield* Effect.scoped(use(all))
        yield* resume(server)
        assert.deepStrictEqual(yield* Fiber.join(reading), { port: server.port, there: true })
      }).pipe(Consistency.withSession(patient()), Effect.provide(layer))
      return all
    })

  for (const [name, sql] of failing) {
    it.scoped(`a read is served by polls if WAIT FOR LSN ${name}`, () =>
      Effect.gen(function* () {
        const { commands } = yield* whileWaiting(({ commands }) => until(() => commands.count() > 0), sql)
        // the next one is tried after some seconds
        assert.strictEqual(commands.count(), 1)
      })
    )
  }

  it.scoped("a report that the position does not confirm is not trusted again by its read", () =>
    Effect.gen(function* () {
      const { commands } = yield* whileWaiting(
        ({ commands, proxy }) =>
          Effect.gen(function* () {
            yield* until(() => commands.count() > 0)
            const { roundTrips } = proxy
            yield* until(() => proxy.roundTrips > roundTrips + 5)
          }),
        () => "SELECT 'success' AS status"
      )
      assert.strictEqual(commands.count(), 1)
    })
  )

  it.scoped("without a monitor WAIT FOR LSN is not used", () =>
    Effect.gen(function* () {
      const { commands } = yield* whileWaiting(({ proxy }) => until(() => proxy.roundTrips > 5), undefined, {
        monitor: false
      })
      assert.strictEqual(commands.count(), 0)
    })
  )

  it.scoped("the connection of WAIT FOR LSN closes with the layer, also during a wait", () =>
    Effect.gen(function* () {
      const { commands, layer, proxy, server } = yield* given()
      yield* pause(server)
      yield* Effect.gen(function* () {
        yield* Effect.fork(Effect.flatMap(write, read))
        yield* until(() => commands.count() > 0)
      }).pipe(Effect.scoped, Consistency.withSession(patient()), Effect.provide(layer))
      yield* until(() => proxy.connections === 0)
    })
  )
})
