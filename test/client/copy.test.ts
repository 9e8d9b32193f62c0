import { inspect } from "node:util"
import { assert, describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { type Copy, DatabaseError, DatabaseRuntime, Tenant, TestDatabase } from "effect-db"
import { behind } from "../support/behind.js"
import { behindBouncer, hasBouncer, makeBouncer } from "../support/bouncer.js"
import { copy, copyFailure, endless, given, one, textOf, writer } from "../support/copying.js"
import { Db, fresh, freshTable, look, Place, pid, stored } from "../support/databases.js"
import { failure } from "../support/failures.js"
import { sends } from "../support/proxy.js"
import { at } from "../support/server.js"

describe("COPY", () => {
  it.scopedLive(
    "the error of a failed COPY has the SQL without values, the position in the SQL and the call site",
    () =>
      Effect.gen(function* () {
        const sql = yield* writer
        const secret = "correct 🐎 battery"
        const query = sql`SELECT ${secret}::text, '🐎', ${7}::int, absent`
        const error = yield* failure(Stream.runDrain(sql.copyTo(query, { format: "csv" })))
        assert(error instanceof DatabaseError.QueryFailed)
        expect(error.sql).toMatch(/^COPY \(SELECT \$1::text, '🐎', \$2::int, absent\n\) TO STDOUT WITH \(FORMAT csv/)
        expect(error.message.split("\n").slice(1)).toEqual([
          "  LINE 1: COPY (SELECT $1::text, '🐎', $2::int, absent",
          "                                               ^",
          expect.stringMatching(/^ {2}at: .*copy\.test\.ts:\d+:\d+/)
        ])
        expect(inspect(error, { depth: 9 }) + JSON.stringify(error)).not.toContain("battery")
        const spot = expect.stringMatching(/copy\.test\.ts:\d+:\d+/)
        const rows = ["name", "amount"]
        const place = {
          sql: expect.stringMatching(/^COPY "item" \("name", "amount"\) FROM STDIN WITH/),
          location: spot
        }
        expect(yield* copyFailure(sql.copyFrom("item", rows, given(["a", "x"])))).toMatchObject({
          ...place,
          cause: place
        })
        expect(yield* copyFailure(sql.copyFrom("item", rows, given(["a"])))).toMatchObject(place)
      }).pipe(Effect.provide(fresh({ leakThreshold: "1 hour" })))
  )

  it.scopedLive("a COPY that fails inside a span names that span when call sites are not recorded", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const all = [Stream.runDrain(sql.copyTo(sql`SELECT absent`)), copy(given(["a", "x"])), copy(given(["a"]))]
      for (const one of all) {
        expect(yield* failure(Effect.withSpan(one, "loading"))).toMatchObject({ location: 'span "loading"' })
      }
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("the error of a transaction whose COPY was interrupted names the COPY without its values", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const sql = yield* writer
        yield* proxy.when(({ type }) => type === "cancel", "cut", Number.POSITIVE_INFINITY)
        const interrupted = Effect.gen(function* () {
          const sent = yield* proxy.when(sends("pg_sleep"), "pass")
          const reading = yield* Effect.fork(Stream.runDrain(sql.copyTo(sql`SELECT ${"secret"}, pg_sleep(60)`)))
          yield* sent
          yield* Fiber.interrupt(reading)
          yield* sql`SELECT 1`
        })
        expect(yield* failure(Db.withTransaction(interrupted))).toMatchObject({
          _tag: "TransactionInterrupted",
          statement: expect.stringMatching(/^COPY \(SELECT \$1, pg_sleep\(60\)/)
        })
      })
    )
  )

  it.scopedLive(
    "a COPY that is sent as a statement is refused in both directions with a hint, and its connection stays usable",
    () =>
      Effect.gen(function* () {
        const sql = yield* writer
        const before = yield* pid
        const refusals = Effect.gen(function* () {
          const from = yield* failure(sql`COPY item FROM STDIN`)
          expect([from._tag, from.message]).toEqual(["QueryFailed", expect.stringContaining("use sql.copyFrom")])
          const to = yield* failure(sql`COPY item TO STDOUT`)
          expect([to._tag, to.message]).toEqual(["QueryFailed", expect.stringContaining("use sql.copyTo")])
          const many = yield* failure(sql`COPY (SELECT n FROM generate_series(1, 1000) AS n) TO STDOUT`)
          expect(many.message).toContain("use sql.copyTo")
          const among = yield* failure(sql`/* two */ SELECT 1; COPY item FROM STDIN`)
          expect(among.message).toContain("use sql.copyFrom")
        })
        yield* refusals
        yield* Tenant.withTenant(refusals, "public")
        expect(yield* pid).toBe(before)
        // a refused COPY is a failed statement: the transaction is usable after a rollback to its savepoint
        yield* Db.withTransaction(
          Effect.zipRight(Effect.flip(Db.withTransaction(sql`COPY item FROM STDIN`)), copy(given(["a", 1])))
        )
        expect(yield* stored).toEqual(["a"])
        expect(yield* pid).toBe(before)
      }).pipe(Effect.provide(one()))
  )

  it.scopedLive("a COPY from a program on the server runs as an ordinary statement", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      yield* sql`COPY item (name) FROM PROGRAM 'echo a'`
      expect(yield* stored).toEqual(["a"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a COPY sent as a statement that would return much data is not read to its end", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const error = yield* failure(sql`COPY (SELECT repeat('x', 1000) FROM generate_series(1, 10000000)) TO STDOUT`)
      expect(error.message).toContain("use sql.copyTo")
      expect(yield* sql`SELECT 1 AS n`).toEqual([{ n: 1 }])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("COPY resolves names in the schema scope that it runs in", () =>
    Effect.gen(function* () {
      yield* look("CREATE SCHEMA house; CREATE TABLE house.item (LIKE item INCLUDING ALL)")
      const sql = yield* writer
      const names = textOf(sql.copyTo(sql`SELECT name FROM item`))
      yield* copy(given(["a", 1])).pipe(Tenant.withTenant("house"))
      expect([yield* names, yield* Tenant.withTenant(names, "house")]).toEqual(["", "a\n"])
      yield* Db.withTransaction(copy(given(["b", 1])).pipe(Tenant.withTenant("house")))
      expect(yield* look("SELECT name FROM house.item ORDER BY 1")).toEqual([{ name: "a" }, { name: "b" }])
      expect(yield* stored).toEqual([])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("COPY in a sandbox is rolled back with it, and a refused COPY leaves the sandbox usable", () =>
    Effect.gen(function* () {
      const sandboxed = Effect.gen(function* () {
        const [sql, reader] = [yield* writer, yield* Db.reader]
        expect(yield* copy(given(["a", 1]))).toBe(1)
        yield* copyFailure(copy(given(["b", "x"])))
        expect(yield* failure(reader.copyFrom("item", ["name"], given(["c"])))).toMatchObject({
          _tag: "ReadOnlyViolation"
        })
        for (const client of [sql, reader]) {
          expect((yield* failure(client`COPY item TO STDOUT`)).message).toContain("use sql.copyTo")
          expect(yield* textOf(client.copyTo(sql`SELECT name FROM item`))).toBe("a\n")
        }
        expect((yield* failure(sql`COPY item FROM STDIN`)).message).toContain("use sql.copyFrom")
        expect(yield* copy(given(["d", 1]))).toBe(1)
      })
      yield* Effect.scoped(
        Effect.flatMap(Layer.build(TestDatabase.layer(Db)), (sandbox) => Effect.provide(sandboxed, sandbox))
      )
      expect(yield* stored).toEqual([])
    }).pipe(Effect.provide(fresh()))
  )
})

describe.skipIf(!hasBouncer)(behindBouncer, () => {
  it.scopedLive("COPY works behind a pooler in both directions, and refused data leaves the pool usable", () =>
    Effect.gen(function* () {
      const place = yield* freshTable
      const { url } = yield* makeBouncer(place.writer, { default_pool_size: 1 })
      const context = yield* Layer.build(
        Layer.merge(
          Db.layer({ writer: at(Redacted.value(url), place.name), mode: "transactionPooler" }),
          Layer.succeed(Place, place)
        )
      )
      yield* Effect.gen(function* () {
        const sql = yield* writer
        expect(yield* copy(Stream.take(endless, 20_000))).toBe(20_000)
        expect(
          yield* Effect.flip(
            copy(Stream.concat(Stream.drop(Stream.take(endless, 40_000), 20_000), Stream.fail("no more")))
          )
        ).toBe("no more")
        yield* copyFailure(copy(given(["a", "x"])))
        expect((yield* failure(sql`COPY item FROM STDIN`)).message).toContain("use sql.copyFrom")
        expect((yield* textOf(sql.copyTo(sql`TABLE item`))).split("\n")).toHaveLength(20_001)
        expect(yield* sql`SELECT count(*)::int AS n FROM item`).toEqual([{ n: 20_000 }])
      }).pipe(Effect.provide(context))
    })
  )
})

describe("COPY for plain code", () => {
  const runtimeOf = (place: { readonly writer: Redacted.Redacted<string> }) =>
    Effect.acquireRelease(
      Effect.promise(async () => {
        const runtime = DatabaseRuntime.make({ db: Db }, Db.layer({ writer: place.writer, maxConnections: 2 }))
        await runtime.open()
        return runtime
      }),
      (runtime) => Effect.promise(() => runtime.close())
    )

  it.scopedLive(
    "COPY for plain code stores the rows of iterables and returns iterable blocks, in the transaction around it",
    () =>
      Effect.gen(function* () {
        const place = yield* Place
        const { databases } = yield* runtimeOf(place)
        const { reader, withTransaction, writer: sql } = databases.db
        const program = async () => {
          async function* rows() {
            for (let n = 0; n < 1000; n++) yield [`n${n}`, n]
          }
          const seen: Array<Copy.Progress> = []
          expect(
            await sql.copyFrom("item", ["name", "amount"], rows(), {
              onProgress: async (progress) => void seen.push(progress)
            })
          ).toBe(1000)
          expect(seen.at(-1)?.rows).toBe(1000)
          expect(await sql.copyFrom("item", ["name", "amount"], [{ name: "a", amount: 1 }])).toBe(1)
          expect(await sql.copyFrom("item", ["name", "amount"], "b\t1\n")).toBe(1)
          await expect(
            withTransaction(async () => {
              await sql.copyFrom("item", ["name"], new Set([["c"]]))
              let text = ""
              for await (const block of sql.copyTo(sql`SELECT name FROM item WHERE name = ${"c"}`))
                text += String(block)
              throw new Error(text)
            })
          ).rejects.toThrow("c\n")
          for await (const _ of reader.copyTo(sql`TABLE item`)) break
          return sql`SELECT count(*)::int AS n FROM item`
        }
        expect(yield* Effect.promise(program)).toEqual([{ n: 1002 }])
      }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive(
    "COPY for plain code rejects with the error of its rows, of the server or of onProgress, and stores nothing",
    () =>
      Effect.gen(function* () {
        const { databases } = yield* runtimeOf(yield* Place)
        const sql = databases.db.writer
        const thrown = new Error("no more")
        let isClosed = false
        const program = async () => {
          async function* rows() {
            try {
              yield ["a", 1]
              throw thrown
            } finally {
              isClosed = true
            }
          }
          await expect(sql.copyFrom("item", ["name", "amount"], rows())).rejects.toBe(thrown)
          await expect(
            sql.copyFrom(
              "item",
              ["name", "amount"],
              [
                ["a", 1],
                ["b", "x"]
              ]
            )
          ).rejects.toMatchObject({
            _tag: "CopyFailed",
            line: 2
          })
          await expect(
            sql.copyFrom("item", ["name", "amount"], [["a", 1]], {
              onProgress: () => {
                throw thrown
              }
            })
          ).rejects.toThrow("no more")
        }
        yield* Effect.promise(program)
        expect(isClosed).toBe(true)
        expect(yield* stored).toEqual([])
      }).pipe(Effect.provide(fresh()))
  )
})
