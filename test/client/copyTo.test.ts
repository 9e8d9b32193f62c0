import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { behind } from "../support/behind.js"
import { copy, endless, given, one, textOf, writer } from "../support/copying.js"
import { active, Db, fresh, insert, look, Place, pid, stored } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { failure } from "../support/failures.js"
import { sends } from "../support/proxy.js"
import { terminateBackends } from "../support/server.js"

describe("copyTo", () => {
  it.scopedLive("copyTo returns the rows of a query as text or CSV", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      yield* copy(given(["a\tb", 1], ['c"d', null]))
      const rows = sql`SELECT name, amount FROM item ORDER BY name`
      expect(yield* textOf(sql.copyTo(rows))).toBe('a\\tb\t1\nc"d\t\\N\n')
      expect(yield* textOf(sql.copyTo(rows, { format: "csv", header: true, delimiter: ";", null: "-" }))).toBe(
        'name;amount\na\tb;1\n"c""d";-\n'
      )
      expect(yield* textOf(sql.copyTo(sql`SELECT 'é'`, { encoding: "LATIN1" }))).toBe("\ufffd\n")
      expect(yield* textOf(sql.copyTo(sql`SELECT 1 WHERE false -- none`))).toBe("")
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyTo writes the parameters of its query into the statement as literals of the same values", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const hostile = "'; DROP TABLE item; -- \\' $1 \\"
      const query = sql`SELECT ${hostile}::text, ${1}::int, ${null}::text, ${sql.json({ a: [hostile] })}::jsonb ->> 'a',
        ${["x", hostile]}::text[] IS NOT NULL, ${Redacted.make("s")}::text, ${Buffer.from([1])}::bytea, 'a' IN ${sql.in(["a"])}`
      const [values] = yield* query.values
      // the query has been compiled already, for the statement before
      const [line] = (yield* textOf(sql.copyTo(query, { format: "csv", null: "NULL" }))).split("\n", 1)
      expect(values?.slice(0, 3)).toEqual([hostile, 1, null])
      expect(line).toBe(
        `'; DROP TABLE item; -- \\' $1 \\,1,NULL,"[""'; DROP TABLE item; -- \\\\' $1 \\\\""]",t,s,\\x01,t`
      )
      expect((yield* failure(Stream.runDrain(sql.copyTo(sql.unsafe("SELECT $1", [1])))))._tag).toBe("QueryFailed")
      expect((yield* failure(Stream.runDrain(sql.copyTo(sql.unsafe("SELECT \0")))))._tag).toBe("QueryFailed")
      const name = sql.copyTo(sql`SELECT ${'"; --'} AS ${sql("\0" + "1\0")}`)
      expect((yield* failure(Stream.runDrain(name))).message).toContain("NUL")
      expect(yield* stored).toEqual([])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyTo of a reader refuses a text with several commands", () =>
    Effect.gen(function* () {
      const sql = yield* Db.reader
      const several = sql.copyTo(sql.unsafe("SELECT 1) TO STDOUT; COMMIT; CREATE TABLE mine (); --"))
      expect((yield* failure(Stream.runDrain(several)))._tag).toBe("QueryFailed")
      expect(yield* look("SELECT to_regclass('mine') AS mine")).toEqual([{ mine: null }])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive(
    "copyTo of a reader sees the writes of its transaction, cannot write, and leaves the transaction writable",
    () =>
      Effect.gen(function* () {
        const sql = yield* Db.reader
        const names = textOf(sql.copyTo(sql`SELECT name FROM item ORDER BY name`))
        const write = textOf(sql.copyTo(sql`INSERT INTO item (name) VALUES ('x') RETURNING name`))
        const program = Effect.gen(function* () {
          yield* copy(given(["a", 1]))
          expect(yield* names).toBe("a\n")
          expect((yield* failure(write))._tag).toBe("ReadOnlyViolation")
          yield* copy(given(["b", 1]))
        })
        yield* Db.withTransaction(program)
        expect(yield* stored).toEqual(["a", "b"])
        expect((yield* failure(write))._tag).toBe("ReadOnlyViolation")
      }).pipe(Effect.provide(fresh({ readers: [] })))
  )

  it.scopedLive("copyTo commits what its query writes, with the transaction around it or in one of its own", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const write = (name: string) => textOf(sql.copyTo(sql`INSERT INTO item (name) VALUES (${name}) RETURNING name`))
      expect(yield* write("a")).toBe("a\n")
      yield* Effect.flip(Db.withTransaction(Effect.zipRight(write("b"), Effect.fail("undone"))))
      yield* Db.withTransaction(write("c"))
      expect(yield* stored).toEqual(["a", "c"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyTo is read from the server as fast as it is consumed", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const rows = sql.copyTo(sql`SELECT repeat('x', 10000) FROM generate_series(1, 10000)`)
      const held = yield* Deferred.make<void>()
      const first = yield* Deferred.make<void>()
      let bytes = 0
      const reading = yield* Effect.fork(
        Stream.runForEach(rows, (block) => {
          bytes += block.length
          return Effect.zipRight(Deferred.succeed(first, undefined), Deferred.await(held))
        })
      )
      yield* Deferred.await(first)
      yield* look(
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'ClientWrite'"
      ).pipe(eventually((rows) => rows.length === 1))
      expect(bytes).toBeLessThan(1_000_000)
      yield* Deferred.succeed(held, undefined)
      yield* Fiber.join(reading)
      expect(bytes).toBe(10_001 * 10_000)
    }).pipe(Effect.provide(fresh({ statementTimeout: "1 minute" })))
  )

  it.scopedLive("copyTo that is not read to its end keeps its connection if the rest arrives soon", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const before = yield* pid
      const rows = sql.copyTo(
        sql`INSERT INTO item (name) SELECT n::text FROM generate_series(1, 3000) AS n RETURNING name`
      )
      const [block] = [...(yield* Stream.runCollect(Stream.take(rows, 1)))]
      expect(String(block)).toMatch(/^1\n2\n/)
      expect(yield* stored).toHaveLength(3000)
      yield* Db.withTransaction(Effect.zipRight(Stream.runDrain(Stream.take(rows, 0)), sql`TRUNCATE item`))
      expect(yield* pid).toBe(before)
    }).pipe(Effect.provide(one()))
  )

  /** A query with two rows at once and one a minute later. The server sends the first when it writes the second. */
  const slow = (sql: Effect.Effect.Success<typeof writer>) =>
    sql`SELECT repeat('x', 70000), pg_sleep(n) FROM (VALUES (0), (0), (60)) AS _ (n)`

  it.scopedLive(
    "copyTo that is not read to its end is cancelled if the rest does not arrive soon, and keeps its connection",
    () =>
      Effect.gen(function* () {
        const sql = yield* writer
        const before = yield* pid
        const rows = sql.copyTo(slow(sql))
        expect(yield* Stream.runCount(Stream.take(rows, 1))).toBe(1)
        expect(yield* active).toBe(0)
        expect(yield* pid).toBe(before)
        const inside = Effect.zipRight(Stream.runDrain(Stream.take(rows, 1)), insert("after"))
        yield* Db.withTransaction(Effect.zipRight(insert("before"), inside))
        expect(yield* stored).toEqual(["after", "before"])
        expect(yield* pid).toBe(before)
      }).pipe(Effect.provide(one()))
  )

  it.scopedLive("copyTo that is interrupted is cancelled on the server, and its transaction goes on", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const before = yield* pid
      const interrupted = Effect.gen(function* () {
        const first = yield* Deferred.make<void>()
        const reading = yield* Effect.fork(
          Stream.runForEach(sql.copyTo(slow(sql)), () => Deferred.succeed(first, undefined))
        )
        yield* Deferred.await(first)
        yield* Fiber.interrupt(reading)
        yield* insert("after")
      })
      yield* Db.withTransaction(interrupted)
      expect(yield* stored).toEqual(["after"])
      expect(yield* pid).toBe(before)
    }).pipe(Effect.provide(one()))
  )

  it.scopedLive("copyTo that is interrupted and cannot be cancelled fails its transaction, which is not retried", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const sql = yield* writer
        yield* proxy.when(({ type }) => type === "cancel", "cut", Number.POSITIVE_INFINITY)
        let attempts = 0
        const interrupted = Effect.gen(function* () {
          attempts++
          const first = yield* Deferred.make<void>()
          const reading = yield* Effect.fork(
            Stream.runForEach(sql.copyTo(slow(sql)), () => Deferred.succeed(first, undefined))
          )
          yield* Deferred.await(first)
          yield* Fiber.interrupt(reading)
          yield* sql`SELECT 1`
        })
        const error = yield* failure(Db.withTransaction(interrupted, { retry: true }))
        expect(error).toMatchObject({ _tag: "TransactionInterrupted" })
        expect(attempts).toBe(1)
      })
    )
  )

  it.scopedLive("copyTo fails with a typed error when it is refused, fails, is cancelled or loses its session", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const { name } = yield* Place
      expect((yield* failure(Stream.runDrain(sql.copyTo(sql`SELECT nothing`))))._tag).toBe("QueryFailed")
      const divided = sql.copyTo(sql`SELECT 1 / (90000 - n) FROM generate_series(1, 100000) AS n`)
      expect((yield* failure(Stream.runDrain(divided))).message).toContain("division by zero")
      const rows = sql.copyTo(sql`SELECT repeat('x', 10000) FROM generate_series(1, 100000)`)
      const broken = (how: Effect.Effect<unknown>) =>
        failure(Stream.runForEach(rows, () => how)).pipe(Effect.map((error) => error._tag))
      const cancel = look(
        `SELECT pg_cancel_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND query LIKE 'COPY%' AND state = 'active'`
      ).pipe(Effect.provideService(Place, yield* Place))
      expect(yield* broken(cancel)).toBe("StatementTimeout")
      expect(yield* broken(terminateBackends(name))).toBe("Disconnected")
      expect(yield* sql`SELECT 1 AS n`).toEqual([{ n: 1 }])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyTo and copyFrom are interrupted within 1.5 seconds on a dead network", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const sql = yield* writer
        const first = yield* Deferred.make<void>()
        const rows = sql.copyTo(sql`SELECT repeat('x', 10000) FROM generate_series(1, 1000)`)
        const reading = yield* Effect.fork(
          Stream.runForEach(rows, () => Effect.zipRight(proxy.strand, Deferred.succeed(first, undefined)))
        )
        yield* Deferred.await(first)
        yield* Effect.timeout(Fiber.interrupt(reading), "1500 millis")
        const stuck = yield* Effect.fork(sql.copyFrom("item", ["name", "amount"], endless))
        yield* Effect.flatten(proxy.when(sends("COPY"), "pass"))
        yield* proxy.strand
        yield* Effect.timeout(Fiber.interrupt(stuck), "1500 millis")
        expect(yield* active).toBe(0)
      })
    )
  )

  it.scopedLive("copyTo ends for a slow consumer whatever part of the data arrives with the end of the exchange", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      for (let kilobytes = 72; kilobytes <= 264; kilobytes += 8) {
        const rows = sql.copyTo(sql`SELECT repeat('x', 1023) FROM generate_series(1, ${kilobytes})`)
        let bytes = 0
        yield* Stream.runForEach(rows, (block) => {
          bytes += block.length
          // when another session has answered, all that fits into the socket has arrived
          return look("SELECT 1").pipe(Effect.repeatN(2))
        })
        expect(bytes).toBe(kilobytes * 1024)
      }
    }).pipe(Effect.provide(one()))
  )

  it.scopedLive("copyTo is sent again and returns all rows if its connection is lost before the first of them", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const sql = yield* writer
        const lost = yield* proxy.when(sends("COPY"), "cut")
        const lines = sql.copyTo(sql`SELECT repeat('x', 1023) FROM generate_series(1, 1000)`)
        expect(yield* Stream.runFold(lines, 0, (sum, block) => sum + block.length)).toBe(1000 * 1024)
        yield* lost
      })
    )
  )

  it.scopedLive("copyTo returns blocks that copyFrom can store", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      yield* copy(Stream.take(endless, 50_000))
      yield* look("CREATE TABLE other (LIKE item)")
      expect(yield* sql.copyFrom("other", [], sql.copyTo(sql`TABLE item`))).toBe(50_000)
      expect(yield* look("TABLE other EXCEPT TABLE item")).toEqual([])
    }).pipe(Effect.provide(fresh()))
  )
})
