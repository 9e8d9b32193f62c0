/** Statements, streams and units of work as promises. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { Consistency, DatabaseRuntime } from "effect-db"
import { audit, event } from "../support/audit.js"
import { Audit, Db, freshTable, insert, Place, stored } from "../support/databases.js"
import { tagOf } from "../support/failures.js"
import { fresh, rejectionOf } from "../support/freshRuntime.js"

describe("promises", () => {
  it.scopedLive("twelve statements or units at a time share one signal without Node's warning about listeners", () =>
    Effect.gen(function* () {
      const { db, runtime } = yield* fresh({ lazy: true })
      const warnings: Array<string> = []
      const onWarning = (warning: Error) => void warnings.push(warning.name)
      yield* Effect.acquireRelease(
        Effect.sync(() => process.on("warning", onWarning)),
        () => Effect.sync(() => process.off("warning", onWarning))
      )
      const { signal } = new AbortController()
      const twelve = <A>(one: () => PromiseLike<A>) => Promise.all(Array.from({ length: 12 }, one))
      yield* Effect.promise(() => runtime.unitOfWork(() => twelve(() => db.writer`SELECT 1`)))
      yield* Effect.promise(() => twelve(() => runtime.unitOfWork(() => db.writer`SELECT 1`, { signal })))
      assert.deepStrictEqual(warnings, [])
    })
  )

  it.scopedLive("statements, their parts, values and streams work as promises, and run only if awaited", () =>
    Effect.gen(function* () {
      const { db, runtime } = yield* fresh({ lazy: true })
      const sql = db.writer
      yield* Effect.promise(async () => {
        await sql`INSERT INTO item ${sql.insert([
          { name: "a", amount: 1 },
          { name: "b", amount: 2 }
        ])}`
        void sql`DELETE FROM item`
        const only = sql`AND amount > ${1}`
        assert.deepStrictEqual(await sql`SELECT name FROM item WHERE ${sql.in("name", ["a", "b"])} ${only}`, [
          { name: "b" }
        ])
        assert.deepStrictEqual(
          await sql<{
            name: string
          }>`SELECT name FROM ${sql("item")} WHERE ${sql.and([sql`name = ${"a"}`, sql`amount = 1`])}`,
          [{ name: "a" }]
        )
        assert.deepStrictEqual(await sql.query("SELECT name FROM item WHERE amount = $1", [2]), [{ name: "b" }])
        assert.deepStrictEqual(await sql`SELECT name, amount FROM item ORDER BY name`.values(), [
          ["a", 1],
          ["b", 2]
        ])
        const seen: Array<string> = []
        for await (const row of sql<{ n: number }>`SELECT generate_series(1, 1000) AS n`.stream()) {
          seen.push(String(row.n))
          if (row.n === 3) break
        }
        assert.deepStrictEqual(seen, ["1", "2", "3"])
        assert.deepStrictEqual(await sql`SELECT ${sql.json({ a: 1 })}::jsonb AS json`, [{ json: { a: 1 } }])
        const statement = sql`INSERT INTO item ${sql.insert({ name: "once" })} RETURNING name`
        assert.deepStrictEqual([await statement, await statement], [[{ name: "once" }], [{ name: "once" }]])
      })
      void runtime
    })
  )

  it.scopedLive(
    "promises reject with the failure itself, and code that throws rolls back and rejects with its value",
    () =>
      Effect.gen(function* () {
        const { db, runtime, stored } = yield* fresh({ lazy: true })
        const sql = db.writer
        assert.strictEqual(tagOf(yield* rejectionOf(sql`SELECT 1/0`.then())), "InvalidInput")
        const first = sql`SELECT 1/0`.stream()[Symbol.asyncIterator]().next()
        assert.strictEqual(tagOf(yield* rejectionOf(first)), "InvalidInput")
        const mine = new Error("mine")
        const throwing = runtime.unitOfWork(async () => {
          await sql`INSERT INTO item ${sql.insert({ name: "x" })}`
          throw mine
        })
        assert.strictEqual(yield* rejectionOf(throwing), mine)
        const duplicate = runtime.unitOfWork(async () => {
          await sql`INSERT INTO item ${sql.insert({ name: "x" })}`
          await sql`INSERT INTO item ${sql.insert({ name: "x" })}`.then(undefined, () => {})
        })
        assert.strictEqual(tagOf(yield* rejectionOf(duplicate)), "RolledBackAtCommit")
        assert.deepStrictEqual(yield* stored, [])
      })
  )

  it.scopedLive("plain code and effects share one transaction in a unit of work, through every await", () =>
    Effect.gen(function* () {
      const { db, runtime, stored } = yield* fresh({ lazy: true })
      const pid = () => db.writer<{ pid: number }>`SELECT pg_backend_pid() AS pid`.then(([row]) => row?.pid)
      const pids = yield* Effect.promise(() =>
        runtime.unitOfWork(async () => {
          await runtime.runPromise(insert("effect"))
          await db.writer`INSERT INTO item ${db.writer.insert({ name: "plain" })}`
          const all = await Promise.all([pid(), pid(), runtime.unitOfWork(pid), db.withTransaction(pid)])
          const other = await db.independent(pid)
          return { one: new Set(all).size, other: all.includes(other) }
        })
      )
      assert.deepStrictEqual(pids, { one: 1, other: false })
      assert.deepStrictEqual(yield* stored, ["effect", "plain"])
      const both = yield* Effect.promise(() => Promise.all([runtime.unitOfWork(pid), runtime.unitOfWork(pid)]))
      assert.strictEqual(new Set(both).size, 2)
    })
  )

  it.scopedLive("hooks, early ends, nested transactions, reads of own writes and outcomes work in plain code", () =>
    Effect.gen(function* () {
      const { db, runtime, stored } = yield* fresh({ lazy: true })
      const add = async (name: string) => void (await db.writer`INSERT INTO item ${db.writer.insert({ name })}`)
      const log: Array<string> = []
      yield* Effect.promise(() =>
        runtime.unitOfWork(async () => {
          await add("early")
          await db.afterCommit(() => void log.push("committed"))
          await db.commit()
          await add("dropped")
          await db.afterRollback(async () => void log.push("rolled back"))
          await db.rollback()
          await add("late")
          await db.beforeCommit(() => add("by a hook"))
          await db
            .withTransaction(async () => {
              await add("undone")
              throw new Error("no")
            })
            .catch(() => {})
          const strong = await db.withConsistency(
            () => db.reader`SELECT pg_is_in_recovery() AS yes`,
            Consistency.Strong()
          )
          assert.deepStrictEqual(strong, [{ yes: false }])
        })
      )
      assert.deepStrictEqual(log, ["committed", "rolled back"])
      yield* Effect.promise(() => runtime.unitOfWork(() => add("never"), { outcome: () => "rollback" }))
      assert.deepStrictEqual(yield* stored, ["by a hook", "early", "late"])
    })
  )

  it.scopedLive("a signal ends the running work and rolls it back", () =>
    Effect.gen(function* () {
      const { db, runtime, stored } = yield* fresh({ lazy: true })
      const controller = new AbortController()
      const asleep = yield* Deferred.make<void>()
      const reason = new Error("enough")
      const unit = runtime.unitOfWork(
        async () => {
          await db.writer`INSERT INTO item ${db.writer.insert({ name: "x" })}`
          Effect.runSync(Deferred.succeed(asleep, undefined))
          await db.writer`SELECT pg_sleep(60)`
        },
        { signal: controller.signal }
      )
      const failed = rejectionOf(unit)
      const waiting = yield* Effect.fork(failed)
      yield* Deferred.await(asleep)
      controller.abort(reason)
      assert.strictEqual(yield* waiting, reason)
      assert.deepStrictEqual(yield* stored, [])
      const { servers } = yield* Effect.promise(() => db.status())
      assert.isTrue(servers.every(({ reads, writes }) => reads.active + (writes?.active ?? 0) === 0))
    })
  )

  it.scopedLive("a web request with retry runs again with its body, and one without a transaction has no unit", () =>
    Effect.gen(function* () {
      const { db, runtime, stored } = yield* fresh({ lazy: true })
      let left = 1
      const add = async (request: Request) => {
        await db.writer`INSERT INTO item ${db.writer.insert({ name: await request.text() })}`
        if (left-- > 0) {
          await db.writer`DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$`
        }
        return new Response(null, { status: 201 })
      }
      const headers = { "content-length": "5" }
      const post = (body: string) => new Request("http://localhost/items", { method: "POST", body, headers })
      const answered = yield* Effect.promise(() => runtime.handler(add, { retry: true })(post("again")))
      assert.strictEqual(answered.status, 201)
      left = 1
      assert.strictEqual(tagOf(yield* rejectionOf(runtime.handler(add)(post("once")))), "SerializationFailure")
      left = 1
      yield* rejectionOf(runtime.handler(add, { transaction: () => "none" })(post("alone")))
      assert.deepStrictEqual(yield* stored, ["again", "alone"])
    })
  )

  it.scopedLive("work in runtime.outside may outlive the unit that called it, and has a unit of its own", () =>
    Effect.gen(function* () {
      const { db, runtime, stored } = yield* fresh({ lazy: true })
      const add = async (name: string) => void (await db.writer`INSERT INTO item ${db.writer.insert({ name })}`)
      const go = yield* Deferred.make<void>()
      const [inside, outside] = yield* Effect.promise(() =>
        runtime.unitOfWork(
          async () => {
            await add("unit")
            const later = (name: string) => async () => {
              await Effect.runPromise(Deferred.await(go))
              await runtime.unitOfWork(() => add(name))
            }
            return [later("inside")().catch(tagOf), runtime.outside(later("outside")).catch(tagOf)] as const
          },
          { outcome: () => "rollback" }
        )
      )
      yield* Deferred.succeed(go, undefined)
      assert.strictEqual(yield* Effect.promise(() => inside), "TransactionEnded")
      assert.isUndefined(yield* Effect.promise(() => outside))
      assert.deepStrictEqual(yield* stored, ["outside"])
    })
  )

  it.scopedLive("a statement with a route comment is prepared if the route is a pattern, and not if it is a path", () =>
    Effect.gen(function* () {
      const { db, runtime } = yield* fresh({ lazy: true })
      const prepared = (options: DatabaseRuntime.HandlerOptions) =>
        Effect.promise(async () => {
          const handler = runtime.handler(
            async () => {
              const rows = await db.writer<{ n: number }>`
                SELECT count(*)::int AS n FROM pg_prepared_statements WHERE statement LIKE '%/*%'`
              return Response.json(rows[0]?.n)
            },
            { sqlComment: "route", ...options }
          )
          const seen: Array<unknown> = []
          for (const id of [1, 2, 3]) {
            seen.push(await (await handler(new Request(`http://localhost/items/${id}`))).json())
          }
          return seen
        })
      assert.deepStrictEqual(yield* prepared({}), [0, 0, 0])
      assert.deepStrictEqual(yield* prepared({ route: "/items/:id" }), [1, 1, 1])
    })
  )

  it.scopedLive("two databases of a unit are both rolled back if one of them refuses its COMMIT", () =>
    Effect.gen(function* () {
      const place = yield* freshTable
      const both = Layer.merge(Db.layer({ writer: place.writer }), audit)
      const runtime = DatabaseRuntime.make({ db: Db, audit: Audit }, both, { lazy: true })
      const { audit: log, db } = runtime.databases
      const unit = runtime.unitOfWork(async () => {
        await db.writer`INSERT INTO item ${db.writer.insert({ name: "a" })}`
        await runtime.runPromise(event("unlucky", 13))
      })
      assert.strictEqual(tagOf(yield* rejectionOf(unit)), "CommitFailed")
      assert.deepStrictEqual(yield* Effect.provideService(stored, Place, place), [])
      assert.deepStrictEqual(yield* Effect.promise(async () => await log.writer`SELECT what FROM event`), [])
      yield* Effect.promise(() => runtime.close())
    })
  )
})
