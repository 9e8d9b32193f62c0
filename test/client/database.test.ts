import * as SqlClient from "@effect/sql/SqlClient"
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import { Consistency, Database, DatabaseError, EmbeddedPostgres, RetryPolicy, Router, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { Audit, active, Db, fresh, insert, Place, stored } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { freshDatabase, query, terminateBackends } from "../support/server.js"

const where = Effect.flatMap(Db.reader, (sql) =>
  Effect.map(
    sql<{ standby: boolean; port: number }>`SELECT pg_is_in_recovery() AS standby, inet_server_port() AS port`,
    (rows) => rows[0]
  )
)

/** A new cluster with two replicas, for a test that stops servers. */
const cluster = EmbeddedPostgres.EmbeddedPostgres.layer({ replicas: 2, databases: ["app"] })

const onCluster = (options: Partial<Database.Options> = {}) =>
  Layer.unwrapEffect(
    Effect.map(EmbeddedPostgres.EmbeddedPostgres, (server) => Db.layer({ ...server.settings("app"), ...options }))
  ).pipe(Layer.provideMerge(cluster))

describe("Database", () => {
  it.scopedLive(
    "a foreign client inside a transaction fails with ForeignClient, and runs apart if it is isolated",
    () =>
      Effect.gen(function* () {
        const other = yield* freshDatabase
        yield* query(other.writer, "CREATE TABLE item (name text)")
        const context = yield* Layer.build(PgClient.layer({ url: other.writer }))
        const foreign = Context.get(context, PgClient.PgClient)
        const isolated = Database.isolate(foreign)
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* insert("ours")
            for (const statement of [
              foreign`SELECT 1`,
              foreign`SELECT 1`.stream.pipe(Stream.runDrain),
              foreign.withTransaction(foreign`SELECT 1`)
            ]) {
              const error = yield* statement.pipe(DatabaseError.refine, Effect.flip)
              assert.isTrue(DatabaseError.isDatabaseError(error) && error._tag === "ForeignClient")
            }
            yield* isolated`INSERT INTO item VALUES ('theirs')`
            yield* isolated.withTransaction(isolated`INSERT INTO item VALUES ('theirs too')`)
            assert.deepStrictEqual(yield* Stream.runCount(isolated`SELECT * FROM item`.stream), 2)
            yield* insert("ours too")
          })
        )
        assert.deepStrictEqual(yield* stored, ["ours", "ours too"])
      }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("the writer is provided under the ecosystem's own tags", () =>
    Effect.gen(function* () {
      const sql = yield* SqlClient.SqlClient
      const pg = yield* PgClient.PgClient
      assert.strictEqual(sql, pg)
      yield* Effect.ignore(
        Db.withTransaction(Effect.zipRight(sql`INSERT INTO item (name) VALUES ('no')`, Effect.fail("no")))
      )
      yield* Effect.ignore(sql.withTransaction(Effect.zipRight(insert("neither"), Effect.fail("no"))))
      yield* sql.withTransaction(Effect.zipRight(sql`INSERT INTO item (name) VALUES ('yes')`, insert("both")))
      assert.deepStrictEqual(yield* stored, ["both", "yes"])
    }).pipe(Effect.provide(Layer.provideMerge(Db.layerSqlClient, fresh())))
  )

  it.scopedLive("a statement inside a transaction of another database still runs in its own", () =>
    Effect.gen(function* () {
      const app = yield* Place
      const audit = yield* freshDatabase
      yield* Effect.gen(function* () {
        const name = (sql: PgClient.PgClient) =>
          Effect.map(sql<{ name: string }>`SELECT current_database() AS name`, (rows) => rows[0]?.name)
        const names = yield* Db.withTransaction(
          Effect.all([Effect.flatMap(Db.writer, name), Effect.flatMap(Audit.writer, name)])
        )
        assert.deepStrictEqual(names, [app.name, audit.name])
      }).pipe(Effect.provide(Audit.layer({ writer: audit.writer })))
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("Db.any reads from a replica or from the open transaction, in which it cannot write", () =>
    Effect.gen(function* () {
      const any = yield* Db.any
      const standby = Effect.map(any<{ yes: boolean }>`SELECT pg_is_in_recovery() AS yes`, (rows) => rows[0]?.yes)
      assert.strictEqual(yield* standby, true)
      const inside = Effect.zipRight(insert("a"), Effect.all([standby, any`SELECT name FROM item`]))
      assert.deepStrictEqual(yield* Db.withTransaction(inside), [false, [{ name: "a" }]])
      const refused = yield* Db.withTransaction(
        Effect.zipRight(insert("b"), any`DELETE FROM item`.pipe(DatabaseError.refine, Effect.flip))
      )
      assert.strictEqual(refused._tag, "ReadOnlyViolation")
      assert.deepStrictEqual(yield* stored, ["a", "b"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a reader's transaction is one session on a replica, without the writer's statements", () =>
    Effect.gen(function* () {
      const reader = yield* Db.reader
      const pid = Effect.map(
        reader<{ pid: number; yes: boolean }>`SELECT pg_backend_pid() AS pid, pg_is_in_recovery() AS yes`,
        (rows) => rows[0]
      )
      const [a, b] = yield* reader.withTransaction(Effect.all([pid, reader.withTransaction(pid)]))
      assert.deepStrictEqual(a, b)
      assert.strictEqual(a?.yes, true)
      // the writer's statement is committed on the primary
      yield* reader.withTransaction(insert("written"))
      assert.deepStrictEqual(yield* stored, ["written"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("spans are created when a tracer is set, with OpenTelemetry's names", () =>
    Effect.gen(function* () {
      const names: Array<string> = []
      const attributes: Array<ReadonlyMap<string, unknown>> = []
      const tracer = Tracer.make({
        span: (name, parent, context, links, startTime, kind) => {
          names.push(name)
          const span = {
            _tag: "Span" as const,
            spanId: "1",
            traceId: "1",
            name,
            sampled: true,
            parent,
            context,
            links: [...links],
            kind,
            status: { _tag: "Started" as const, startTime },
            attributes: new Map<string, unknown>(),
            end: () => {},
            attribute: (key: string, value: unknown) => void span.attributes.set(key, value),
            event: () => {},
            addLinks: () => {}
          }
          attributes.push(span.attributes)
          return span
        },
        context: (f) => f()
      })
      yield* insert("a").pipe(Effect.withTracer(tracer))
      assert.deepStrictEqual(names, ["sql.execute"])
      assert.strictEqual(attributes[0]?.get("db.system.name"), "postgresql")
      assert.include(String(attributes[0]?.get("db.query.text")), "INSERT INTO item")
    }).pipe(Effect.provide(fresh()))
  )

  describe("retry of statements", () => {
    it.scopedLive(
      "a write outside of a transaction whose connection is lost is in doubt and not retried, unless it is idempotent",
      () =>
        Effect.gen(function* () {
          const sql = yield* Db.writer
          // the backend terminates itself in the first run; a sequence, which no rollback undoes,
          // counts the runs
          const suicide = sql`
          SELECT CASE WHEN nextval('runs') = 1 THEN pg_terminate_backend(pg_backend_pid()) END`
          yield* sql`CREATE SEQUENCE runs`
          const error = yield* suicide.pipe(DatabaseError.refine, Effect.flip)
          assert.strictEqual(error._tag === "Disconnected" && error.outcome, "inDoubt")
          const runs = sql`SELECT last_value::int AS n FROM runs`
          assert.deepStrictEqual(yield* runs, [{ n: 1 }])
          yield* sql`ALTER SEQUENCE runs RESTART`
          yield* RetryPolicy.idempotent(suicide)
          assert.deepStrictEqual(yield* runs, [{ n: 2 }])
        }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("the retry policy is a service, and RetryPolicy.never disables retries", () =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const server = yield* EmbeddedPostgres.EmbeddedPostgres
        yield* sql`SELECT 1`
        yield* server.primary.stop
        let asked = 0
        const counted = Schedule.tapInput(Schedule.recurs(2), () => Effect.sync(() => asked++))
        const error = yield* sql`SELECT 1`.pipe(
          RetryPolicy.with({ acquire: counted }),
          DatabaseError.refine,
          Effect.flip
        )
        assert.strictEqual(error._tag === "ConnectFailed" && error.reason, "unreachable")
        assert.strictEqual(asked, 3)
        yield* sql`SELECT 1`.pipe(
          Effect.provide(RetryPolicy.layer({ ...RetryPolicy.defaultPolicy, acquire: counted })),
          Effect.ignore
        )
        assert.strictEqual(asked, 6)
        yield* sql`SELECT 1`.pipe(RetryPolicy.with(RetryPolicy.never), Effect.ignore)
        assert.strictEqual(asked, 6)
        yield* server.primary.start
        assert.deepStrictEqual(yield* sql`SELECT 1 AS n`, [{ n: 1 }])
      }).pipe(Effect.provide(onCluster()))
    )

    it.scopedLive(
      "a caller whose next attempt would come after its deadline fails without that pause, with the reason",
      () =>
        Effect.gen(function* () {
          const sql = yield* Db.writer
          const reader = yield* Db.reader
          const late = RetryPolicy.with({
            acquire: Schedule.spaced("1 minute"),
            statement: Schedule.spaced("1 minute")
          })
          for (const statement of [sql`SELECT 1`, reader`SELECT 1`, sql.withTransaction(sql`SELECT 1`)]) {
            const [took, error] = yield* Effect.timed(statement.pipe(late, DatabaseError.refine, Effect.flip))
            assert.strictEqual(error._tag === "ConnectFailed" && error.reason, "unreachable")
            assert.isBelow(Duration.toMillis(took), 10_000)
          }
        }).pipe(
          Effect.provide(
            Db.layer({
              writer: { host: "127.0.0.1", port: 1, database: "app", username: "me" },
              startup: "lazy",
              acquireTimeout: "30 seconds"
            })
          )
        )
    )

    it.scopedLive(
      "a statement that ran for longer than acquireTimeout is retried, because its checkout was in time",
      () =>
        Effect.gen(function* () {
          const sql = yield* Db.writer
          yield* sql`CREATE SEQUENCE runs`
          yield* RetryPolicy.idempotent(
            sql`SELECT pg_sleep(1.1), CASE WHEN nextval('runs') = 1 THEN pg_terminate_backend(pg_backend_pid()) END`
          )
          const [row] = yield* sql<{ n: string }>`SELECT last_value AS n FROM runs`
          assert.strictEqual(row?.n, "2")
        }).pipe(Effect.provide(fresh({ acquireTimeout: "1 second" })))
    )

    it.scopedLive("a read whose connection is killed is retried, and fails if each attempt is killed", () =>
      Effect.gen(function* () {
        const { name } = yield* Place
        const reader = yield* Db.reader
        const suicide = Effect.suspend(() => reader`SELECT pg_terminate_backend(pg_backend_pid())`)
        yield* where
        yield* terminateBackends(name)
        // by the primary, if the read was sent before the loss was noticed
        assert.isDefined(yield* where)
        // a read that terminates its own backend each time fails as Disconnected
        const error = yield* suicide.pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
        assert.strictEqual(yield* active, 0)
      }).pipe(Effect.provide(fresh()))
    )
  })

  describe("routing of reads", () => {
    it.scopedLive(
      "reads rotate over the replicas, stay on one in a unit of work, and use the primary while all replicas are lost",
      () =>
        Effect.gen(function* () {
          const server = yield* EmbeddedPostgres.EmbeddedPostgres
          const [one, two] = server.replicas
          const ports = Effect.map(Effect.all([where, where, where, where]), (all) => new Set(all.map((_) => _?.port)))
          assert.deepStrictEqual(yield* ports, new Set([one?.port, two?.port]))
          const within = yield* UnitOfWork.run(ports)
          assert.strictEqual(within.size, 1)
          if (one !== undefined && two !== undefined) {
            yield* one.kill
            assert.deepStrictEqual(yield* ports, new Set([two.port]))
            yield* two.kill
            assert.deepStrictEqual(yield* ports, new Set([server.primary.port]))
            assert.strictEqual((yield* where)?.standby, false)
            const reader = yield* Db.reader
            const refused = yield* reader`CREATE TABLE no (n int)`.pipe(DatabaseError.refine, Effect.flip)
            assert.strictEqual(refused._tag, "ReadOnlyViolation")
            yield* two.start
            yield* eventually(where, (_) => _?.port === two.port)
          }
        }).pipe(Effect.provide(onCluster({ readerRetryDelay: "50 millis" })))
    )

    it.scopedLive("replica selection is a service, and consistency is decided before it", () =>
      Effect.gen(function* () {
        const server = yield* EmbeddedPostgres.EmbeddedPostgres
        const ports = Effect.map(Effect.all([where, where, where]), (all) => all.map((_) => _?.port))
        assert.deepStrictEqual(
          yield* ports,
          Array.from({ length: 3 }, () => server.replicas[1]?.port)
        )
        const strong = yield* where.pipe(Db.withConsistency(Consistency.Strong()))
        assert.deepStrictEqual(strong, { standby: false, port: server.primary.port })
        const sql = yield* Db.writer
        yield* sql`CREATE TABLE t (n int)`
        const [joined, eventual] = yield* Db.withTransaction(
          Effect.zipRight(
            sql`INSERT INTO t VALUES (1)`,
            Effect.all([where, where.pipe(Db.withConsistency(Consistency.Eventual()))])
          )
        )
        assert.strictEqual(joined?.standby, false)
        assert.strictEqual(eventual?.standby, true)
      }).pipe(
        Effect.provide(
          Layer.provide(
            onCluster(),
            Router.layer((_, candidates) => candidates.length - 1)
          ).pipe(Layer.provideMerge(cluster))
        )
      )
    )
  })

  it.scopedLive("transactions stay atomic and fail without a defect when every backend is killed under load", () =>
    Effect.gen(function* () {
      const { name } = yield* Place
      const exits = yield* Effect.all(
        [
          Effect.forEach(
            Array.from({ length: 200 }, (_, i) => i),
            (i) =>
              Effect.exit(DatabaseError.refine(Db.withTransaction(Effect.zipRight(insert(`${i}`), insert(`${i} b`))))),
            { concurrency: 8 }
          ),
          Effect.forEach([1, 2, 3], () => terminateBackends(name))
        ],
        { concurrency: 2 }
      ).pipe(Effect.map(([exits]) => exits))
      const rows = new Set(yield* stored)
      exits.forEach((exit, i) => {
        const both = [`${i}`, `${i} b`].filter((row) => rows.has(row)).length
        if (Exit.isSuccess(exit)) assert.strictEqual(both, 2)
        else {
          assert.isEmpty([...Cause.defects(exit.cause)])
          const unknown = [...Cause.failures(exit.cause)].some((error) => error._tag === "CommitOutcomeUnknown")
          assert.include(unknown ? [0, 2] : [0], both)
        }
      })
    }).pipe(Effect.provide(fresh()))
  )
})
