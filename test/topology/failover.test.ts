/** The writer that moves to another host. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { EmbeddedPostgres } from "effect-db"
import { Db, soon } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { query } from "../support/server.js"
import { only, watch } from "../support/suites/pooling/observations.js"

/** Returns one URL with the addresses of several servers. */
const urlOf = (servers: ReadonlyArray<EmbeddedPostgres.EmbeddedPostgres.Server>) => {
  const [first] = servers
  if (first === undefined) return assert.fail("no server")
  const hosts = servers.map(({ host, port }) => `${host}:${port}`).join()
  return Redacted.make(Redacted.value(first.url()).replace(`${first.host}:${first.port}`, hosts))
}

const nameOf = ({ host, port }: EmbeddedPostgres.EmbeddedPostgres.Server): string => `${host}:${port}`

const cluster = Effect.gen(function* () {
  const { awaitReplicas, primary, replicas } = yield* EmbeddedPostgres.make({ directory, replicas: 1 })
  const replica = replicas[0] ?? assert.fail("no replica")
  yield* query(primary.url(), "CREATE TABLE item (n int PRIMARY KEY)")
  yield* awaitReplicas
  return { primary, replica, writer: urlOf([primary, replica]) }
})

const insert = (n: number) => Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO item VALUES (${n})`)

const numbers = (server: EmbeddedPostgres.EmbeddedPostgres.Server) =>
  Effect.map(query<{ n: number }>(server.url(), "SELECT n FROM item ORDER BY n"), (rows) => rows.map(({ n }) => n))

describe("a writer on several hosts", () => {
  it.scopedLive("a write finds the promoted standby, and the former primary gets no write when it comes back", () =>
    Effect.gen(function* () {
      const { primary, replica, writer } = yield* cluster
      yield* Effect.gen(function* () {
        const seen = yield* watch
        yield* insert(1)
        yield* primary.kill
        const waiting = yield* Effect.fork(insert(2))
        yield* replica.promote
        yield* Fiber.join(waiting)
        const [change] = only(seen, "WriterChanged").slice(-1)
        assert.deepInclude(change, { from: nameOf(primary), to: nameOf(replica), timeline: 2 })
        yield* primary.start
        // a lost connection begins a search, in which both servers accept writes
        const sql = yield* Db.writer
        yield* Effect.exit(sql`SELECT pg_terminate_backend(pg_backend_pid())`)
        yield* Effect.forEach([3, 4, 5], insert, { concurrency: 3, discard: true })
        assert.deepStrictEqual(yield* numbers(replica), [1, 2, 3, 4, 5])
        assert.deepStrictEqual(yield* numbers(primary), [1])
      }).pipe(Effect.provide(Db.layer({ writer })))
    })
  )

  it.scopedLive("listeners move with the writer, and receive a gap", () =>
    Effect.gen(function* () {
      const { primary, replica, writer } = yield* cluster
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const listening = yield* Deferred.make<void>()
        const messages = yield* Effect.fork(
          Db.listen("news").pipe(
            Stream.tap(() => Deferred.succeed(listening, undefined)),
            Stream.takeUntil((one) => one._tag === "Message" && one.payload === "later"),
            Stream.runCollect
          )
        )
        const send = (payload: string) =>
          Effect.zipRight(Effect.repeat(sql.notify("news", payload), soon), Effect.never)
        yield* Effect.raceFirst(Deferred.await(listening), send("hello"))
        yield* primary.kill
        yield* replica.promote
        const received = yield* Effect.raceFirst(Fiber.join(messages), send("later"))
        assert.include(
          [...received].map(({ _tag }) => _tag),
          "Gap"
        )
      }).pipe(Effect.provide(Db.layer({ writer })))
    })
  )
})
