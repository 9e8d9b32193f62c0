/** The figures of the servers of a database. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { type Database, EmbeddedPostgres } from "effect-db"
import { Db } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually, eventuallySucceeds } from "../support/eventually.js"

const select = Effect.flatMap(Db.writer, (sql) => sql`SELECT 1`)
const read = Effect.flatMap(Db.reader, (sql) => sql`SELECT 1`)

describe("the status of a database", () => {
  it.scopedLive("the status shows role, health, timeline and lag of each server, and the hosts of the writer", () =>
    Effect.gen(function* () {
      const { primary, replicas } = yield* EmbeddedPostgres.make({ directory, replicas: 1 })
      const replica = replicas[0] ?? assert.fail("no replica")
      const nameOf = ({ host, port }: EmbeddedPostgres.EmbeddedPostgres.Server) => `${host}:${port}`
      const [first, second] = [nameOf(primary), nameOf(replica)]
      const url = Redacted.value(primary.url()).replace(`${first}`, `${first},${second}`)
      const options: Database.Options = {
        writer: Redacted.make(url),
        readers: [replica.url()],
        startup: "lazy",
        acquireTimeout: "300 millis"
      }
      yield* Effect.gen(function* () {
        const before = yield* Db.status
        assert.deepStrictEqual(
          before.servers.map(({ lagMillis, latencyMillis, role, state, timeline, up }) => ({
            ...{ lagMillis, latencyMillis, role, state, timeline, up }
          })),
          (["writer", "reader"] as const).map((role) => ({
            ...{ role, up: true, state: "unknown" as const },
            ...{ lagMillis: undefined, latencyMillis: undefined, timeline: undefined }
          }))
        )
        // on a busy machine the first search and connect take longer
        yield* eventuallySucceeds(select)
        yield* eventuallySucceeds(read)
        const isMeasured = ({ servers }: Database.Status) =>
          servers[1]?.latencyMillis !== undefined && servers[1].lagBytes === 0
        const { servers } = yield* eventually(Db.status, isMeasured)
        const [writer, reader] = servers
        assert.deepInclude(writer, { role: "writer", up: true, state: "up", reason: undefined, timeline: 1 })
        assert.deepInclude(reader, {
          role: "reader",
          up: true,
          state: "up",
          reason: undefined,
          timeline: 1,
          lagBytes: 0
        })
        assert.deepStrictEqual(reader?.hosts, [])
        assert.deepInclude(writer?.hosts[0], { name: first, isWriter: true, reason: undefined })
        assert.deepInclude(writer?.hosts[1], { name: second, isWriter: false })
        yield* primary.kill
        yield* Effect.exit(select)
        const lost = yield* eventually(Db.status, ({ servers }) => servers[0]?.state === "down")
        assert.strictEqual(lost.servers[0]?.reason, "the writer is searched")
        yield* replica.promote
        yield* eventually(Effect.exit(select), ({ _tag }) => _tag === "Success")
        const [moved] = (yield* Db.status).servers
        assert.deepInclude(moved, { state: "up", timeline: 2 })
        assert.deepStrictEqual(
          moved?.hosts.map(({ isWriter, name, reason }) => [name, isWriter, reason !== undefined]),
          [
            [first, false, true],
            [second, true, false]
          ]
        )
      }).pipe(Effect.provide(Db.layer(options)))
    })
  )
})
