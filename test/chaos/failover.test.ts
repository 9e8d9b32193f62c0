/**
 * Promotions under load: the writer is killed and its standby promoted, again and again, while
 * fibers insert rows. No row is stored twice, and none that was acknowledged on the surviving
 * timeline is lost.
 *
 * `EFFECT_DB_CHAOS=full` has 50 rounds, and not 3.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Ref from "effect/Ref"
import { EmbeddedPostgres } from "effect-db"
import { Db } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually } from "../support/eventually.js"
import { rate, startInserts } from "../support/insertLoad.js"
import { query } from "../support/server.js"

const rounds = process.env.EFFECT_DB_CHAOS === "full" ? 50 : 3

const promotions = (outcome: "status" | "marker") =>
  it.scopedLive(
    `${rounds} promotions under ${rate} transactions a second double no row, and lose none of the surviving timeline, by ${outcome}`,
    () =>
      Effect.gen(function* () {
        const { awaitReplicas, primary, replicas, setSynchronous } = yield* EmbeddedPostgres.make({
          directory,
          replicas: 1,
          // a commit is acknowledged when the standby has it, so the promotion loses none
          synchronous: 1
        })
        const replica = replicas[0] ?? assert.fail("no replica")
        yield* query(primary.url(), "CREATE TABLE item (id text NOT NULL)")
        yield* awaitReplicas
        const url = Redacted.value(primary.url())
        const at = `${primary.host}:${primary.port}`
        const writer = Redacted.make(url.replace(at, `${at},${replica.host}:${replica.port}`))
        yield* Effect.gen(function* () {
          const { acknowledged, lastSuccess, load, undone, unknown } = yield* startInserts
          const waits: Array<number> = []
          let [old, next] = [primary, replica]
          for (let round = 0; round < rounds; round++) {
            const before = acknowledged.length
            yield* eventually(
              Effect.sync(() => acknowledged.length - before),
              (more) => more > 50
            )
            yield* old.kill
            // the promoted standby has none of its own
            yield* setSynchronous(0)
            yield* next.promote
            const promoted = performance.now()
            yield* eventually(Ref.get(lastSuccess), (time) => time > promoted)
            waits.push((yield* Ref.get(lastSuccess)) - promoted)
            yield* old.follow(next)
            yield* setSynchronous(1)
            ;[old, next] = [next, old]
          }
          yield* Fiber.interrupt(load)
          const rows = yield* query<{ id: string }>(old.url(), "SELECT id FROM item")
          const stored = new Set(rows.map(({ id }) => id))
          assert.strictEqual(stored.size, rows.length)
          assert.deepStrictEqual(
            acknowledged.filter((id) => !stored.has(id)),
            []
          )
          waits.sort((a, b) => a - b)
          const shown = [0.5, 1].map((part) => Math.round(waits[Math.ceil(part * waits.length) - 1] ?? 0))
          if (outcome === "marker") {
            assert.strictEqual(unknown.size, 0)
            assert.deepStrictEqual(
              undone.filter((id) => stored.has(id)),
              []
            )
          }
          console.log(
            `${outcome}: ${acknowledged.length} transactions, ${unknown.size} unknown; first success ${shown[0]} ms (median), ${shown[1]} ms (longest) after a promotion`
          )
        }).pipe(Effect.provide(Db.layer({ writer, outcome, resolveWithin: "20 seconds" })))
      }),
    rounds * 30_000
  )

promotions("status")
promotions("marker")
