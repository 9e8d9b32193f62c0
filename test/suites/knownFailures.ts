/**
 * What goes wrong with plain clients, as functions of a client: `plain-client.test.ts` asserts what the plain client makes of each,
 * `known-failures.test.ts` what effect-db does. The numbers are those of the table in the README.
 */
import type { SqlError } from "@effect/sql/SqlError"
import * as SqlResolver from "@effect/sql/SqlResolver"
import type { PgClient } from "@effect/sql-pg/PgClient"
import * as Array from "effect/Array"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { freshDatabase, query } from "../fixtures/server.js"

/** A database of a scenario, for looking at it from outside. */
export interface Place {
  readonly name: string
  readonly writer: Redacted.Redacted<string>
}

/** A new database with the tables of the scenarios. */
export const freshTables = Effect.tap(freshDatabase, ({ writer }) =>
  query(
    writer,
    `CREATE TABLE item (name text PRIMARY KEY);
     CREATE TABLE part (item text CONSTRAINT part_item REFERENCES item DEFERRABLE INITIALLY DEFERRED)`
  )
)

/** The names in `item`, as somebody else sees them. */
export const stored = ({ writer }: Place): Effect.Effect<ReadonlyArray<string>> =>
  Effect.map(query<{ name: string }>(writer, "SELECT name FROM item ORDER BY name"), (rows) =>
    rows.map(({ name }) => name)
  )

/** Ends a backend from outside, and waits until it is gone. */
const kill = ({ writer }: Place, pid: number): Effect.Effect<void> =>
  Effect.asVoid(query(writer, "SELECT pg_terminate_backend($1, 10000)", [pid]))

const insert = (sql: PgClient, name: string) => sql`INSERT INTO item ${sql.insert({ name })}`

/** Which database a statement runs in, and on which connection. */
export interface Where {
  readonly database: string
  readonly pid: number
}

export const where = (sql: PgClient): Effect.Effect<Where | undefined, SqlError> =>
  Effect.map(sql<Where>`SELECT current_database() AS database, pg_backend_pid() AS pid`, ([row]) => row)

/** 1. Inside of a transaction of `a` a statement of `b`. */
export const statementOfAnother = (a: PgClient, b: PgClient) =>
  a.withTransaction(Effect.all({ a: where(a), b: where(b) }))

/** 2. A transaction of `b` inside of a transaction of `a`, which then fails. */
export const transactionOfAnother = (a: PgClient, b: PgClient) =>
  a.withTransaction(
    Effect.zipRight(insert(a, "a"), Effect.zipRight(b.withTransaction(insert(b, "b")), Effect.fail("no" as const)))
  )

/** 3. A transaction whose COMMIT the server refuses: its row refers to one that is not there. */
export const commitRefused = (sql: PgClient) =>
  sql.withTransaction(Effect.zipRight(insert(sql, "x"), sql`INSERT INTO part ${sql.insert({ item: "missing" })}`))

/** 4. The server ends the backend of a transaction, between two statements. */
export const backendKilled = (sql: PgClient, place: Place) =>
  sql.withTransaction(
    Effect.gen(function* () {
      yield* insert(sql, "before")
      yield* kill(place, (yield* where(sql))?.pid ?? 0)
      yield* insert(sql, "after")
    })
  )

/** 5. A transaction of one statement; its connection is cut where BEGIN is sent. */
export const oneInsert = (sql: PgClient) => sql.withTransaction(insert(sql, "x"))

/** 6. A statement fails, its failure is ignored, the transaction commits. */
export const failureIgnored = (sql: PgClient) =>
  sql.withTransaction(
    Effect.gen(function* () {
      yield* insert(sql, "x")
      yield* Effect.ignore(insert(sql, "x"))
    })
  )

/** 7. Two nested transactions at once in one: the first keeps its row, the second fails. Gives how they ended. */
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

/** 8. 200 nested transactions one after the other; gives how many transaction ids are locked then. */
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

/** 10. A fiber outlives its transaction and inserts while another one is open on that connection, which then fails. */
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

/** 15. For each row of a stream a statement, all in one transaction; the rows are more than are fetched at once. */
export const queryInStream = (sql: PgClient) =>
  sql.withTransaction(
    sql<{ name: string }>`SELECT 'row ' || n AS name FROM generate_series(1, 200) AS n`.stream.pipe(
      Stream.runForEach(({ name }) => insert(sql, name))
    )
  )

/** Hears a channel in the background, for as long as the scope lasts. */
const listen = (sql: PgClient, channel: string) =>
  Effect.gen(function* () {
    const heard: Array<string> = []
    const fiber = yield* Effect.forkScoped(
      Stream.runForEach(sql.listen(channel), (payload) => Effect.sync(() => void heard.push(payload)))
    )
    return { heard, fiber }
  })

const soon = Schedule.intersect(Schedule.spaced("5 millis"), Schedule.recurs(2000))

/** Waits until a listener has heard something; what `again` does is done again each time. */
const until = (heard: ReadonlyArray<string>, payload: string, again: Effect.Effect<unknown> = Effect.void) =>
  Effect.repeat(again, { schedule: soon, until: () => heard.includes(payload) })

/** 18. What a listener hears of NOTIFY: outside of a transaction, inside of one, inside of one that is rolled back. */
export const notifications = (sql: PgClient, place: Place) =>
  Effect.gen(function* () {
    const fromOutside = (payload: string) => query(place.writer, "SELECT pg_notify('news', $1)", [payload])
    const { heard } = yield* listen(sql, "news")
    yield* until(heard, "ready", fromOutside("ready"))
    yield* sql.notify("news", "plain")
    yield* sql.withTransaction(
      Effect.gen(function* () {
        yield* sql.notify("news", "inside")
        yield* fromOutside("before the commit")
        yield* until(heard, "before the commit")
      })
    )
    yield* Effect.ignore(
      sql.withTransaction(Effect.zipRight(sql.notify("news", "rolled back"), Effect.fail("no" as const)))
    )
    yield* fromOutside("last")
    yield* until(heard, "last")
    return heard.filter((payload) => payload !== "ready")
  }).pipe(Effect.scoped)

/** 20. Two listen to a channel and one of them stops; gives what the other still hears. */
export const oneListenerStops = (sql: PgClient, place: Place) =>
  Effect.gen(function* () {
    const say = (payload: string) =>
      query(place.writer, "SELECT pg_notify('news', $1), pg_notify('other', $1)", [payload])
    const stays = yield* listen(sql, "news")
    const stops = yield* listen(sql, "news")
    // hears on the same connection, so that what it has heard the others must have heard before
    const witness = yield* listen(sql, "other")
    for (const { heard } of [stays, stops, witness]) yield* until(heard, "ready", say("ready"))
    yield* Fiber.interrupt(stops.fiber)
    yield* say("news")
    yield* say("end")
    yield* until(witness.heard, "end")
    return stays.heard.filter((payload) => payload !== "ready")
  }).pipe(Effect.scoped)

/** 27. A statement is interrupted while another one runs beside it; gives which of the two go on, as the server sees it. */
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
    const until = (names: ReadonlyArray<string>) =>
      Effect.repeat(running, { schedule: soon, until: (_) => _.join() === names.join() })
    yield* Effect.forkScoped(sql`SELECT pg_sleep(25) AS bystander`)
    yield* until(["bystander"])
    const interrupted = yield* Effect.forkScoped(sql`SELECT pg_sleep(25) AS interrupted`)
    yield* until(["bystander", "interrupted"])
    yield* Fiber.interrupt(interrupted)
    // a statement that was told to stop may take a moment; one that was not sleeps on
    yield* Effect.repeat(running, {
      schedule: Schedule.intersect(Schedule.spaced("5 millis"), Schedule.recurs(100)),
      until: (names) => !names.includes("interrupted")
    })
    return yield* running
  })

/** 28. What the server says of the transaction that it is asked in. */
export const settings = (sql: PgClient) =>
  Effect.map(
    sql<{ setting: string }>`SELECT current_setting(name) AS setting FROM unnest(ARRAY[
      'transaction_isolation', 'transaction_read_only', 'transaction_deferrable', 'statement_timeout', 'lock_timeout'
    ]) AS name`,
    (rows) => rows.map(({ setting }) => setting)
  )

/** 30. Two transactions at once insert three rows each, and ask for them one by one, batched by one resolver. */
export const batches = (sql: PgClient) =>
  Effect.gen(function* () {
    let statements = 0
    const resolver = yield* SqlResolver.findById("Item", {
      Id: Schema.String,
      Result: Schema.Struct({ name: Schema.String, pid: Schema.Number }),
      ResultId: ({ name }) => name,
      execute: (names) => {
        statements++
        return sql`SELECT name, pg_backend_pid() AS pid FROM item WHERE ${sql.in("name", names)}`
      }
    })
    const arrived = [yield* Deferred.make<void>(), yield* Deferred.make<void>()] as const
    const transaction = (title: string, mine: Deferred.Deferred<void>, other: Deferred.Deferred<void>) =>
      sql.withTransaction(
        Effect.gen(function* () {
          const names = [1, 2, 3].map((n) => `${title} ${n}`)
          yield* sql`INSERT INTO item ${sql.insert(names.map((name) => ({ name })))}`
          const own = (yield* where(sql))?.pid
          yield* Deferred.succeed(mine, undefined)
          yield* Deferred.await(other)
          const found = yield* Effect.forEach(names, resolver.execute, { batching: true, concurrency: "unbounded" })
          return { names, own, seen: Array.getSomes(found) }
        })
      )
    const transactions = yield* Effect.all(
      [transaction("a", arrived[0], arrived[1]), transaction("b", arrived[1], arrived[0])],
      { batching: true, concurrency: "unbounded" }
    )
    return { transactions, statements }
  })
