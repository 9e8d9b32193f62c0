/**
 * The known failures of `@effect/sql-pg`, as functions of a client. `plainClient.test.ts` asserts
 * the result for its client, `knownFailures.test.ts` that for effect-db. The numbers are those of
 * the table in `examples/guides/sql-pg.md`.
 */

import * as Migrator from "@effect/sql/Migrator"
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Array from "effect/Array"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as TestClock from "effect/TestClock"
import pg from "pg"
import { withRealClock } from "../../../src/internal/embedded/realClock.js"
import { startChild } from "../child.js"
import { namesIn } from "../databases.js"
import { eventually, until } from "../eventually.js"
import { type Message, makeProxy, type Proxy, sends } from "../proxy.js"
import type { Role } from "../roles.js"
import { freshDatabase, query } from "../server.js"

/** The database of a scenario, with its URL. */
export interface Place {
  readonly name: string
  readonly writer: Redacted.Redacted<string>
}

/** Creates a database with the tables of the scenarios. */
export const freshTables = Effect.tap(freshDatabase, ({ writer }) =>
  query(
    writer,
    `CREATE TABLE item (name text PRIMARY KEY);
     CREATE TABLE part (item text CONSTRAINT part_item REFERENCES item DEFERRABLE INITIALLY DEFERRED)`
  )
)

/** The names in `item`, as another session sees them. */
export const stored = ({ writer }: Place): Effect.Effect<ReadonlyArray<string>> => namesIn(writer)

/** Terminates a backend from another session, and waits until it is gone. */
const kill = ({ writer }: Place, pid: number): Effect.Effect<void> =>
  Effect.asVoid(query(writer, "SELECT pg_terminate_backend($1, 10000)", [pid]))

/**
 * Waits up to `bound` for the exit of an effect, and returns it if there is one. Otherwise the
 * effect is not interrupted, because the interruption itself may take long.
 */
const within = <A, E, R>(
  bound: Duration.DurationInput,
  self: Effect.Effect<A, E, R>
): Effect.Effect<Option.Option<Exit.Exit<A, E>>, never, R> =>
  Effect.flatMap(Effect.forkDaemon(self), (fiber) => withRealClock(Effect.timeoutOption(Fiber.await(fiber), bound)))

/** Waits until the server runs a statement that contains these words. */
const running = ({ name, writer }: Place, words: string) =>
  query(writer, "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND state = 'active' AND query LIKE $2", [
    name,
    `%${words}%`
  ]).pipe(
    eventually((rows) => rows.length === 1),
    withRealClock
  )

/**
 * Runs an effect while a transaction holds a connection. The pools of these scenarios have no other
 * connection.
 */
const whileHeld = <A, E, R>(sql: PgClient, self: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const held = yield* Deferred.make<void>()
    const release = yield* Deferred.make<void>()
    const holder = yield* Effect.fork(
      sql.withTransaction(
        Effect.zipRight(
          insert(sql, "held"),
          Effect.zipRight(Deferred.succeed(held, undefined), Deferred.await(release))
        )
      )
    )
    yield* Deferred.await(held)
    const result = yield* self
    yield* Deferred.succeed(release, undefined)
    yield* Fiber.join(holder)
    return result
  })

const insert = (sql: PgClient, name: string) => sql`INSERT INTO item ${sql.insert({ name })}`

/** The database in which a statement runs, and its connection. */
export interface Where {
  readonly database: string
  readonly pid: number
}

export const where = (sql: PgClient): Effect.Effect<Where | undefined, SqlError> =>
  Effect.map(sql<Where>`SELECT current_database() AS database, pg_backend_pid() AS pid`, ([row]) => row)

/** 1. Runs a statement of `b` inside a transaction of `a`. */
export const statementOfAnother = (a: PgClient, b: PgClient) =>
  a.withTransaction(Effect.all({ a: where(a), b: where(b) }))

/** 2. Runs a transaction of `b` inside a transaction of `a`, which then fails. */
export const transactionOfAnother = (a: PgClient, b: PgClient) =>
  a.withTransaction(
    Effect.zipRight(insert(a, "a"), Effect.zipRight(b.withTransaction(insert(b, "b")), Effect.fail("no" as const)))
  )

/**
 * 3. Runs a transaction whose COMMIT the server refuses, because its row refers to a missing row.
 */
export const commitRefused = (sql: PgClient) =>
  sql.withTransaction(Effect.zipRight(insert(sql, "x"), sql`INSERT INTO part ${sql.insert({ item: "missing" })}`))

/** 4. Terminates the backend of a transaction between two statements. */
export const backendKilled = (sql: PgClient, place: Place) =>
  sql.withTransaction(
    Effect.gen(function* () {
      yield* insert(sql, "before")
      yield* kill(place, (yield* where(sql))?.pid ?? 0)
      yield* insert(sql, "after")
    })
  )

/** 5. Runs a transaction of one statement. The test cuts the connection when BEGIN is sent. */
export const oneInsert = (sql: PgClient) => sql.withTransaction(insert(sql, "x"))

/** 6. Runs a statement that fails, ignores its failure, and commits. */
export const failureIgnored = (sql: PgClient) =>
  sql.withTransaction(
    Effect.gen(function* () {
      yield* insert(sql, "x")
      yield* Effect.ignore(insert(sql, "x"))
    })
  )

/**
 * 7. Runs two nested transactions at once in one transaction: the first inserts a row, the second
 * fails. Returns their exits.
 */
export const siblings = (sql: PgClient) =>
  sql.withTransaction(
    Effect.all(
      [
        Effect.exit(sql.withTransaction(Effect.asVoid(insert(sql, "kept")))),
        Effect.exit(sql.withTransaction(Effect.zipRight(insert(sql, "undone"), Effect.fail("no" as const))))
      ],
      { concurrency: "unbounded" }
    )
  )

/**
 * 8. Runs 200 nested transactions one after the other; returns how many transaction ids are locked
 * after that.
 */
export const manyNested = (sql: PgClient) =>
  sql.withTransaction(
    Effect.gen(function* () {
      yield* Effect.forEach(Array.range(1, 200), (n) => sql.withTransaction(insert(sql, `row ${n}`)), {
        discard: true
      })
      const [row] = yield* sql<{
        held: number
      }>`SELECT count(*)::int AS held FROM pg_locks WHERE locktype = 'transactionid' AND pid = pg_backend_pid()`
      return row?.held
    })
  )

/**
 * 9. Runs a transaction with a timeout of 300 ms while the only connection is in use. Returns its
 * exit, if it ends within a second after that.
 */
export const fullPool = (sql: PgClient) =>
  whileHeld(
    sql,
    within("1300 millis", Effect.timeout(sql.withTransaction(Effect.asVoid(insert(sql, "x"))), "300 millis"))
  )

/**
 * 10. Lets a fiber outlive its transaction, and insert a row while the next transaction is open on
 * the same connection. That transaction then fails. Returns the exit of the fiber.
 */
export const daemon = (sql: PgClient) =>
  Effect.gen(function* () {
    const later = yield* Deferred.make<void>()
    const late = yield* sql.withTransaction(
      Effect.zipRight(
        insert(sql, "first"),
        Effect.forkDaemon(Effect.zipRight(Deferred.await(later), Effect.asVoid(insert(sql, "late"))))
      )
    )
    const ended = yield* Deferred.make<Exit.Exit<void, SqlError>>()
    yield* Effect.ignore(
      sql.withTransaction(
        Effect.gen(function* () {
          yield* insert(sql, "second")
          yield* Deferred.succeed(later, undefined)
          yield* Deferred.succeed(ended, yield* Fiber.await(late))
          yield* Effect.fail("no")
        })
      )
    )
    return yield* Deferred.await(ended)
  })

/**
 * 11. Interrupts a statement that ends by itself. The network delays the cancel request for more
 * than 5 s, until another fiber's statement runs. Returns the exit of that statement. Needs
 * `TestClock`.
 */
export const lateCancel = (sql: PgClient, place: Place, proxy: Proxy, isCancel: (message: Message) => boolean) =>
  Effect.gen(function* () {
    const heldUp = yield* proxy.when(isCancel, "freeze")
    const first = yield* Effect.fork(sql`SELECT pg_sleep(0.3), 'first'`)
    yield* running(place, "first")
    const interrupting = yield* Effect.fork(Fiber.interrupt(first))
    yield* heldUp
    yield* TestClock.adjust("5 seconds")
    yield* Fiber.join(interrupting)
    const other = yield* Effect.fork(sql`SELECT pg_sleep(0.5), 'other'`)
    yield* running(place, "other")
    yield* proxy.thaw
    return yield* Fiber.await(other)
  })

/**
 * 12. Interrupts a statement on the only connection. Returns the exit of the interruption, if it
 * ends within a second.
 */
export const interruptInFullPool = (sql: PgClient, place: Place) =>
  Effect.gen(function* () {
    const slow = yield* Effect.fork(sql`SELECT pg_sleep(60), 'slow'`)
    yield* running(place, "slow")
    return yield* within("1 second", Fiber.interrupt(slow))
  })

/**
 * 13. Interrupts a wait for the only connection, which is then returned to the pool. Returns the
 * exit of the next statement, if it ends within a second.
 */
const givesUpWaiting = (sql: PgClient, waits: Effect.Effect<unknown, SqlError>) =>
  Effect.gen(function* () {
    yield* whileHeld(
      sql,
      Effect.gen(function* () {
        const waiting = yield* Effect.fork(waits)
        // the fiber requests a connection as soon as it runs
        yield* Effect.yieldNow()
        yield* Fiber.interrupt(waiting)
      })
    )
    return yield* within("1 second", Effect.asVoid(insert(sql, "next")))
  })

export const streamGivesUp = (sql: PgClient) => givesUpWaiting(sql, Stream.runDrain(sql`SELECT 1`.stream))

export const reserveGivesUp = (sql: PgClient) => givesUpWaiting(sql, Effect.scoped(sql.reserve))

/**
 * 14. Terminates the backend in the middle of a stream. Returns the exit of the stream, if it ends
 * within a second.
 */
export const backendDiesInStream = (sql: PgClient, place: Place) =>
  Effect.gen(function* () {
    const dead = yield* Deferred.make<void>()
    const stream = sql<{ pid: number }>`SELECT pg_backend_pid() AS pid FROM generate_series(1, 1000)`.stream
    const once = (pid: number) => Effect.zipRight(kill(place, pid), Deferred.succeed(dead, undefined))
    const reading = yield* Effect.forkDaemon(
      Stream.runForEach(stream, ({ pid }) => Effect.unlessEffect(once(pid), Deferred.isDone(dead)))
    )
    yield* Deferred.await(dead)
    return yield* within("1 second", Fiber.join(reading))
  })

/**
 * 15. Runs a statement for each row of a stream, in the same transaction. The stream has more rows
 * than are fetched at once.
 */
export const queryInStream = (sql: PgClient) =>
  sql.withTransaction(
    sql<{ name: string }>`SELECT 'row ' || n AS name FROM generate_series(1, 200) AS n`.stream.pipe(
      Stream.runForEach(({ name }) => insert(sql, name))
    )
  )

/**
 * 16. Freezes a connection when it sends a statement with a timeout of 300 ms. Returns the exit of
 * the next statement, which has a timeout of a second.
 */
export const halfOpen = (sql: PgClient, proxy: Proxy) =>
  Effect.gen(function* () {
    yield* proxy.when(sends("'lost'"), "freeze")
    yield* Effect.exit(Effect.timeout(sql`SELECT 'lost'`, "300 millis"))
    return yield* Effect.exit(Effect.timeout(where(sql), "1 second"))
  })

/**
 * 17. Freezes a connection inside of a transaction with a timeout of 300 ms. Returns the exit of the
 * transaction, if it ends within a second after that.
 */
export const halfOpenTransaction = (sql: PgClient, proxy: Proxy) =>
  Effect.gen(function* () {
    yield* proxy.when(sends("'lost'"), "freeze")
    const transaction = sql.withTransaction(Effect.zipRight(insert(sql, "x"), Effect.asVoid(sql`SELECT 'lost'`)))
    return yield* within("1300 millis", Effect.timeout(transaction, "300 millis"))
  })

/** Listens to a channel in the background, for as long as the scope lasts. */
const listen = (sql: PgClient, channel: string) =>
  Effect.gen(function* () {
    const heard: Array<string> = []
    const fiber = yield* Effect.forkScoped(
      Stream.runForEach(sql.listen(channel), (payload) => Effect.sync(() => void heard.push(payload)))
    )
    return { heard, fiber }
  })

/** Runs `again` until a listener has received a payload. */
const received = (heard: ReadonlyArray<string>, payload: string, again: Effect.Effect<unknown> = Effect.void) =>
  eventually(again, () => heard.includes(payload))

/**
 * 18. Notifies outside of a transaction, inside of one, and inside of one that is rolled back;
 * returns what a listener receives.
 */
export const notifications = (sql: PgClient, place: Place) =>
  Effect.gen(function* () {
    const fromOutside = (payload: string) => query(place.writer, "SELECT pg_notify('news', $1)", [payload])
    const { heard } = yield* listen(sql, "news")
    yield* received(heard, "ready", fromOutside("ready"))
    yield* sql.notify("news", "plain")
    yield* sql.withTransaction(
      Effect.gen(function* () {
        yield* sql.notify("news", "inside")
        yield* fromOutside("before the commit")
        yield* received(heard, "before the commit")
      })
    )
    yield* Effect.ignore(
      sql.withTransaction(Effect.zipRight(sql.notify("news", "rolled back"), Effect.fail("no" as const)))
    )
    yield* fromOutside("last")
    yield* received(heard, "last")
    return heard.filter((payload) => payload !== "ready")
  }).pipe(Effect.scoped)

/**
 * 19. Terminates the backend of the listener of `news`, and notifies it until a payload arrives, or
 * for a second. Returns the payloads, and the exit of the listener if it has ended.
 */
export const listenerKilled = <E, R>(listening: Stream.Stream<string, E, R>, place: Place) =>
  Effect.gen(function* () {
    const heard: Array<string> = []
    const say = (payload: string) => query(place.writer, "SELECT pg_notify('news', $1)", [payload])
    const fiber = yield* Effect.forkScoped(
      Stream.runForEach(listening, (one) => Effect.sync(() => void heard.push(one)))
    )
    yield* received(heard, "ready", say("ready"))
    const [listener] = yield* query<{ pid: number }>(
      place.writer,
      "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND query LIKE 'LISTEN%'",
      [place.name]
    )
    yield* kill(place, listener?.pid ?? 0)
    const ended = yield* Effect.raceFirst(Effect.exit(Fiber.join(fiber)), received(heard, "after", say("after"))).pipe(
      Effect.timeoutOption("1 second")
    )
    return {
      heard: heard.filter((one, i) => one !== "ready" && heard.indexOf(one) === i),
      ended: Option.filter(ended, Exit.isExit)
    }
  }).pipe(Effect.scoped)

/**
 * 20. Starts two listeners of a channel, and stops one of them; returns the payloads that the other
 * one then receives.
 */
export const oneListenerStops = (sql: PgClient, place: Place) =>
  Effect.gen(function* () {
    const say = (payload: string) =>
      query(place.writer, "SELECT pg_notify('news', $1), pg_notify('other', $1)", [payload])
    const stays = yield* listen(sql, "news")
    const stops = yield* listen(sql, "news")
    // a third listener on the same connection: what it receives, the others have received before
    const witness = yield* listen(sql, "other")
    for (const { heard } of [stays, stops, witness]) yield* received(heard, "ready", say("ready"))
    yield* Fiber.interrupt(stops.fiber)
    yield* say("news")
    yield* say("end")
    yield* received(witness.heard, "end")
    return stays.heard.filter((payload) => payload !== "ready")
  }).pipe(Effect.scoped)

/**
 * 21. Terminates the idle connection of a program that then uses its client again; returns the end
 * of the program. See `idleClient.ts`.
 */
export const idleConnectionEnded = (which: "plain" | "effect-db") =>
  Effect.gen(function* () {
    const place = yield* freshTables
    const program = yield* startChild("idleClient", [which], place.writer)
    const pid = yield* program.line
    yield* kill(place, Number(pid))
    yield* program.tell
    return yield* program.ended
  }).pipe(Effect.scoped)

/**
 * 22. Opens a client of a server that accepts connections and never answers. Returns the exit of
 * the opening, if it ends within an hour of `TestClock` and a second.
 */
export const silentServer = <A, E>(open: (url: Redacted.Redacted<string>) => Effect.Effect<A, E, Scope.Scope>) =>
  Effect.gen(function* () {
    const { writer } = yield* freshTables
    const proxy = yield* makeProxy(writer)
    yield* proxy.freeze
    const opening = yield* Effect.forkDaemon(Effect.scoped(open(proxy.url)))
    yield* withRealClock(until(() => proxy.connections > 0))
    yield* TestClock.adjust("1 hour")
    return yield* within("1 second", Fiber.join(opening))
  })

/** 23. Leaves a connection idle for 0.2 s. Returns the process ids before and after. */
export const idleForAMoment = (sql: PgClient, place: Place) =>
  Effect.gen(function* () {
    const before = yield* where(sql)
    yield* query(place.writer, "SELECT pg_sleep(0.2)")
    const after = yield* where(sql)
    return [before?.pid, after?.pid] as const
  })

/**
 * 27. Interrupts one of two statements that run at the same time; returns the names of those that
 * still run on the server.
 */
export const interruptedBehindPooler = (sql: PgClient, place: Place) =>
  Effect.gen(function* () {
    const running = Effect.map(
      query<{ name: string }>(
        place.writer,
        `SELECT substring(query from 'AS (\\w+)') AS name FROM pg_stat_activity
         WHERE datname = current_database() AND state = 'active' AND query LIKE 'SELECT pg_sleep%' ORDER BY name`
      ),
      (rows) => rows.map(({ name }) => name)
    )
    const run = (names: ReadonlyArray<string>) => eventually(running, (_) => _.join() === names.join())
    yield* Effect.forkScoped(sql`SELECT pg_sleep(25) AS bystander`)
    yield* run(["bystander"])
    const interrupted = yield* Effect.forkScoped(sql`SELECT pg_sleep(25) AS interrupted`)
    yield* run(["bystander", "interrupted"])
    yield* Fiber.interrupt(interrupted)
    // a cancelled statement may take a moment to end; a statement that was not cancelled goes on
    yield* Effect.repeat(running, {
      schedule: Schedule.intersect(Schedule.spaced("5 millis"), Schedule.recurs(100)),
      until: (names) => !names.includes("interrupted")
    })
    return yield* running
  })

/** 28. Returns settings of the current transaction. */
export const settings = (sql: PgClient) =>
  Effect.map(
    sql<{ setting: string }>`SELECT current_setting(name) AS setting FROM unnest(ARRAY[
      'transaction_isolation', 'transaction_read_only', 'transaction_deferrable', 'statement_timeout', 'lock_timeout'
    ]) AS name`,
    (rows) => rows.map(({ setting }) => setting)
  )

/**
 * 29. Changes a role's password while a connection is reserved, and runs a statement, which needs a
 * new connection.
 */
export const passwordChanges = (sql: PgClient, role: Role) =>
  Effect.scoped(Effect.zipRight(sql.reserve, Effect.zipRight(role.rotate, where(sql))))

const migrations = {
  "1_first": Effect.flatMap(SqlClient.SqlClient, (sql) => sql`CREATE TABLE first (id int)`),
  "2_second": Effect.flatMap(SqlClient.SqlClient, (sql) => sql`CREATE TABLE second (id int)`)
}

/**
 * 25. Migrates a new database in several sessions at once. `held` of them have found the database
 * empty before the first one creates a table.
 */
export const migrateAtOnce = <E>(
  { writer }: Place,
  sessions: ReadonlyArray<(loader: Migrator.Loader) => Effect.Effect<unknown, E>>,
  held: number
) =>
  Effect.gen(function* () {
    const blocker = yield* Effect.acquireRelease(
      Effect.promise(async () => {
        const client = new pg.Client(Redacted.value(writer))
        await client.connect()
        await client.query("BEGIN; CREATE TABLE effect_sql_migrations (id int)")
        return client
      }),
      (client) => Effect.promise(() => client.end())
    )
    const ends = yield* Effect.forEach(sessions, (migrate) =>
      Effect.fork(Effect.exit(migrate(Migrator.fromRecord(migrations))))
    )
    yield* eventually(
      query<{ pid: number }>(
        writer,
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
      ),
      (waiting) => waiting.length >= held
    )
    yield* Effect.promise(() => blocker.query("ROLLBACK"))
    return yield* Effect.forEach(ends, Fiber.join)
  })

/**
 * 26. Adds a migration with a lower id than those that were applied. Returns the exit of that run,
 * and if the migration was applied.
 */
export const lowerIdLater = <A, E>({ writer }: Place, migrate: (loader: Migrator.Loader) => Effect.Effect<A, E>) =>
  Effect.gen(function* () {
    yield* migrate(Migrator.fromRecord({ "2_second": migrations["2_second"] }))
    const exit = yield* Effect.exit(migrate(Migrator.fromRecord(migrations)))
    const [row] = yield* query<{ there: boolean }>(writer, "SELECT to_regclass('first') IS NOT NULL AS there")
    return { exit, isApplied: row?.there }
  })

/**
 * 31. Returns a reserved connection to the pool in an open transaction. The next caller reads the
 * rows, and then commits a transaction of its own. Returns the rows that it has read.
 */
export const leftOpen = (sql: PgClient) =>
  Effect.gen(function* () {
    yield* Effect.scoped(
      Effect.gen(function* () {
        const connection = yield* sql.reserve
        for (const statement of ["BEGIN", "INSERT INTO item VALUES ('left open')"]) {
          yield* connection.executeUnprepared(statement, [], undefined)
        }
      })
    )
    const seen = yield* sql<{ name: string }>`SELECT name FROM item`
    yield* sql.withTransaction(sql`INSERT INTO item VALUES ('next')`)
    return seen.map(({ name }) => name)
  })
