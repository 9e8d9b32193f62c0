/** The metrics of the servers of a database, on a cluster whose primary is replaced. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as MetricState from "effect/MetricState"
import { Db } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { makeCluster, nameOf, urlOf } from "../support/hostCluster.js"

/** Returns the values of the metrics of this library's own, by their names, for one server or the writer. */
const valuesOf = (server: string | undefined) =>
  Effect.map(Metric.snapshot, (pairs) =>
    Object.fromEntries(
      pairs.flatMap(({ metricKey, metricState }) => {
        const tags = Object.fromEntries(metricKey.tags.map(({ key, value }) => [key, value]))
        const isIt = metricKey.name.startsWith("effect_db.") && tags["effect_db.server"] === server
        if (!isIt) return []
        const value = MetricState.isGaugeState(metricState)
          ? Number(metricState.value)
          : MetricState.isCounterState(metricState)
            ? Number(metricState.count)
            : Number.NaN
        return [[metricKey.name.replace("effect_db.", ""), value] as const]
      })
    )
  )

describe("the metrics of servers", () => {
  it.scopedLive("metrics show the lag and the use of a reader, and count the changes of the writer", () =>
    Effect.gen(function* () {
      const { first: next, primary, second: other } = yield* makeCluster(2)
      const writer = urlOf(primary, [primary, next])
      const options = { writer, readers: [other.url()], monitorInterval: "50 millis" } as const
      yield* Effect.gen(function* () {
        const before = (yield* valuesOf(undefined))["writer.changes"] ?? 0
        const read = Effect.flatMap(Db.reader, (sql) => sql`SELECT 1`)
        const write = Effect.flatMap(Db.writer, (sql) => sql`SELECT 1`)
        yield* Effect.zipRight(read, write)
        const up = yield* eventually(
          valuesOf(nameOf(other)),
          (values) => values["reader.lag"] === 0 && (values["reader.latency"] ?? 0) > 0
        )
        assert.deepInclude(up, { "reader.lag_bytes": 0, "reader.usable": 1 })
        yield* primary.kill
        yield* next.promote
        yield* write
        const { "writer.changes": changes, "writer.search_time": time = 0 } = yield* valuesOf(undefined)
        assert.strictEqual(changes, before + 1)
        assert.isAbove(time, 0)
        // it still follows the former primary, so it has another history
        yield* eventually(valuesOf(nameOf(other)), (values) => values["reader.usable"] === 0)
      }).pipe(Effect.provide(Db.layer(options)))
    })
  )
})
