/**
 * The log position of a write: after a COMMIT that does not wait for the disk, on a distant server,
 * and when no server reports it.
 */
import { assert, layer } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { Consistency } from "effect-db"
import {
  Cluster,
  caughtUp,
  cluster,
  clusterWith,
  freshId,
  hasty,
  insertId,
  open,
  read,
  replica,
  saysWhere,
  withProxiedPrimary,
  write
} from "../support/cluster.js"
import { Db } from "../support/databases.js"
import { makeProxy } from "../support/proxy.js"
import { query } from "../support/server.js"

/** A cluster whose primary writes its log late if a COMMIT does not wait for the disk. */
const lazy = clusterWith(
  { replicas: 1, settings: { wal_writer_delay: "10s" } },
  `CREATE TABLE item (id int PRIMARY KEY);
   CREATE FUNCTION fast(n int) RETURNS void LANGUAGE plpgsql AS
     $$ BEGIN SET LOCAL synchronous_commit = off; INSERT INTO item VALUES (n); END $$`
)

/** Writes a row after the replica has all others, and returns its id. */
const written = (
  how: (sql: Effect.Effect.Success<typeof Db.writer>, id: number) => Effect.Effect<unknown, unknown, Db>
) =>
  Effect.gen(function* () {
    const sql = yield* Db.writer
    yield* write
    yield* caughtUp
    const id = freshId()
    yield* how(sql, id)
    return id
  })

/** Checks if a row is there, by two reads. */
const readTwice = (id: number) => Effect.map(Effect.all([read(id), read(id)]), (seen) => seen.map(({ there }) => there))

layer(lazy, { excludeTestServices: true, timeout: "30 seconds" })("commits that do not wait for the disk", (it) => {
  it.scoped("a write by a function that sets synchronous_commit off, in a statement of its own, is seen", () =>
    Effect.gen(function* () {
      const id = yield* written((sql, id) => sql`SELECT fast(${id})`)
      assert.isTrue((yield* read(id)).there)
    }).pipe(Consistency.withSession(hasty()), Effect.provide(open([0])))
  )
  it.scoped("a write by a function that sets synchronous_commit off, in a schema scope, is seen", () =>
    Effect.gen(function* () {
      const id = yield* written((sql, id) => Db.withSchema(sql`SELECT fast(${id})`, "public"))
      assert.isTrue((yield* read(id)).there)
    }).pipe(Consistency.withSession(hasty()), Effect.provide(open([0])))
  )
  it.scoped("a write with synchronous_commit off in a transaction, by a function or by SET LOCAL, is seen", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const id = yield* written((sql, id) => Db.withTransaction(sql`SELECT fast(${id})`))
      assert.isTrue((yield* read(id)).there)
      const other = freshId()
      yield* Db.withTransaction(Effect.zipRight(sql`SET LOCAL synchronous_commit = off`, insertId(other)))
      assert.isTrue((yield* read(other)).there)
    }).pipe(Consistency.withSession(hasty()), Effect.provide(open([0])))
  )
  it.scoped("a write with synchronous_commit off on a reserved connection is seen by two reads", () =>
    Effect.gen(function* () {
      const id = yield* written((sql, id) =>
        Effect.scoped(
          Effect.flatMap(sql.reserve, (one) =>
            Effect.zipRight(
              one.executeUnprepared("SET synchronous_commit = off", [], undefined),
              one.executeUnprepared(`INSERT INTO item VALUES (${id})`, [], undefined)
            )
          )
        )
      )
      assert.deepStrictEqual(yield* readTwice(id), [true, true])
    }).pipe(Consistency.withSession(hasty()), Effect.provide(open([0])))
  )
  it.scoped("a write with synchronous_commit off among several commands in one text is seen by two reads", () =>
    Effect.gen(function* () {
      const id = yield* written((sql, id) =>
        sql.unsafe(`SET LOCAL synchronous_commit = off; INSERT INTO item VALUES (${id})`)
      )
      assert.deepStrictEqual(yield* readTwice(id), [true, true])
    }).pipe(Consistency.withSession(hasty()), Effect.provide(open([0])))
  )
})

layer(cluster, { excludeTestServices: true, timeout: "30 seconds" })("servers that are far away or silent", (it) => {
  it.scoped("a read in a causal session succeeds when the primary is far away", () =>
    withProxiedPrimary(
      hasty(),
      ({ proxy }) =>
        Effect.gen(function* () {
          yield* proxy.delay(140)
          const sql = yield* Db.writer
          // a read of the primary, then one in a session with an unknown position
          yield* Db.withConsistency(read(1), Consistency.Strong())
          yield* Effect.scoped(Effect.asVoid(sql.reserve))
          const exit = yield* Effect.exit(read(1))
          assert.isTrue(Exit.isSuccess(exit))
        }),
      { acquireTimeout: "8 seconds" }
    )
  )

  it.scoped("a far replica that has the write is read each time, and keeps its connection", () =>
    Effect.gen(function* () {
      const server = yield* replica(0)
      const proxy = yield* makeProxy(server.url("app"))
      yield* proxy.delay(140)
      yield* Effect.gen(function* () {
        yield* write
        yield* caughtUp
        yield* read(1)
        const connections = proxy.accepted
        const ports: Array<number> = []
        for (let i = 0; i < 3; i++) {
          yield* write
          yield* caughtUp
          ports.push((yield* read(1)).port)
        }
        assert.deepStrictEqual(ports, [server.port, server.port, server.port])
        assert.strictEqual(proxy.accepted, connections)
      }).pipe(Consistency.withSession(Consistency.makeSession()), Effect.provide(open([], { readers: [proxy.url] })))
    })
  )

  it.scoped("a write waits less than 2 seconds for its log position, and without an answer it succeeds", () =>
    withProxiedPrimary(hasty(), ({ primary, proxy, session }) =>
      Effect.gen(function* () {
        yield* insertId(freshId())
        yield* proxy.when(saysWhere, "freeze")
        // the write is answered, and the answer about its position is held back
        const id = freshId()
        const [took] = yield* Effect.timed(insertId(id))
        assert.isBelow(Duration.toMillis(took), 2000)
        assert.strictEqual(session.known.get("app"), "unknown")
        assert.lengthOf(yield* query(primary.url("app"), "SELECT FROM item WHERE id = $1", [id]), 1)
      })
    )
  )

  it.scoped("the primary is read when the connections of the replica are all in use", () =>
    Effect.gen(function* () {
      const { primary } = yield* Cluster
      const reader = yield* Db.reader
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* reader.reserve
          const id = yield* write
          assert.deepStrictEqual(yield* read(id), { port: primary.port, there: true })
        })
      )
    }).pipe(
      Consistency.withSession(hasty()),
      Effect.provide(open([0], { maxConnections: 1, acquireTimeout: "3 seconds" }))
    )
  )

  it.scoped("the primary is read when the replica accepts no connection", () =>
    Effect.gen(function* () {
      const server = yield* replica(0)
      const proxy = yield* makeProxy(server.url("app"))
      yield* proxy.freeze
      yield* Effect.gen(function* () {
        yield* write
        assert.strictEqual((yield* read(1)).port, (yield* Cluster).primary.port)
      }).pipe(Consistency.withSession(hasty()), Effect.provide(open([], { readers: [proxy.url] })))
    })
  )
})
