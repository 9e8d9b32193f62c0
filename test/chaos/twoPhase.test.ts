/**
 * Processes that are killed at each step of units of work in two phases: after the recovery by another
 * process, both databases have the same rows, and no transaction is left prepared.
 *
 * `EFFECT_DB_CHAOS=full` kills 204 processes, and not 6.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { startChild } from "../support/child.js"
import { eventually } from "../support/eventually.js"
import { answers, type Message, makeProxy, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"

/** The last message that one of the databases does not get, or whose answer the process does not get. */
const steps: ReadonlyArray<readonly [at: "one" | "two", matches: (message: Message) => boolean]> = [
  ["one", sends("PREPARE TRANSACTION")],
  ["one", answers("PREPARE TRANSACTION")],
  ["two", sends("mark_commit")],
  ["two", answers("COMMIT")],
  ["one", sends("COMMIT PREPARED")],
  ["one", answers("COMMIT PREPARED")]
]

const rounds = process.env.EFFECT_DB_CHAOS === "full" ? 34 : 1

it.scopedLive(
  `${rounds * steps.length} processes that are killed in two phases leave both databases with the same rows`,
  () =>
    Effect.gen(function* () {
      const [one, two] = [(yield* freshDatabase).writer, (yield* freshDatabase).writer]
      for (const url of [one, two]) yield* query(url, "CREATE TABLE moved (id int PRIMARY KEY)")
      const proxies = { one: yield* makeProxy(one), two: yield* makeProxy(two) }
      const start = (id: number) =>
        startChild("unitLoop", [Redacted.value(proxies.two.url), String(id)], proxies.one.url)
      let left = 0
      const prepared = Effect.map(
        query<{ count: number }>(
          one,
          "SELECT count(*)::int AS count FROM pg_prepared_xacts WHERE database = current_database()"
        ),
        ([row]) => row?.count ?? 0
      )
      for (let round = 0; round < rounds; round++) {
        for (const [i, [at, matches]] of steps.entries()) {
          yield* Effect.scoped(
            Effect.gen(function* () {
              const reached = yield* proxies[at].when(matches, "freeze")
              const child = yield* start(1 + 1_000_000 * (round * steps.length + i))
              yield* reached
              yield* child.signal("SIGKILL")
              yield* child.ended
            })
          )
          for (const proxy of [proxies.one, proxies.two]) {
            yield* proxy.forget
            yield* proxy.cut
            yield* proxy.thaw
          }
          left += yield* prepared
        }
      }
      const recovery = yield* start(0)
      yield* recovery.line
      yield* eventually(prepared, (count) => count === 0)
      yield* recovery.tell
      yield* recovery.ended
      const rows = yield* Effect.forEach([one, two], (url) =>
        Effect.map(query<{ id: number }>(url, "SELECT id FROM moved ORDER BY id"), (all) => all.map(({ id }) => id))
      )
      assert.deepStrictEqual(rows[0], rows[1])
      // some of the kills have left something, so that there was something to recover
      assert.isAbove(left, 0)
      console.log(
        `${rounds * steps.length} processes killed, ${left} prepared transactions seen after that; ${rows[0]?.length} units stored on both databases, none on one`
      )
    }),
  1_800_000
)
