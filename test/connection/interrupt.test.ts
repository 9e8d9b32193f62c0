/**
 * Interruptions of all kinds of work, on all kinds of networks: each is over within a second,
 * nothing stays checked out, no other fiber is affected, and when the network is back the database
 * is as good as before, with nothing of ours left running on the server.
 */
import { assert, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { type Database, UnitOfWork } from "effect-db"
import * as EmbeddedPostgres from "effect-db/EmbeddedPostgres"
import { Audit, active, Db, run, soon } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { type Message, makeProxy, sends } from "../support/proxy.js"
import { query } from "../support/server.js"

/**
 * The states of the network.
 *
 * - `half-open`: from one message on nothing is delivered any more, on no connection, without a
 *   notice.
 * - `frozen server`: all of its processes stand still (SIGSTOP); its kernel still accepts
 *   connections and data.
 * - `slow`: the network works, and the statement takes long.
 */
type Network = "half-open" | "frozen server" | "slow"

/** The points at which a way is interrupted. */
interface Trouble {
  /**
   * Seconds that are longer than any wait of the test; they are bounded because a cancel may be
   * lost with the network.
   */
  readonly long: number
  /** Interrupts with the next matching message on its way. */
  readonly at: (matches: (message: Message) => boolean) => Effect.Effect<void>
  /** Interrupts at once, with nothing on its way. */
  readonly here: Effect.Effect<void>
}

interface Way {
  readonly name: string
  readonly run: (trouble: Trouble) => Effect.Effect<unknown, unknown, Db | Audit>
  /** @default all */
  readonly on?: ReadonlyArray<Network>
  readonly options?: Partial<Database.Options>
  /** True if a transaction holds a connection all the time. */
  readonly held?: boolean
  /** True if a connection is being validated when it is over. */
  readonly validating?: boolean
  /** True if the row may be stored in the end: it is its own COMMIT, or one was on its way. */
  readonly inDoubt?: boolean
}

const dead: ReadonlyArray<Network> = ["half-open", "frozen server"]
/** A server that stands still does not come to the end of a COPY. */
const copying: ReadonlyArray<Network> = ["half-open", "slow"]

/** Goes into trouble with a statement that takes long. */
const slow = ({ at, long }: Trouble) =>
  Effect.zipRight(at(sends("long")), run(`INSERT INTO item SELECT 'slow' FROM pg_sleep(${long}) AS long`))
const insert = run("INSERT INTO item VALUES ('row')")
/** Uses both databases, each in a transaction that has something to commit. */
const lateOnBoth = Effect.zipRight(
  run("INSERT INTO item VALUES ('late')"),
  Effect.flatMap(Audit.writer, (sql) => sql`SELECT txid_current()`)
)
const rows = (text: string) => Stream.unwrap(Effect.map(Db.writer, (sql) => sql.unsafe(text).stream))
const copyIn = (name: string) => Effect.flatMap(Db.writer, (sql) => sql.copyFrom("item", ["name"], Stream.make([name])))
const copyOut = Stream.unwrap(Effect.map(Db.writer, (sql) => sql.copyTo(sql`SELECT 1 FROM generate_series(1, 3)`)))
/** Fetched in several parts, of which the second takes long. */
const many = (long: number) =>
  rows(`SELECT CASE n WHEN 200 THEN pg_sleep(${long}) END FROM generate_series(1, 1000) AS n`)
/** Goes into trouble with the second fetch. */
const fetchMore = ({ at, long }: Trouble) => {
  let count = 0
  return Stream.runForEach(many(long), () => Effect.when(at(fetches), () => ++count === 1))
}
/** Of a named portal, which is a stream's. */
const fetches = ({ bytes, from, type }: Message) => from === "client" && type === "E" && bytes.includes("p1\0")

const ways: ReadonlyArray<Way> = [
  {
    name: "a statement outside of a transaction",
    run: slow,
    inDoubt: true
  },
  {
    name: "the first statement of a transaction",
    run: (trouble) => Db.withTransaction(slow(trouble))
  },
  {
    name: "a later statement of a transaction",
    run: (trouble) => Db.withTransaction(Effect.zipRight(insert, slow(trouble)))
  },
  {
    name: "a statement of a nested transaction",
    run: (trouble) =>
      Db.withTransaction(Effect.zipRight(insert, Db.withTransaction(Effect.zipRight(insert, slow(trouble)))))
  },
  {
    name: "one of several statements that wait for their turn",
    run: (trouble) =>
      Db.withTransaction(
        Effect.gen(function* () {
          yield* insert
          const started = yield* Deferred.make<void>()
          const others = Effect.all([insert, Db.withTransaction(insert)], { concurrency: "unbounded" })
          const first = slow({
            ...trouble,
            at: (_) => Effect.zipRight(trouble.at(_), Deferred.succeed(started, undefined))
          })
          yield* Effect.all([first, Effect.zipRight(Deferred.await(started), others)], { concurrency: "unbounded" })
        })
      )
  },
  {
    name: "a transaction between its statements",
    run: ({ here }) => Db.withTransaction(Effect.all([insert, here, Effect.never]))
  },
  {
    name: "COMMIT",
    run: ({ at }) => Db.withTransaction(Effect.all([run("INSERT INTO item VALUES ('late')"), at(sends("COMMIT"))])),
    inDoubt: true
  },
  {
    name: "the COMMIT of the first of two databases",
    run: ({ at }) => UnitOfWork.run(Effect.zipRight(lateOnBoth, at(sends("COMMIT"))), { checkFirst: false }),
    inDoubt: true
  },
  {
    name: "the check before the COMMIT of the first of two databases",
    run: ({ at }) => UnitOfWork.run(Effect.zipRight(lateOnBoth, at(sends("SET CONSTRAINTS"))), { order: [Audit] })
  },
  {
    name: "the COMMIT of a copyFrom",
    run: ({ at }) => Effect.zipRight(at(sends("COMMIT")), copyIn("late")),
    on: copying,
    inDoubt: true
  },
  {
    name: "the COMMIT of a copyTo",
    run: ({ at }) => Effect.zipRight(at(sends("COMMIT")), Stream.runDrain(copyOut)),
    on: ["half-open"]
  },
  {
    name: "the COMMIT of a copyTo whose consumer has had enough",
    run: ({ at }) => Effect.zipRight(at(sends("COMMIT")), Stream.runDrain(Stream.take(copyOut, 1))),
    on: ["half-open"]
  },
  {
    name: "the release of the savepoint of a copyFrom",
    run: ({ at }) => Db.withTransaction(Effect.all([insert, at(sends("RELEASE")), copyIn("late")])),
    on: ["half-open"]
  },
  {
    name: "ROLLBACK",
    run: ({ at }) => Db.withTransaction(Effect.all([insert, at(sends("ROLLBACK")), Effect.fail("no")])),
    on: dead
  },
  {
    name: "the release of a savepoint",
    run: ({ at }) => Db.withTransaction(Db.withTransaction(Effect.zipRight(insert, at(sends("RELEASE"))))),
    on: dead
  },
  {
    name: "the undoing of a savepoint",
    run: ({ at }) =>
      Db.withTransaction(
        Effect.ignore(Db.withTransaction(Effect.all([insert, at(sends("ROLLBACK TO")), Effect.fail("no")])))
      ),
    on: dead
  },
  {
    name: "a stream that opens",
    run: ({ at, long }) =>
      Effect.zipRight(at(sends("long")), Stream.runDrain(rows(`SELECT 1 FROM pg_sleep(${long}) AS long`)))
  },
  {
    name: "a stream in a fetch",
    run: fetchMore
  },
  {
    name: "a stream between fetches",
    run: ({ here, long }) => Stream.runForEach(many(long), () => Effect.zipRight(here, Effect.never))
  },
  {
    name: "a stream in a fetch, in a transaction",
    run: (trouble) => Db.withTransaction(Effect.zipRight(insert, fetchMore(trouble)))
  },
  {
    name: "a stream between fetches, in a transaction",
    run: ({ here, long }) =>
      Db.withTransaction(
        Effect.zipRight(
          insert,
          Stream.runForEach(many(long), () => Effect.zipRight(here, Effect.never))
        )
      )
  },
  {
    name: "a statement on a reserved connection",
    run: ({ at, long }) =>
      Effect.flatMap(Db.writer, (sql) =>
        Effect.scoped(
          Effect.flatMap(sql.reserve, (connection) =>
            Effect.zipRight(
              at(sends("long")),
              connection.execute(`SELECT 1 FROM pg_sleep(${long}) AS long`, [], undefined)
            )
          )
        )
      )
  },
  {
    name: "a statement that waits in a full pool",
    run: ({ here }) => Effect.zipRight(here, insert),
    options: { maxConnections: 1 },
    held: true
  },
  {
    name: "a transaction that waits in a full pool",
    run: ({ here }) => Effect.zipRight(here, Db.withTransaction(insert)),
    options: { maxConnections: 1 },
    held: true
  },
  {
    name: "a stream that waits in a full pool",
    run: ({ here }) => Effect.zipRight(here, Stream.runDrain(rows("SELECT 1"))),
    options: { maxConnections: 1 },
    held: true
  },
  {
    name: "a reserve that waits in a full pool",
    run: ({ here }) =>
      Effect.zipRight(
        here,
        Effect.flatMap(Db.writer, (sql) => Effect.scoped(sql.reserve))
      ),
    options: { maxConnections: 1 },
    held: true
  },
  {
    name: "a connect",
    run: ({ at }) =>
      Effect.zipRight(
        at(({ type }) => type === "startup"),
        insert
      ),
    options: { startup: "lazy" },
    on: dead
  },
  {
    name: "the validation of an idle connection",
    run: ({ at }) =>
      Effect.zipRight(
        at(({ from, type }) => from === "client" && type === "S"),
        insert
      ),
    options: { validateAfterIdle: 0 },
    validating: true,
    on: dead
  }
]

// a row with the name "late" makes its COMMIT take longer than any wait
const schema = `
  CREATE TABLE item (name text);
  CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1.5); RETURN NEW; END $$;
  CREATE CONSTRAINT TRIGGER dawdles AFTER INSERT ON item DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.name = 'late') EXECUTE FUNCTION dawdle()`

let databases = 0

/** A transaction that holds a connection until it is released. */
const holder = Effect.gen(function* () {
  const holds = yield* Deferred.make<void>()
  const release = yield* Deferred.make<void>()
  const fiber = yield* Effect.fork(
    Db.withTransaction(Effect.all([insert, Deferred.succeed(holds, undefined), Deferred.await(release)]))
  )
  yield* Deferred.await(holds)
  return Effect.zipRight(Deferred.succeed(release, undefined), Fiber.join(fiber))
})

const isStuck = (way: Way) =>
  way.held === true
    ? Effect.repeat(Db.status, { schedule: soon, until: ({ servers }) => servers[0]?.writes?.waiting === 1 })
    : Effect.void

const cell = (way: Way, network: Network) =>
  Effect.gen(function* () {
    const postgres = yield* EmbeddedPostgres.EmbeddedPostgres
    const { primary } = postgres
    const name = `interrupt_${++databases}`
    yield* postgres.createDatabase(name)
    const url = primary.url(name)
    yield* query(url, schema)
    const proxy = yield* makeProxy(url)
    const mend = Effect.zipRight(proxy.thaw, Effect.orDie(primary.thaw))
    yield* Effect.addFinalizer(() => mend)
    const options = way.options ?? { minConnections: 2 }
    const second = new URL(Redacted.value(proxy.url))
    second.pathname = "/postgres"
    const context = Context.pick(
      Db,
      Audit
    )(
      yield* Layer.build(
        Layer.merge(
          Db.layer({ writer: proxy.url, ...options }),
          Audit.layer({ writer: Redacted.make(second.href), startup: "lazy" })
        )
      )
    )

    yield* Effect.gen(function* () {
      // so that no connect is needed while nothing answers
      yield* Effect.repeat(Db.status, {
        schedule: soon,
        until: ({ servers }) => servers[0]?.writes?.idle === (options.minConnections ?? servers[0]?.writes?.idle)
      })
      const release = way.held === true ? yield* holder : Effect.void
      // another caller on another connection of the same pool
      const bystander = yield* way.options === undefined
        ? Effect.fork(Effect.forever(run("SELECT pg_sleep(0.02)")))
        : Effect.fork(Effect.never)

      const stuck = yield* Deferred.make<void>()
      const freeze = network === "frozen server" ? Effect.orDie(primary.freeze) : Effect.void
      const cut = network === "half-open" ? proxy.freeze : Effect.void
      const fiber = yield* Effect.fork(
        way.run({
          long: network === "slow" ? 60 : 4,
          at: (matches) =>
            Effect.gen(function* () {
              yield* freeze
              const sent = yield* proxy.when(matches, network === "half-open" ? "freeze" : "pass")
              yield* Effect.forkDaemon(Effect.all([sent, cut, Deferred.succeed(stuck, undefined)]))
            }),
          here: Effect.all([freeze, cut, Deferred.succeed(stuck, undefined)])
        })
      )
      yield* Deferred.await(stuck)
      yield* isStuck(way)

      const before = performance.now()
      const exit = yield* Fiber.interrupt(fiber)
      const took = performance.now() - before
      assert.isTrue(Exit.isInterrupted(exit), String(exit))
      assert.isBelow(took, 1000)
      const others = [way.held === true, way.options === undefined, way.validating === true].filter((is) => is).length
      assert.isAtMost(yield* active, others)

      yield* mend
      yield* release
      assert.deepStrictEqual(yield* run("SELECT 1 AS n"), [{ n: 1 }])
      const hit = yield* Fiber.poll(bystander)
      assert.strictEqual(hit._tag, "None", "another caller's statement has failed")
      yield* Fiber.interrupt(bystander)

      const left = query<{ all: number; busy: number }>(
        url,
        `SELECT count(*)::int AS all, count(*) FILTER (WHERE state <> 'idle')::int AS busy FROM pg_stat_activity
         WHERE datname = $1 AND backend_type = 'client backend' AND pid <> pg_backend_pid()`,
        [name]
      )
      // Only the idle connections of the pool are left on the server. A cancel that overtakes its
      // statement, when the network is back, finds nothing to cancel; that statement comes to its
      // own end, which no client receives.
      let looked: unknown
      let isClean = false
      yield* Effect.repeat(Effect.all([Effect.map(left, ([row]) => row), Db.status]), {
        schedule: soon,
        until: ([seen, { servers }]) => {
          const pool = servers[0]?.writes
          looked = { seen, pool }
          isClean = seen?.busy === 0 && pool?.active === 0 && seen.all === pool.idle
          return isClean
        }
      })
      assert.isTrue(isClean, JSON.stringify(looked))
      const stored = (yield* query<{ name: string }>(url, "SELECT name FROM item")).map((row) => row.name)
      if (way.inDoubt !== true) assert.deepStrictEqual(stored, way.held === true ? ["row"] : [])
    }).pipe(Effect.provide(context))
  })

const servers = EmbeddedPostgres.EmbeddedPostgres.layer({ directory })

layer(servers, { timeout: "30 seconds", excludeTestServices: true })("interruptions", (it) => {
  for (const network of ["half-open", "frozen server", "slow"] as const) {
    for (const way of ways) {
      if (way.on !== undefined && !way.on.includes(network)) continue
      it.scoped(`an interruption of ${way.name} settles in time and harms nothing else: ${network}`, () =>
        cell(way, network)
      )
    }
  }
})
