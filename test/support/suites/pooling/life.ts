/** The choice of a connection at checkout, and its lifetime. */
import * as fs from "node:fs"
import { assert, it } from "@effect/vitest"
import * as Array from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { Connection } from "../../../../src/internal/connection/connection.js"
import { Audit, Db, Place, pid } from "../../databases.js"
import { eventually } from "../../eventually.js"
import { query, terminateBackends } from "../../server.js"
import { hold, holdAll, processes, warmUp } from "./connections.js"
import { figures, only, settled, told, watch } from "./observations.js"
import { Network, open, openOverNetwork, type Way } from "./way.js"

/** Waits for some time, by a statement in another session. */
const pass = (millis: number) =>
  Effect.flatMap(Place, ({ writer }) => query(writer, "SELECT pg_sleep($1)", [millis / 1000]))

/**
 * Returns the kind of timer that the kernel runs for a socket between two ports of this machine; 2
 * is the timer of TCP keepalive.
 */
const timer = (local: number, remote: number): number | undefined => {
  const port = (address: string | undefined) => Number.parseInt(address?.split(":")[1] ?? "", 16)
  const rows = ["/proc/net/tcp", "/proc/net/tcp6"].flatMap((file) => fs.readFileSync(file, "utf8").split("\n").slice(1))
  const row = rows
    .map((line) => line.trim().split(/\s+/))
    .find(([, from, to]) => port(from) === local && port(to) === remote)
  return row === undefined ? undefined : Number.parseInt(row[5] ?? "", 16)
}

export const life = (way: Way): void => {
  const isPooled = way.strategy === "pooled"
  const { hasSessions } = way.route

  if (isPooled && hasSessions) {
    const which = way.order === "lifo" ? "used last" : "unused for longest"
    it.scopedLive(`a checkout gets the idle connection that was ${which}`, () =>
      Effect.gen(function* () {
        const [first, second, third] = yield* warmUp(3)
        assert.strictEqual(yield* pid, way.order === "lifo" ? third : first)
        assert.strictEqual(yield* pid, way.order === "lifo" ? third : second)
      }).pipe(Effect.provide(open(way, { startup: "lazy" })))
    )
  }

  it.scopedLive("a connection that is too old is replaced at checkout", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      yield* eventually(
        Effect.zipRight(
          pid,
          Effect.sync(() => only(facts, "Connected").length)
        ),
        (connected) => connected > 2
      )
      for (const { reason } of only(facts, "Closed")) assert.strictEqual(reason, "aged")
      assert.isAtMost((yield* figures).total, 2)
    }).pipe(Effect.provide(open(way, { maxConnections: 1, maxLifetime: "60 millis", idleTimeout: Duration.infinity })))
  )

  it.scopedLive("a connection that grows too old during a checkout is closed at check-in, not before", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const holder = yield* hold
      yield* pass(100)
      assert.isEmpty(only(facts, "Closed"))
      assert.strictEqual((yield* holder.release)._tag, "Success")
      const [closed] = yield* told(facts, "Closed")
      assert.strictEqual(closed?.reason, "aged")
    }).pipe(Effect.provide(open(way, { maxLifetime: "80 millis", idleTimeout: Duration.infinity, startup: "lazy" })))
  )

  if (isPooled) {
    it.scopedLive("connections that open together retire at different times, up to 2.5 % before maxLifetime", () =>
      Effect.gen(function* () {
        const pool = (yield* Db).executor.topology.writer.writes
        const deadline = performance.now() + 10_000
        const checkout = Effect.async<Connection, unknown>((resume) => {
          const giveUp = pool?.checkout(deadline, [], (error, connection) =>
            resume(connection === undefined ? Effect.fail(error) : Effect.succeed(connection))
          )
          return Effect.sync(() => giveUp?.())
        })
        const connections = yield* Effect.all(
          Array.makeBy(8, () => checkout),
          { concurrency: "unbounded" }
        )
        const lives = connections.map(({ createdAt, retireAt }) => retireAt - createdAt)
        for (const millis of lives) {
          assert.isAtMost(millis, 100_000)
          assert.isAtLeast(millis, 97_500)
        }
        assert.strictEqual(new Set(lives).size, 8)
        for (const connection of connections) pool?.checkin(connection)
      }).pipe(Effect.provide(open(way, { maxLifetime: "100 seconds" })))
    )
  }

  if (hasSessions && process.platform === "linux") {
    it.scopedLive("an idle connection is kept alive by TCP keepalive", () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const [row] = yield* sql<{ local: number }>`
          SELECT client_port AS local FROM pg_stat_activity WHERE pid = pg_backend_pid()`
        yield* eventually(
          Effect.sync(() => timer(row?.local ?? 0, sql.config.port ?? 0)),
          (kind) => kind === 2
        )
      }).pipe(Effect.provide(open(way, { maxConnections: 1 })))
    )
  }

  it.scopedLive("a connection that is idle for too long is closed", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      yield* pid
      yield* settled({ total: 0 })
      const [closed] = yield* told(facts, "Closed")
      assert.strictEqual(closed?.reason, "idle")
    }).pipe(Effect.provide(open(way, { idleTimeout: "30 millis" })))
  )

  it.scopedLive("idleTimeout infinity never closes a connection for idleness", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const first = yield* pid
      const { writer } = yield* Place
      // the clock is another pool, whose idle connections are closed after 30 ms
      yield* Effect.gen(function* () {
        for (let i = 0; i < 3; i++) {
          yield* Effect.flatMap(Audit.writer, (sql) => sql`SELECT 1`)
          yield* eventually(Audit.status, ({ servers }) => servers[0]?.writes?.total === 0)
        }
      }).pipe(Effect.provide(Layer.orDie(Audit.layer({ writer, idleTimeout: "30 millis" }))))
      assert.isEmpty(only(facts, "Closed"))
      if (hasSessions) assert.strictEqual(yield* pid, first)
    }).pipe(Effect.provide(open(way, { idleTimeout: Duration.infinity })))
  )

  const min = isPooled ? 3 : 1

  it.scopedLive("minConnections are open before the first caller comes, and stay open although they are idle", () =>
    Effect.gen(function* () {
      yield* settled({ total: min, idle: min })
      const facts = yield* watch
      const before = hasSessions ? yield* processes : []
      if (isPooled) {
        const holders = yield* holdAll(min + 2)
        for (const { release } of holders) yield* release
        yield* told(facts, "Closed", 2)
      }
      yield* pass(150)
      yield* settled({ total: min, idle: min })
      assert.lengthOf(only(facts, "Closed"), isPooled ? 2 : 0)
      if (hasSessions && !isPooled) assert.deepStrictEqual(yield* processes, before)
    }).pipe(Effect.provide(open(way, { minConnections: min, idleTimeout: "40 millis" })))
  )

  if (hasSessions) {
    it.scopedLive("minConnections are opened again when the server has ended them", () =>
      Effect.gen(function* () {
        const { name } = yield* Place
        yield* settled({ idle: min })
        const before = yield* processes
        assert.lengthOf(before, min)
        yield* terminateBackends(name)
        yield* eventually(processes, (all) => all.length === min && all.every((one) => !before.includes(one)))
        yield* settled({ total: min, idle: min })
      }).pipe(Effect.provide(open(way, { minConnections: min })))
    )
  }

  it.scopedLive("minConnections are opened again after an outage", () =>
    Effect.gen(function* () {
      const network = yield* Network
      const facts = yield* watch
      yield* settled({ idle: min })
      yield* network.refuse
      yield* network.cut
      yield* told(facts, "ConnectFailed", 2)
      assert.strictEqual((yield* figures).total, 0)
      yield* network.accept
      yield* settled({ total: min, idle: min, lastConnectFailure: undefined })
    }).pipe(Effect.provide(openOverNetwork(way, { minConnections: min })))
  )

  it.scopedLive("minConnections are opened again when their lifetime has ended", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const closed = yield* told(facts, "Closed", 2 * min)
      for (const { reason } of closed) assert.strictEqual(reason, "aged")
      yield* settled({ total: min, idle: min })
    }).pipe(Effect.provide(open(way, { minConnections: min, maxLifetime: "100 millis" })))
  )
}
