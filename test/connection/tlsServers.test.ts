/** TLS connections to a real server that are cut, at login and later. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import { DatabaseError } from "effect-db"
import { describe } from "vitest"
import { Db } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { type Message, makeProxy } from "../support/proxy.js"
import { query } from "../support/server.js"
import { makeTlsServer } from "../support/tls.js"

describe("failures over TLS", () => {
  it.scopedLive(
    "a connect that is cut at any message of a login over TLS fails with ConnectFailed",
    () =>
      Effect.gen(function* () {
        const { through, url } = yield* makeTlsServer
        let failed = 0
        for (let n = 1; n <= 16; n++) {
          const proxy = yield* makeProxy(url)
          // counted by connection, because start-up retries the connect
          const counts = new Map<number, number>()
          const isNth = ({ connection }: Message) => {
            const count = (counts.get(connection) ?? 0) + 1
            counts.set(connection, count)
            return count === n
          }
          yield* proxy.when(isNth, "cut", Number.POSITIVE_INFINITY)
          const writer = through(proxy.port)
          const exit = yield* Effect.exit(Effect.scoped(Layer.build(Db.layer({ writer, connectTimeout: "1 second" }))))
          if (Exit.isSuccess(exit)) continue
          failed++
          const error = yield* Effect.flip(exit)
          assert.strictEqual(error._tag === "ConnectFailed" && error.reason, "unreachable", `message ${n}`)
        }
        // the request, its answer, and at least two messages of TLS and two of the login
        assert.isAtLeast(failed, 6)
      }),
    { timeout: 90_000 }
  )

  it.scopedLive("a TLS connection whose backend ends fails its statement, and is replaced if it is idle", () =>
    Effect.gen(function* () {
      const { certificate, password, port, url, username } = yield* makeTlsServer
      const writer = { host: "127.0.0.1", port, database: "postgres", username, password, ssl: { ca: certificate } }
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const pid = Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, ([row]) => row?.pid)
        const first = yield* pid
        yield* query(url, "SELECT pg_terminate_backend($1, 10000)", [first])
        assert.notStrictEqual(yield* pid, first)
        const error = yield* sql`SELECT pg_terminate_backend(pg_backend_pid())`.pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag === "Disconnected" && error.outcome, "inDoubt")
        yield* eventually(Db.status, ({ servers }) => servers[0]?.writes?.total === 0)
        assert.isNumber(yield* pid)
      }).pipe(Effect.provide(Db.layer({ writer })))
    })
  )
})
