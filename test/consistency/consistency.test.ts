import { assert, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Consistency, DatabaseError, TestDatabase, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import {
  Cluster,
  cluster,
  firstPassedOver,
  freshId,
  hasty,
  insertId,
  open,
  patient,
  pause,
  read,
  replica,
  resume,
  type Seen,
  saysWhere,
  tokenIn,
  waitingRead,
  withProxiedPrimary,
  write
} from "../support/cluster.js"
import { Db, fresh, idle, insert as insertItem } from "../support/databases.js"
import { answers, type Message, makeProxy, type Proxy, sends } from "../support/proxy.js"
import { freshRole, loggedIn } from "../support/roles.js"
import { query } from "../support/server.js"

/** Counts the log positions that are reported through these proxies from now on. */
const countPositions = (...proxies: ReadonlyArray<Proxy>) =>
  Effect.gen(function* () {
    const counted = { asked: 0 }
    const note = (message: Message) => {
      if (saysWhere(message)) counted.asked++
      return false
    }
    for (const proxy of proxies) yield* proxy.when(note, "pass")
    return counted
  })

describe("Consistency", () => {
  const token = new Consistency.Token({
    database: "app",
    systemId: "7712530469689366348",
    timeline: 3,
    lsn: 0x1b82f58n
  })

  it("a token is plain data when it is encoded, and decodes to itself", () => {
    const encoded = Schema.encodeSync(Consistency.Token)(token)
    assert.deepStrictEqual(encoded, {
      database: "app",
      systemId: "7712530469689366348",
      timeline: 3,
      lsn: "0/1B82F58"
    })
    assert.deepStrictEqual(Schema.decodeSync(Consistency.Token)(encoded), token)
    for (const lsn of ["0/0", "FFFFFFFF/FFFFFFFF", "1/2A", "16/B374D848"]) {
      const decoded = Schema.decodeSync(Consistency.Token)({ ...encoded, lsn })
      assert.strictEqual(Schema.encodeSync(Consistency.Token)(decoded).lsn, lsn)
    }
  })

  it("a value that is not a token is refused, whatever it is", () => {
    const good = Schema.encodeSync(Consistency.Token)(token)
    for (const bad of [
      null,
      "app",
      {},
      { ...good, lsn: "" },
      { ...good, lsn: "0/1B82F58; DROP TABLE item" },
      { ...good, lsn: "100000000/0" },
      { ...good, lsn: "0/-1" },
      { ...good, lsn: 5 },
      { ...good, timeline: 0 },
      { ...good, timeline: 1.5 },
      { ...good, timeline: 2 ** 32 },
      { ...good, systemId: "x" },
      { ...good, systemId: "" }
    ]) {
      assert.isTrue(Either.isLeft(Schema.decodeUnknownEither(Consistency.Token)(bad)), JSON.stringify(bad))
    }
  })

  it("a causal session encodes to text for a header, a cookie or a field of a job, and decodes to itself", () => {
    const other = new Consistency.Token({ ...token, database: 'q"ue, u:e=;%20é', lsn: 5n })
    const session = Consistency.makeSession({ tokens: [token, other] })
    const text = Consistency.encodeSession(session)
    assert.match(text, /^[\w%:/.,~!*'()-]+$/)
    const back = Either.getOrThrow(Consistency.decodeSession(text))
    assert.deepStrictEqual([...back.known], [...session.known])
    assert.deepStrictEqual([...Either.getOrThrow(Consistency.decodeSession("")).known], [])
    assert.deepStrictEqual([...Either.getOrThrow(Consistency.decodeSession("app")).known], [["app", "unknown"]])
    for (const bad of [
      ",",
      "app:",
      "app:1",
      "app:1:1",
      "app:1:1:0/0:x",
      ":1:1:0/0",
      "%",
      "%zz:1:1:0/0",
      "app:1:x:0/0"
    ]) {
      assert.isTrue(Either.isLeft(Consistency.decodeSession(bad)), bad)
    }
  })

  it("a causal session made of several tokens of one database begins with the newest, whatever their order", () => {
    const at = (lsn: bigint, timeline = 3) => new Consistency.Token({ ...token, lsn, timeline })
    const of = (...tokens: ReadonlyArray<Consistency.Token>) => Consistency.makeSession({ tokens }).known.get("app")
    assert.deepStrictEqual(of(at(9n), at(5n)), at(9n))
    assert.deepStrictEqual(of(at(5n), at(9n), at(1n, 4), at(6n)), at(1n, 4))
    assert.deepStrictEqual(of(at(9n), new Consistency.Token({ ...token, systemId: "1" })), "unknown")
    assert.strictEqual(of(), undefined)
  })

  it("a token with a log position out of range is refused", () => {
    for (const lsn of [-5n, 1n << 70n]) assert.throws(() => new Consistency.Token({ ...token, lsn }))
  })

  it("a causal session keeps the newest token that it records, and knows none after a write without one", () => {
    const at = (lsn: bigint, timeline = 3) => new Consistency.Token({ ...token, lsn, timeline })
    const session = Consistency.makeSession()
    const noted = (next: Consistency.Token | undefined) => {
      session.record("app", next, session.beginQuery())
      return session.known.get("app")
    }
    assert.deepStrictEqual(noted(at(5n)), at(5n))
    assert.deepStrictEqual(noted(at(4n)), at(5n))
    assert.deepStrictEqual(noted(at(6n)), at(6n))
    assert.deepStrictEqual(noted(at(1n, 4)), at(1n, 4))
    assert.deepStrictEqual(noted(undefined), "unknown")
    assert.deepStrictEqual(noted(at(2n, 4)), at(2n, 4))
  })
})

describe("Consistency, on the shared servers", () => {
  it.scopedLive("a read in a causal session sees the writes before it, on a replica", () =>
    Effect.gen(function* () {
      const sql = yield* Db.reader
      const seen = yield* Effect.forEach(
        Array.from({ length: 50 }),
        (_, i) =>
          Effect.zipRight(
            i % 2 === 0 ? insertItem(`row ${i}`) : Db.withTransaction(insertItem(`row ${i}`)),
            sql`SELECT pg_is_in_recovery() AS standby, count(*)::int AS n FROM item WHERE name = ${`row ${i}`}`
          ),
        { concurrency: 2 }
      )
      for (const rows of seen) assert.deepStrictEqual(rows, [{ standby: true, n: 1 }])
    }).pipe(Consistency.withSession(patient()), Effect.provide(fresh()))
  )
})

layer(cluster, { excludeTestServices: true, timeout: "30 seconds" })(
  "Consistency, on a primary with two replicas",
  (it) => {
    it.scoped("a read in a causal session sees the writes before it, on a replica that has them", () =>
      Effect.gen(function* () {
        const { replicas } = yield* Cluster
        const seen = yield* Effect.forEach(Array.from({ length: 300 }), () => Effect.flatMap(write, read), {
          concurrency: 4
        }).pipe(Consistency.withSession(patient()))
        assert.isTrue(seen.every(({ there }) => there))
        const ports = replicas.map(({ port }) => port)
        assert.isTrue(seen.every(({ port }) => ports.includes(port)))
      }).pipe(Effect.provide(open([0, 1])))
    )

    it.scoped("a read outside of a causal session may be served by a replica that lacks the last write", () =>
      Effect.gen(function* () {
        const server = yield* replica(0)
        yield* pause(server)
        assert.deepStrictEqual(yield* Effect.flatMap(write, read), { port: server.port, there: false })
      }).pipe(Effect.provide(open([0])))
    )

    it.scoped("a read selects the one of two replicas that has the write", () =>
      Effect.gen(function* () {
        yield* pause(yield* replica(0))
        const other = yield* replica(1)
        const seen = yield* Effect.forEach(Array.from({ length: 10 }), () => Effect.flatMap(write, read)).pipe(
          Consistency.withSession(patient())
        )
        for (const one of seen) assert.deepStrictEqual(one, { port: other.port, there: true })
      }).pipe(Effect.provide(open([0, 1])))
    )

    it.scoped("the primary is read if no replica has the write in time, and the rejected replicas are reported", () =>
      Effect.gen(function* () {
        const { primary } = yield* Cluster
        yield* pause(yield* replica(0))
        const why = yield* firstPassedOver
        const one = yield* Effect.flatMap(write, read).pipe(Consistency.withSession(hasty()))
        assert.deepStrictEqual(one, { port: primary.port, there: true })
        assert.deepStrictEqual(yield* Fiber.join(why), Option.some("behind"))
      }).pipe(Effect.provide(open([0])))
    )

    it.scoped("a read waits for a replica that catches up", () =>
      Effect.gen(function* () {
        const server = yield* replica(0)
        yield* pause(server)
        const waiting = yield* waitingRead
        yield* resume(server)
        assert.deepStrictEqual(yield* Fiber.join(waiting), { port: server.port, there: true })
      }).pipe(Effect.provide(open([0])))
    )

    it.scoped("a read that waits for a replica can be interrupted, and leaves no connection checked out", () =>
      Effect.gen(function* () {
        yield* pause(yield* replica(0))
        const waiting = yield* waitingRead
        yield* Fiber.interrupt(waiting)
        yield* idle
      }).pipe(Effect.provide(open([0])))
    )

    it.scoped("a read that may not go to the primary fails if no replica has the write in time", () =>
      Effect.gen(function* () {
        yield* pause(yield* replica(0))
        const session = patient()
        const id = yield* Consistency.withSession(write, session)
        const strict = Consistency.AtLeast({ token: tokenIn(session), maxWait: 0, otherwise: "fail" })
        const error = yield* read(id).pipe(Db.withConsistency(strict), DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag, "NoReplicaCaughtUp")
        assert.match(error.message, /^database "app": no replica caught up with the required position within \d+ ms - /)
        // each such read in a unit of work fails, too
        const both = yield* UnitOfWork.run(Effect.all([Effect.exit(read(id)), Effect.exit(read(id))])).pipe(
          Db.withConsistency(strict)
        )
        assert.isTrue(both.every(Exit.isFailure))
        yield* idle
      }).pipe(Effect.provide(open([0])))
    )

    it.scoped("a causal session that a job carries as text is valid in another client of the database", () =>
      Effect.gen(function* () {
        const session = hasty()
        const id = yield* Consistency.withSession(write, session)
        const job = JSON.stringify({ id, seen: Consistency.encodeSession(session) })
        yield* Effect.gen(function* () {
          const server = yield* replica(0)
          const { seen } = JSON.parse(job)
          const known = Either.getOrThrow(Consistency.decodeSession(seen, { maxWait: "20 seconds" }))
          const one = yield* Consistency.withSession(read(id), known)
          assert.deepStrictEqual(one, { port: server.port, there: true })
        }).pipe(Effect.provide(open([0])))
      }).pipe(Effect.provide(open([])))
    )

    it.scoped("transactions of readers, streams and reserved connections run on a replica that has the write", () =>
      Effect.gen(function* () {
        yield* pause(yield* replica(0))
        const { port } = yield* replica(1)
        const sql = yield* Db.reader
        const seen = (id: number) => sql<Seen>`
        SELECT inet_server_port() AS port, EXISTS (SELECT 1 FROM item WHERE id = ${id}) AS there`
        const ways = (id: number) => [
          sql.withTransaction(seen(id)),
          sql.withTransaction(Effect.zipRight(sql`SELECT 1`, seen(id))),
          Effect.map(Stream.runCollect(seen(id).stream), (rows) => [...rows]),
          Effect.scoped(
            Effect.flatMap(sql.reserve, (connection) =>
              connection.execute(
                `SELECT inet_server_port() AS port, EXISTS (SELECT 1 FROM item WHERE id = ${id}) AS there`,
                [],
                undefined
              )
            )
          )
        ]
        for (const way of [0, 1, 2, 3]) {
          for (let i = 0; i < 4; i++) {
            const rows = yield* Effect.flatMap(write, (id) => ways(id)[way] ?? Effect.succeed([]))
            assert.deepStrictEqual(rows, [{ port, there: true }])
          }
        }
      }).pipe(Consistency.withSession(patient()), Effect.provide(open([0, 1])))
    )

    it.scoped("a causal session includes autocommit writes, those of a failed CALL and of several commands", () =>
      Effect.gen(function* () {
        const { port } = yield* replica(0)
        const sql = yield* Db.writer
        const { primary } = yield* Cluster
        const alone = freshId()
        yield* insertId(alone)
        assert.deepStrictEqual(yield* read(alone), { port, there: true })
        yield* sql.unsafe(
          "CREATE OR REPLACE PROCEDURE leave (id int) LANGUAGE plpgsql AS $$ BEGIN\n\
        INSERT INTO item (id) VALUES (leave.id); COMMIT; RAISE EXCEPTION 'no'; END $$"
        )
        const left = freshId()
        assert.isTrue(Exit.isFailure(yield* Effect.exit(sql`CALL leave(${left})`)))
        assert.deepStrictEqual(yield* read(left), { port, there: true })
        // the effect of several commands in one text is unknown: the primary is read, and
        // reports its position
        const both = freshId()
        yield* sql.unsafe(`BEGIN; INSERT INTO item (id) VALUES (${both}); COMMIT`)
        assert.deepStrictEqual(yield* read(both), { port: primary.port, there: true })
        assert.deepStrictEqual(yield* read(both), { port, there: true })
      }).pipe(Consistency.withSession(patient()), Effect.provide(open([0])))
    )

    it.scoped("a unit of work sees the writes of the unit before it, and of a new unit inside of it", () =>
      Effect.gen(function* () {
        const { port } = yield* replica(0)
        const id = freshId()
        yield* UnitOfWork.run(insertId(id))
        assert.deepStrictEqual(yield* UnitOfWork.run(read(id)), { port, there: true })
        const next = freshId()
        const seen = yield* UnitOfWork.run(
          Effect.gen(function* () {
            const before = yield* read(id)
            yield* UnitOfWork.runNew(insertId(next))
            return [before, yield* read(next)]
          })
        )
        assert.deepStrictEqual(seen, [
          { port, there: true },
          { port, there: true }
        ])
      }).pipe(Consistency.withSession(patient()), Effect.provide(open([0])))
    )

    it.scoped("a stream that is read after the end of its unit sees the unit's writes", () =>
      Effect.gen(function* () {
        const { primary } = yield* Cluster
        yield* pause(yield* replica(0))
        const id = freshId()
        const stream = yield* UnitOfWork.run(
          Effect.zipRight(insertId(id), UnitOfWork.detach(Stream.fromEffect(read(id))))
        )
        assert.deepStrictEqual([...(yield* Stream.runCollect(stream))], [{ port: primary.port, there: true }])
      }).pipe(Consistency.withSession(hasty()), Effect.provide(open([0])))
    )

    it.scoped("the position of a write on a reserved connection is unknown, so the primary is read", () =>
      Effect.gen(function* () {
        const { primary } = yield* Cluster
        yield* pause(yield* replica(0))
        const sql = yield* Db.writer
        const id = freshId()
        yield* Effect.scoped(
          Effect.flatMap(sql.reserve, (connection) =>
            Effect.gen(function* () {
              yield* connection.execute(`INSERT INTO item (id) VALUES (${id})`, [], undefined)
              assert.deepStrictEqual(yield* read(id), { port: primary.port, there: true })
            })
          )
        )
        assert.deepStrictEqual(yield* read(id), { port: primary.port, there: true })
      }).pipe(Consistency.withSession(hasty()), Effect.provide(open([0])))
    )

    it.scoped("a COMMIT that is refused, or answered with ROLLBACK, fails as usual, and is not recorded", () =>
      Effect.gen(function* () {
        const session = hasty()
        const sql = yield* Db.writer
        const refused = yield* Db.withTransaction(sql`INSERT INTO item VALUES (${freshId()}, -1)`).pipe(
          Consistency.withSession(session),
          DatabaseError.refine,
          Effect.flip
        )
        assert.strictEqual(refused._tag, "CommitFailed")
        const aborted = yield* Db.withTransaction(
          Effect.zipRight(insertId(freshId()), Effect.ignore(sql`SELECT 1 / 0`))
        ).pipe(Consistency.withSession(session), DatabaseError.refine, Effect.flip)
        assert.strictEqual(aborted._tag, "RolledBackAtCommit")
        yield* Db.withTransaction(sql`SELECT 1`, { access: "read only" }).pipe(Consistency.withSession(session))
        assert.strictEqual(session.known.size, 0)
        yield* idle
      }).pipe(Effect.provide(open([0])))
    )

    it.scoped("the primary is read after a COMMIT in doubt, until there is a new token", () =>
      withProxiedPrimary(
        patient(),
        ({ primary, proxy, session }) =>
          Effect.gen(function* () {
            yield* write
            yield* proxy.when(sends("COMMIT"), "cut")
            const error = yield* write.pipe(DatabaseError.refine, Effect.flip)
            assert.strictEqual(error._tag, "CommitOutcomeUnknown")
            assert.strictEqual(session.known.get("app"), "unknown")
            assert.deepStrictEqual(yield* read(1), { port: primary.port, there: true })
            const { port } = yield* replica(0)
            assert.deepStrictEqual(yield* Effect.flatMap(write, read), { port, there: true })
          }),
        { outcome: "unknown" }
      )
    )

    it.scoped("the primary is read after a COMMIT whose outcome was proved, until there is a new token", () =>
      withProxiedPrimary(patient(), ({ primary, proxy }) =>
        Effect.gen(function* () {
          yield* write
          yield* pause(yield* replica(0))
          yield* proxy.when(answers("COMMIT"), "cut")
          const id = yield* write
          assert.deepStrictEqual(yield* read(id), { port: primary.port, there: true })
          yield* resume(yield* replica(0))
          const { port } = yield* replica(0)
          assert.deepStrictEqual(yield* Effect.flatMap(write, read), { port, there: true })
          yield* proxy.when(sends("COMMIT"), "cut")
          const error = yield* write.pipe(DatabaseError.refine, Effect.flip)
          assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
        })
      )
    )

    it.scoped("a transaction whose connection is lost after its COMMIT succeeds, and the primary is read", () =>
      withProxiedPrimary(patient(), ({ primary, proxy, session }) =>
        Effect.gen(function* () {
          yield* write
          yield* proxy.when(saysWhere, "cut")
          const id = yield* write
          assert.strictEqual(session.known.get("app"), "unknown")
          assert.deepStrictEqual(yield* read(id), { port: primary.port, there: true })
          yield* idle
        })
      )
    )

    it.scoped(
      "a user without permission for log positions reads the primary with a warning, and a replica after the grant",
      () =>
        Effect.gen(function* () {
          const { awaitReplicas, primary } = yield* Cluster
          const server = yield* replica(0)
          const role = yield* freshRole(primary.url("app"))
          const admin = (command: string) => Effect.zipRight(query(primary.url("app"), command), awaitReplicas)
          yield* admin(`GRANT SELECT, INSERT ON item TO ${role.name}`)
          const settings = {
            writer: loggedIn(primary.url("app"), role),
            readers: [loggedIn(server.url("app"), role)]
          }
          const warnings: Array<string> = []
          const logger = Logger.make(({ logLevel, message }) => {
            if (LogLevel.greaterThanEqual(logLevel, LogLevel.Warning)) warnings.push(String(message))
          })
          const observed = Effect.gen(function* () {
            const why = yield* firstPassedOver
            const one = yield* Effect.flatMap(write, read)
            return { port: one.port, there: one.there, why }
          })
          yield* Effect.gen(function* () {
            const { port, there, why } = yield* observed
            assert.deepStrictEqual({ port, there }, { port: primary.port, there: true })
            assert.deepStrictEqual(yield* Fiber.join(why), Option.some("unproved"))
            yield* admin(`GRANT pg_read_all_stats TO ${role.name}`)
            const after = yield* Effect.flatMap(write, read)
            assert.deepStrictEqual(after, { port: server.port, there: true })
            // a COMMIT succeeds also if the server does not report its position
            yield* admin("REVOKE EXECUTE ON FUNCTION pg_control_system FROM PUBLIC")
            const refused = yield* Effect.flatMap(write, read)
            assert.deepStrictEqual(refused, { port: primary.port, there: true })
            assert.lengthOf(warnings, 1)
            assert.include(warnings[0], "pg_read_all_stats")
          }).pipe(
            Effect.ensuring(Effect.orDie(admin("GRANT EXECUTE ON FUNCTION pg_control_system TO PUBLIC"))),
            Consistency.withSession(patient()),
            Effect.provide(open([], settings)),
            Effect.provide(Logger.replace(Logger.defaultLogger, logger))
          )
        })
    )

    it.scoped("a replica that has all of the log qualifies when the log ends at the end of a page", () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const { port } = yield* replica(0)
        const session = patient()
        const emit = (bytes: number) =>
          Effect.as(sql`SELECT pg_logical_emit_message(false, '', repeat('x', ${bytes}))`, undefined).pipe(
            Consistency.withSession(session),
            Effect.map(() => tokenIn(session).lsn)
          )
        // `beside` is the size of a record without its text; other sessions may write in between, so
        // it is tried more than once
        let at = yield* emit(1000)
        for (let i = 0; i < 200 && at % 8192n !== 0n; i++) {
          const next = yield* emit(1000)
          const beside = next - at - 1000n
          const left = 8192n - (next % 8192n)
          at = beside < 100n && left > 500n ? yield* emit(Number(left - beside)) : next
        }
        assert.strictEqual(at % 8192n, 0n)
        const strict = Consistency.AtLeast({ token: tokenIn(session), maxWait: "20 seconds", otherwise: "fail" })
        assert.strictEqual((yield* Db.withConsistency(read(1), strict)).port, port)
      }).pipe(Effect.provide(open([0])))
    )

    it.scoped("a read with the token of another database or cluster fails, or is served by the primary", () =>
      Effect.gen(function* () {
        const { primary } = yield* Cluster
        const session = patient()
        const id = yield* Consistency.withSession(write, session)
        const own = tokenIn(session)
        for (const token of [
          new Consistency.Token({ ...own, database: "audit" }),
          new Consistency.Token({ ...own, systemId: "1" })
        ]) {
          const error = yield* read(id).pipe(
            Db.withConsistency(Consistency.AtLeast({ token, otherwise: "fail" })),
            DatabaseError.refine,
            Effect.flip
          )
          assert.strictEqual(error._tag, "TokenFromLostTimeline")
          const one = yield* Db.withConsistency(read(id), Consistency.AtLeast({ token }))
          assert.deepStrictEqual(one, { port: primary.port, there: true })
        }
      }).pipe(Effect.provide(open([0])))
    )

    it.scoped("a log position is requested only in a causal session, and only until it is known", () =>
      Effect.gen(function* () {
        const { primary } = yield* Cluster
        const server = yield* replica(0)
        const [front, back] = [yield* makeProxy(primary.url("app")), yield* makeProxy(server.url("app"))]
        const counted = yield* countPositions(front, back)
        yield* Effect.gen(function* () {
          yield* Effect.flatMap(write, read)
          assert.strictEqual(counted.asked, 0)
          yield* Effect.gen(function* () {
            const id = yield* write
            assert.strictEqual(counted.asked, 1)
            yield* read(id)
            const known = counted.asked
            assert.isAtLeast(known, 2)
            yield* read(id)
            yield* UnitOfWork.run(read(id))
            assert.strictEqual(counted.asked, known)
          }).pipe(Consistency.withSession(patient()))
        }).pipe(
          Effect.provide(open([], { writer: front.url, readers: [back.url], maxConnections: 1, startup: "lazy" }))
        )
      })
    )

    it.scoped("a causal session records nothing in a sandbox, and requests no log position", () =>
      Effect.gen(function* () {
        const { primary } = yield* Cluster
        const proxy = yield* makeProxy(primary.url("app"))
        const counted = yield* countPositions(proxy)
        const session = patient()
        yield* Effect.gen(function* () {
          const id = freshId()
          yield* insertId(id)
          assert.isTrue((yield* read(id)).there)
          yield* UnitOfWork.run(insertId(freshId()))
        }).pipe(
          Effect.provide(TestDatabase.layer(Db)),
          Consistency.withSession(session),
          Effect.provide(open([0], { writer: proxy.url }))
        )
        assert.strictEqual(session.known.size, 0)
        assert.strictEqual(counted.asked, 0)
      })
    )
  }
)
