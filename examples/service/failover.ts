import { Data, Duration, Effect, Option, Stream } from "effect"
import { Cluster } from "./cluster.js"
import { Audit, Db } from "./databases.js"
import type { Attempt, Ledger } from "./ledger.js"
import * as Tasks from "./tasks.js"

class NoCluster extends Data.TaggedError("NoCluster")<{ readonly message: string }> {}

const seconds = (millis: number) => `${(millis / 1000).toFixed(1)} s`

const timeline = Effect.map(Db.status, ({ servers }) => servers.find(({ role }) => role === "writer")?.timeline)

/** Kills the primary and promotes the replica with the most data. Returns the lines of a report about it. */
export const run = Effect.gen(function* () {
  const cluster = yield* Effect.flatMap(
    Cluster,
    Option.match({
      onNone: () => new NoCluster({ message: "the servers were not started by the service" }),
      onSome: Effect.succeed
    })
  )
  const at = new Date()
  const before = yield* cluster.killPrimary
  const [took, after] = yield* Effect.timed(cluster.promote)
  return [
    `killed     ${before.name} (${before.address}), the primary, by SIGKILL after ${Tasks.total / 2} requests, at ${at.toISOString()}`,
    `promoted   ${after.name} (${after.address}), which had the most data, in ${seconds(Duration.toMillis(took))}`
  ]
})

/** Counts the retries of the library until the scope ends. Returns an effect that makes a line of the report. */
export const countRetries = Effect.gen(function* () {
  const counts = { transaction: 0, statement: 0, acquire: 0 }
  yield* Stream.merge(Db.observations, Audit.observations).pipe(
    Stream.runForEach((event) =>
      Effect.sync(() => {
        if (event._tag === "Retried") counts[event.what]++
      })
    ),
    Effect.forkScoped
  )
  return Effect.sync(
    () =>
      `retried    by the library: transactions ${counts.transaction}, statements ${counts.statement}, checkouts ${counts.acquire}`
  )
})

const meaning: Readonly<Partial<Record<Attempt["outcome"], string>>> = {
  "found stored": "looked up on the new primary: stored, so it was not sent again",
  "found not stored": "looked up on the new primary: not stored, so it was sent again",
  "stored partly": "the change is not stored, but its event may be; it was sent again"
}

/** Returns the lines of a report about the effect on the clients. */
export const effects = (ledger: Ledger) =>
  Effect.map(timeline, (timeline) => {
    const unknown = ledger.attempts.flatMap(({ change, outcome, request }) => {
      const text = meaning[outcome]
      return text === undefined ? [] : [`           ${request} (${change?.what} ${change?.subject}): ${text}`]
    })
    return [
      `writer     found on timeline ${timeline ?? "?"}; ${seconds(ledger.longestPause)} at most without an acknowledged change`,
      "commits    each transaction leaves a marker, by which the new primary proves a COMMIT whose answer was lost",
      "standbys   each commit waits for one (synchronous replication), so the promoted one has all that was acknowledged",
      `unknown    ${unknown.length === 0 ? "no client had to find out whether a change was stored" : `${unknown.length}, resolved:`}`,
      ...unknown
    ]
  })
