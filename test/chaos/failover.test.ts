/**
 * Promotions under load: the writer is killed and its standby promoted, again and again, while
 * fibers insert rows. No row is stored twice, and none that was acknowledged on the surviving
 * timeline is lost.
 *
 * `EFFECT_DB_CHAOS=full` has 50 rounds, and not 3.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { EmbeddedPostgres } from "effect-db"
import { Db } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { urlOf } from "../support/hostCluster.js"
import { createItem, rate, startInserts } from "../support/insertLoad.js"
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
        yield* query(primary.url(), createItem)
        yield* awaitReplicas
        const writer = urlOf(primary, [primary, replica])
        yield* Effect.gen(function* () {
          const load = yield* startInserts
          const waits: Array<number> = []
          let [old, next] = [primary, replica]
          for (let round = 0; round < rounds; round++) {
            yield* load.progress
            yield* old.kill
            // the promoted standby has none of its own
            yield* setSynchronous(0)
            yield* next.promote
            const promoted = performance.now()
            waits.push(yield* load.successAfter(promoted))
            yield* old.follow(next)
            yield* setSynchronous(1)
            ;[old, next] = [next, old]
          }
          const stored = yield* load.stop(old.url())
          if (outcome === "marker") {
            assert.strictEqual(load.unknown.size, 0)
            assert.deepStrictEqual(
              load.undone.filter((id) => stored.has(id)),
              []
            )
          }
          console.log(`${outcome}: ${load.summary(waits)} after a promotion`)
        }).pipe(Effect.provide(Db.layer({ writer, outcome })))
      }),
    rounds * 30_000
  )

promotions("status")
promotions("marker")
