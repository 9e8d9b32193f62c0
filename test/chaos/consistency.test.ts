/**
 * Clients that write and read in causal sessions, while backends are killed, and replicas fall
 * behind, catch up, crash and come back: each successful write of a client is seen by its later
 * reads, whichever server answers.
 *
 * - `EFFECT_DB_CHAOS=full`: ten times as long.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Layer from "effect/Layer"
import { Consistency, DatabaseError, type EmbeddedPostgres, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { Cluster, cluster, insertId } from "../support/cluster.js"
import { Db, idle } from "../support/databases.js"
import { randoms } from "../support/random.js"
import { query } from "../support/server.js"

const clients = 16
const rounds = process.env.EFFECT_DB_CHAOS === "full" ? 500 : 50
/** The number of writes between two disasters. */
const pace = 20

/** The ways in which a client writes, one after the other. */
const ways: ReadonlyArray<(id: number) => Effect.Effect<unknown, unknown, Db>> = [
  insertId,
  (id) => Db.withTransaction(insertId(id)),
  (id) => UnitOfWork.run(insertId(id)),
  (id) => UnitOfWork.run(Effect.zipLeft(insertId(id), Db.commit)),
  (id) => Db.withTransaction(insertId(id), { retry: true })
]

describe("a storm of causal sessions", () => {
  it.scopedLive(
    "every client sees its own successful writes during a storm",
    () =>
      Effect.gen(function* () {
        const { primary, replicas } = yield* Cluster
        const random = randoms(7)
        const any = <A>(all: ReadonlyArray<A>): A => all[Math.floor(random() * all.length)] ?? assert.fail("none")
        const on = (server: EmbeddedPostgres.EmbeddedPostgres.Server, command: string) =>
          Effect.ignore(Effect.sandbox(query(server.url(), command)))
        const kill = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'app'`
        const disasters = [
          Effect.suspend(() => on(primary, kill)),
          Effect.suspend(() => on(any(replicas), kill)),
          Effect.suspend(() => on(any(replicas), "SELECT pg_wal_replay_pause()")),
          Effect.suspend(() => on(any(replicas), "SELECT pg_wal_replay_resume()")),
          Effect.suspend(() => {
            const replica = any(replicas)
            return Effect.ignore(Effect.zipRight(replica.kill, replica.start))
          })
        ]
        let writes = 0
        const served = new Map<unknown, number>()
        const failed = (error: unknown) =>
          assert.include(
            ["Disconnected", "CommitOutcomeUnknown", "ConnectFailed", "PoolExhausted"],
            DatabaseError.fromUnknown(error)._tag
          )
        const storm = Effect.suspend(() => (++writes % pace === 0 ? any(disasters) : Effect.void))
        const client = (n: number) =>
          Effect.gen(function* () {
            let session = Consistency.makeSession({ maxWait: "20 millis" })
            const stored: Array<number> = []
            for (let i = 0; i < rounds; i++) {
              const id = n * 10_000 + i
              const way = ways[i % ways.length] ?? insertId
              const written = yield* Effect.either(Consistency.withSession(way(id), session))
              if (Either.isRight(written)) stored.push(id)
              else failed(written.left)
              yield* storm
              // the session goes through text, as by a cookie into the next request
              session = Either.getOrThrow(
                Consistency.decodeSession(Consistency.encodeSession(session), { maxWait: "20 millis" })
              )
              const seen = yield* Effect.flatMap(
                Db.reader,
                (sql) => sql<{ port: number; seen: number }>`
                  SELECT inet_server_port() AS port, count(*)::int AS seen FROM item WHERE ${sql.in("id", [-1, ...stored])}`
              ).pipe(Consistency.withSession(session), Effect.either)
              if (Either.isLeft(seen)) {
                failed(seen.left)
                continue
              }
              const [row] = seen.right
              assert.strictEqual(row?.seen, stored.length, `client ${n} after write ${i}, by ${row?.port}`)
              served.set(row?.port, (served.get(row?.port) ?? 0) + 1)
            }
            return stored.length
          })
        const counts = yield* Effect.forEach(
          Array.from({ length: clients }, (_, n) => n),
          client,
          { concurrency: "unbounded" }
        )
        const total = counts.reduce((sum, n) => sum + n, 0)
        assert.isAbove(total, (clients * rounds) / 2)
        // replicas have served reads
        assert.isTrue(replicas.some(({ port }) => served.has(port)))
        yield* Effect.forEach(replicas, (replica) => on(replica, "SELECT pg_wal_replay_resume()"))
        yield* idle
      }).pipe(
        Effect.provide(
          Layer.unwrapEffect(
            Effect.map(Cluster, (servers) =>
              Db.layer({ ...servers.settings("app"), readerRetryDelay: "100 millis", acquireTimeout: "5 seconds" })
            )
          ).pipe(Layer.provideMerge(cluster))
        )
      ),
    240_000
  )
})
