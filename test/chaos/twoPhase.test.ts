/**
 * Processes that are killed at each step of units of work in two phases: after the recovery by another
 * process, both databases have the same rows, and no transaction is left prepared, or was ended
 * without a report.
 *
 * `EFFECT_DB_CHAOS=full` kills 204 processes in each test, and not 6.
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
const kills = rounds * steps.length

const given = Effect.gen(function* () {
  const [one, two] = [(yield* freshDatabase).writer, (yield* freshDatabase).writer]
  for (const url of [one, two]) yield* query(url, "CREATE TABLE moved (id int PRIMARY KEY)")
  const proxies = { one: yield* makeProxy(one), two: yield* makeProxy(two) }
  /** The names of the transactions that are prepared. */
  const prepared = Effect.map(
    query<{ gid: string }>(one, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"),
    (rows) => rows.map(({ gid }) => gid)
  )
  /** Kills a process at each step, and returns what is prepared after each kill. */
  const killAtSteps = (resolveWithin: number) =>
    Effect.gen(function* () {
      const left: Array<string> = []
      for (let kill = 0; kill < kills; kill++) {
        const [at, matches] = steps[kill % steps.length] ?? assert.fail("no step")
        const args = [Redacted.value(proxies.two.url), String(1 + 1_000_000 * kill), String(resolveWithin)]
        yield* Effect.scoped(
          Effect.gen(function* () {
            const reached = yield* proxies[at].when(matches, "freeze")
            const child = yield* startChild("unitLoop", args, proxies.one.url)
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
        left.push(...(yield* prepared))
      }
      return left
    })
  /** Starts a process that recovers what others have left. */
  const recover = startChild("unitLoop", [Redacted.value(two), "0"], one)
  const rows = Effect.forEach([one, two], (url) =>
    Effect.map(query<{ id: number }>(url, "SELECT id FROM moved ORDER BY id"), (all) => all.map(({ id }) => id))
  )
  return { killAtSteps, prepared, recover, rows }
})

it.scopedLive(
  `${kills} processes that are killed in two phases leave both databases with the same rows`,
  () =>
    Effect.gen(function* () {
      const { killAtSteps, prepared, recover, rows } = yield* given
      const left = yield* killAtSteps(100)
      const recovery = yield* recover
      yield* recovery.line
      yield* eventually(prepared, (gids) => gids.length === 0)
      yield* recovery.tell
      yield* recovery.ended
      const [first, second] = yield* rows
      assert.deepStrictEqual(first, second)
      // some of the kills have left something, so that there was something to recover
      assert.isAbove(left.length, 0)
      console.log(
        `${kills} processes killed, ${left.length} prepared transactions seen after that; ${first?.length} units stored on both databases, none on one`
      )
    }),
  3_600_000
)

it.scopedLive(
  `the transactions that ${kills} killed processes leave prepared are ended and reported by another process`,
  () =>
    Effect.gen(function* () {
      const { killAtSteps, prepared, recover, rows } = yield* given
      const recovery = yield* recover
      yield* recovery.line
      // the processes themselves end nothing that is younger than 20 seconds
      const left = new Set(yield* killAtSteps(10_000))
      yield* eventually(prepared, (gids) => gids.length === 0)
      yield* recovery.tell
      const { lines } = yield* recovery.ended
      const reported = new Set(lines.map((line) => /^Prepared(?:Left|Recovered) (\S+)$/.exec(line)?.[1]))
      assert.deepStrictEqual(
        [...left].filter((gid) => !reported.has(gid)),
        []
      )
      assert.isAbove(left.size, 0)
      const [first, second] = yield* rows
      assert.deepStrictEqual(first, second)
      console.log(`${kills} processes killed, ${left.size} transactions left prepared, each ended with a report`)
    }),
  3_600_000
)
