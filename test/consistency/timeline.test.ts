/**
 * Reads after a failover: with tokens of a lost timeline, and on servers that only seem to be on the
 * timeline of the token.
 */
import { chmodSync, mkdirSync, readdirSync, writeFileSync } from "node:fs"
import * as path from "node:path"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { Consistency, DatabaseError, EmbeddedPostgres } from "effect-db"
import { describe } from "vitest"
import { conninfo } from "../../src/internal/embedded/postgresqlConf.js"
import { Cluster, cluster, hasty, open, read, replica, tokenIn, write } from "../support/cluster.js"
import { Db } from "../support/databases.js"
import { emptyFolder } from "../support/directory.js"
import { eventually, until } from "../support/eventually.js"
import { query } from "../support/server.js"

type Server = EmbeddedPostgres.EmbeddedPostgres.Server

/** The folder in which the primary archives its log, and from which a standby restores it. */
const archive = Effect.map(emptyFolder, (folder) => {
  chmodSync(folder, 0o777)
  const files = path.join(folder, "wal")
  mkdirSync(files)
  chmodSync(files, 0o777)
  const restore = path.join(folder, "restore.sh")
  // a slow archive: it returns a segment of the second timeline when the test releases that
  writeFileSync(
    restore,
    `#!/bin/sh\ncase "$1" in *.history) ;; 00000002*) touch "${folder}/asked-$1"; while ! test -f "${folder}/give-$1"; do test -d "${folder}" || exit 1; sleep 0.05; done;; esac\ncp "${files}/$1" "$2" 2>/dev/null\n`
  )
  chmodSync(restore, 0o755)
  return { folder, files, restore }
})

/** Sets the server that a standby streams from, by the settings that it reads next. */
const streamFrom = (source: Server, standby: Server, password: Redacted.Redacted<string>) => {
  const info = conninfo({ port: source.port, password: Redacted.value(password), name: standby.name })
  return query(standby.url(), `ALTER SYSTEM SET primary_conninfo = '${info.replaceAll("'", "''")}'`)
}

describe("Consistency, after a failover", () => {
  it.scopedLive(
    "a replica that has reached a token's position on another timeline does not serve its reads",
    () =>
      Effect.gen(function* () {
        const { password, primary, replicas } = yield* Cluster
        const [next, follower] = [yield* replica(0), yield* replica(1)]
        yield* Effect.forEach(replicas, (server) => server.stop)
        // a row that only the old primary has
        const session = hasty()
        const id = yield* write.pipe(Consistency.withSession(session), Effect.provide(open([])))
        const token = tokenIn(session)
        yield* primary.kill
        yield* Effect.forEach(replicas, (server) => server.start)
        yield* next.promote
        yield* streamFrom(next, follower, password)
        yield* query(follower.url(), "SELECT pg_reload_conf()")
        // the new primary is far beyond the token, on another timeline
        yield* query(next.url("app"), "CREATE TABLE filler AS SELECT repeat('x', 100) FROM generate_series(1, 20000)")
        yield* query<{ there: boolean }>(follower.url("app"), "SELECT to_regclass('filler') IS NOT NULL AS there").pipe(
          eventually(([row]) => row?.there === true)
        )
        const [far] = yield* query<{ far: boolean }>(
          follower.url(),
          `SELECT pg_last_wal_replay_lsn() >= '${Schema.encodeSync(Consistency.Token)(token).lsn}'::pg_lsn AS far`
        )
        assert.isTrue(far?.far)
        yield* Effect.gen(function* () {
          const strict = Consistency.AtLeast({ token, otherwise: "fail", maxWait: "20 seconds" })
          const error = yield* read(id).pipe(Db.withConsistency(strict), DatabaseError.refine, Effect.flip)
          assert.strictEqual(error._tag, "TokenFromLostTimeline")
          assert.include(error.message, "a lost timeline (1)")
          const lenient = yield* Db.withConsistency(read(id), Consistency.AtLeast({ token }))
          assert.deepStrictEqual(lenient, { port: next.port, there: false })
          // a session continues from the primary's current position, and replicas serve its reads
          // again
          const going = Consistency.makeSession({ tokens: [token], maxWait: "20 seconds" })
          yield* Effect.gen(function* () {
            assert.strictEqual((yield* read(id)).port, next.port)
            assert.strictEqual(tokenIn(going).timeline, 2)
            assert.strictEqual((yield* read(id)).port, follower.port)
            assert.deepStrictEqual(yield* Effect.flatMap(write, read), { port: follower.port, there: true })
          }).pipe(Consistency.withSession(going))
        }).pipe(Effect.provide(open([], { writer: next.url("app"), readers: [follower.url("app")] })))
      }).pipe(Effect.provide(cluster)),
    60_000
  )

  it.scopedLive(
    "a standby that restores a new timeline while its WAL receiver waits on the old one serves no token of the old one",
    () =>
      Effect.gen(function* () {
        const { files, folder, restore } = yield* archive
        const { password, primary, replicas } = yield* EmbeddedPostgres.make({
          replicas: 2,
          databases: ["app"],
          settings: {
            archive_mode: "on",
            // renamed when it is whole: a standby that restores a part of a segment streams it instead
            archive_command: `cp %p ${files}/%f.part && mv ${files}/%f.part ${files}/%f`,
            wal_keep_size: "1GB"
          }
        })
        const [next, follower] = replicas
        if (next === undefined || follower === undefined) return assert.fail()
        yield* query(primary.url("app"), "CREATE TABLE item (id int PRIMARY KEY)")
        yield* streamFrom(next, follower, password)
        yield* query(follower.url(), `ALTER SYSTEM SET restore_command = '${restore} %f %p'`)
        yield* query(follower.url(), "SELECT pg_reload_conf()")
        const receiver = query<{ status: string; tli: number; port: number }>(
          follower.url(),
          "SELECT status, received_tli AS tli, sender_port AS port FROM pg_stat_wal_receiver"
        )
        const receives = (is: (row: { status: string; port: number } | undefined) => boolean) =>
          eventually(receiver, ([row]) => is(row))
        yield* receives((row) => row?.port === next.port && row.status === "streaming")
        // a row that only the old primary has
        yield* next.stop
        const session = Consistency.makeSession()
        yield* Effect.flatMap(Db.writer, (sql) => Db.withTransaction(sql`INSERT INTO item VALUES (1)`)).pipe(
          Consistency.withSession(session),
          Effect.provide(Layer.orDie(Db.layer({ writer: primary.url("app") })))
        )
        const token = tokenIn(session)
        yield* primary.kill
        yield* next.start
        yield* receives((row) => row?.port === next.port && row.status === "streaming")
        yield* next.promote
        // the new primary is far beyond the token, on another timeline
        yield* query(next.url("app"), "CREATE TABLE filler AS SELECT repeat('x', 100) FROM generate_series(1, 2000)")
        yield* query(next.url("app"), "SELECT pg_switch_wal()")
        yield* query(next.url("app"), "CREATE TABLE more AS SELECT 1")
        const asked = () => readdirSync(folder).filter((name) => name.startsWith("asked-"))
        yield* until(() => asked().length > 0)
        const first = asked()[0]?.slice("asked-".length) ?? ""
        yield* until(() => readdirSync(files).includes(first))
        writeFileSync(path.join(folder, `give-${first}`), "")
        // the next segment is requested, and not released
        yield* until(() => asked().length > 1)
        assert.deepStrictEqual((yield* receiver)[0], { status: "waiting", tli: 1, port: next.port })
        const exit = yield* Effect.gen(function* () {
          const sql = yield* Db.reader
          return yield* sql`SELECT EXISTS (SELECT 1 FROM item WHERE id = 1) AS there, to_regclass('filler') IS NOT NULL AS filler`
        }).pipe(
          Db.withConsistency(Consistency.AtLeast({ token, maxWait: 0, otherwise: "fail" })),
          Effect.exit,
          Effect.provide(Layer.orDie(Db.layer({ writer: next.url("app"), readers: [follower.url("app")] })))
        )
        assert.isTrue(Exit.isFailure(exit), `it was served: ${exit}`)
      }),
    60_000
  )
})
