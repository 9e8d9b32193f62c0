/**
 * A cluster under Patroni whose leader is killed under writes, reached by three kinds of settings.
 * No acknowledged row is lost, and none is stored twice.
 *
 * `EFFECT_DB_CHAOS=full` has 5 rounds, and not 1.
 */
import * as FetchHttpClient from "@effect/platform/FetchHttpClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { type Database, Discovery } from "effect-db"
import { Db } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { createItem, rate, startInserts } from "../support/insertLoad.js"
import { acceptsWrites, hasPatroni, makeHaproxy, makePatroni } from "../support/patroni.js"
import { query } from "../support/server.js"

const rounds = process.env.EFFECT_DB_CHAOS === "full" ? 5 : 1

type Patroni = Effect.Effect.Success<typeof makePatroni>

const urlOf = ({ password }: Patroni, hosts: string) =>
  Redacted.make(`postgres://postgres:${password}@${hosts}/postgres?sslmode=disable`)

/** Kills the leader again and again while fibers insert rows; prints the time until the first success. */
const failovers = (cluster: Patroni, name: string) =>
  Effect.gen(function* () {
    const load = yield* startInserts
    const read = Effect.flatMap(Db.reader, (reader) => reader<{ n: number }>`SELECT 1 AS n`)
    const waits: Array<number> = []
    for (let round = 0; round < rounds; round++) {
      const [leader, standby] = yield* cluster.settled
      yield* load.progress
      yield* leader.kill
      yield* eventually(acceptsWrites(standby), (accepts) => accepts)
      const accepted = performance.now()
      waits.push(yield* load.successAfter(accepted))
      assert.deepStrictEqual(yield* read, [{ n: 1 }])
      yield* leader.start
    }
    const [leader] = yield* cluster.settled
    yield* load.stop(leader.url)
    console.log(`${name}: ${load.summary(waits)} after the new leader accepts writes`)
  })

const cases: ReadonlyArray<
  readonly [name: string, optionsOf: (cluster: Patroni) => Effect.Effect<Database.Options, unknown, Scope.Scope>]
> = [
  [
    "hosts with the names of both",
    (cluster) =>
      Effect.succeed({ hosts: urlOf(cluster, cluster.nodes.map(({ host, port }) => `${host}:${port}`).join()) })
  ],
  [
    "hosts that Patroni's API returns",
    (cluster) => {
      const [a, b] = cluster.nodes
      const discover = Effect.provide(Discovery.patroni([a.api, b.api]), FetchHttpClient.layer)
      return Effect.succeed({ hosts: urlOf(cluster, ""), discover, discoverInterval: "1 second" })
    }
  ],
  [
    "HAProxy with a port for each role",
    (cluster) =>
      Effect.map(makeHaproxy(cluster), ({ primary, replica }) => ({
        writer: urlOf(cluster, `127.0.0.1:${primary}`),
        readers: [urlOf(cluster, `127.0.0.1:${replica}`)]
      }))
  ]
]

describe.skipIf(!hasPatroni)(
  hasPatroni ? "a cluster under Patroni" : "a cluster under Patroni (there is none: npm run test:cluster)",
  () => {
    for (const [name, optionsOf] of cases) {
      it.scopedLive(
        `a leader that is killed (rounds: ${rounds}) under ${rate} transactions a second loses and doubles no row, by ${name}`,
        () =>
          Effect.gen(function* () {
            const cluster = yield* makePatroni
            const [leader] = yield* cluster.settled
            yield* query(leader.url, createItem)
            yield* query(leader.url, "CREATE TABLE probe (n int)")
            const options = yield* optionsOf(cluster)
            yield* Effect.provide(failovers(cluster, name), Db.layer(options))
          }),
        120_000 + rounds * 60_000
      )
    }
  }
)
