/**
 * Interruptions of each kind of work on each kind of network. Each is over within a second, leaves
 * nothing checked out and affects no other fiber. When the network is back, the database works as
 * before, and none of its statements still runs on the server.
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
import { Audit, active, Db, run } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually } from "../support/eventually.js"
import { type Message, makeProxy, sends } from "../support/proxy.js"
import { query } from "../support/server.js"

/**
 * The states of the network.
 *
 * - `half-open`: after some message nothing is delivered on any connection, and none is closed.
 * - `frozen server`: all processes of the server are stopped (SIGSTOP); the kernel still accepts
 *   connections and data.
 * - `slow`: the network works, and the statement takes long.
 */
type Network = "half-open" | "frozen server" | "slow"

/** The faults that a kind of work causes for itself, each followed by its interruption. */
interface Trouble {
  /**
   * The seconds that a slow statement takes: more than any wait of the test, and not endless,
   * because a cancel may be lost with the network.
   */
  readonly long: number
  /** Breaks the network and interrupts when the next matching message is sent. */
  readonly at: (matches: (message: Message) => boolean) => Effect.Effect<void>
  /** Breaks the network and interrupts now, while no message is under way. */
  readonly here: Effect.Effect<void>
}

/** A kind of work. */
interface Way {
  readonly name: string
  readonly run: (trouble: Trouble) => Effect.Effect<unknown, unknown, Db | Audit>
  /**
   * The networks on which it is interrupted.
   *
   * @default all
   */
  readonly on?: ReadonlyArray<Network>
  readonly options?: Partial<Database.Options>
  /** True if another transaction holds the only connection meanwhile. */
  readonly held?: boolean
  /** True if a connection may still be in validation after the interruption. */
  readonly validating?: boolean
  /** True if the row may be stored in the end: by an autocommit statement, or a COMMIT under way. */
  readonly inDoubt?: boolean
}

const dead: ReadonlyArray<Network> = ["half-open", "frozen server"]
/** The networks for a COPY, whose end a frozen server does not reach. */
const copying: ReadonlyArray<Network> = ["half-open", "slow"]

/** Runs a slow statement, and is interrupted in it. */
const slow = ({ at, long }: Trouble) =>
  Effect.zipRight(at(sends("long")), run(`INSERT INTO item SELECT 'slow' FROM pg_sleep(${long}) AS long`))
const insert = run("INSERT INTO item VALUES ('row')")
/** Uses both databases, so that each has a transaction to commit. */
const lateOnBoth = Effect.zipRight(
  run("INSERT INTO item VALUES ('late')"),
  Effect.flatMap(Audit.writer, (sql) => sql`SELECT txid_current()`)
)
const rows = (text: string) => Stream.unwrap(Effect.map(Db.writer, (sql) => sql.unsafe(text).stream))
const copyIn = (name: string) => Effect.flatMap(Db.writer, (sql) => sql.copyFrom("item", ["name"], Stream.make([name])))
const copyOut = Stream.unwrap(Effect.map(Db.writer, (sql) => sql.copyTo(sql`SELECT 1 FROM generate_series(1, 3)`)))
/** Returns a stream that is fetched in several parts, the second of which is slow. */
const many = (long: number) =>
  rows(`SELECT CASE n WHEN 200 THEN pg_sleep(${long}) END FROM generate_series(1, 1000) AS n`)
/** Runs that stream, and is interrupted in its second fetch. */
const fetchMore = ({ at, long }: Trouble) => {
  let count = 0
  return Stream.runForEach(many(long), () => Effect.when(at(fetches), () => ++count === 1))
}
/** Matches a fetch of a stream, which has a named portal. */
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
    name: "a statement of a transaction for which others wait",
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
    name: "the COMMIT of a copyTo whose consumer has stopped early",
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
    name: "the rollback to a savepoint",
    run: ({ at }) =>
      Db.withTransaction(
        Effect.ignore(Db.withTransaction(Effect.all([insert, at(sends("ROLLBACK TO")), Effect.fail("no")])))
      ),
    on: dead
  },
  {
    name: "the opening of a stream",
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

/** Starts a transaction that holds a connection, and returns the effect that ends it. */
const holder = Effect.gen(function* () {
  const holds = yield* Deferred.make<void>()
  const release = yield* Deferred.make<void>()
  const fiber = yield* Effect.fork(
    Db.withTransaction(Effect.all([insert, Deferred.succeed(holds, undefined), Deferred.await(release)]))
  )
  yield* Deferred.await(holds)
  return Effect.zipRight(Deferred.succeed(release, undefined), Fiber.join(fiber))
})

/** Waits until the work is in the queue of the pool, if another transaction holds the connection. */
const queued = (way: Way) =>
  way.held === true ? eventually(Db.status, ({ servers }) => servers[0]?.writes?.waiting === 1) : Effect.void

const testInterruption = (way: Way, network: Network) =>
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
      yield* eventually(
        Db.status,
        ({ servers }) => servers[0]?.writes?.idle === (options.minConnections ?? servers[0]?.writes?.idle)
      )
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
      yield* queued(way)

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
      // Only the idle connections of the pool are left on the server. When the network is back, a
      // cancel may overtake its statement and find nothing to cancel. Then the statement runs to its
      // end, and no client receives the result.
      let looked: unknown
      let isClean = false
      yield* eventually(Effect.all([Effect.map(left, ([row]) => row), Db.status]), ([seen, { servers }]) => {
        const pool = servers[0]?.writes
        looked = { seen, pool }
        isClean = seen?.busy === 0 && pool?.active === 0 && seen.all === pool.idle
        return isClean
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
      it.scoped(`an interruption of ${way.name} is over within a second and affects nothing else: ${network}`, () =>
        testInterruption(way, network)
      )
    }
  }
})
