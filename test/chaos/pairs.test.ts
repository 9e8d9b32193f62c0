/**
 * Clients that write a row by one process and read it by another, with the cookie of the first
 * answer: each read sees the row, whichever of three replicas serves it, also while one of them
 * replays 45 seconds late.
 *
 * `EFFECT_DB_CHAOS=full` has 10,000 pairs of requests, and not 1,000.
 */
import { Agent, request } from "node:http"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { EmbeddedPostgres } from "effect-db"
import { startChild } from "../support/child.js"
import { directory } from "../support/directory.js"
import { query } from "../support/server.js"

const pairs = process.env.EFFECT_DB_CHAOS === "full" ? 10_000 : 1000
const clients = 4

interface Answer {
  readonly status: number
  readonly cookie: string
  readonly body: string
  readonly millis: number
}

const agent = Effect.acquireRelease(
  Effect.sync(() => new Agent({ keepAlive: true })),
  (agent) => Effect.sync(() => agent.destroy())
)

const send = (agent: Agent, port: number, method: string, path: string, cookie = "") =>
  Effect.async<Answer, Error>((resume) => {
    const since = performance.now()
    const sent = request({ agent, host: "127.0.0.1", port, method, path, headers: { cookie } }, (response) => {
      let body = ""
      response.setEncoding("utf8").on("data", (text: string) => {
        body += text
      })
      response.on("end", () => {
        const [set = ""] = response.headers["set-cookie"] ?? []
        const millis = performance.now() - since
        resume(Effect.succeed({ status: response.statusCode ?? 0, cookie: set.split(";")[0] ?? "", body, millis }))
      })
    })
    sent.on("error", (error) => resume(Effect.fail(error)))
    sent.end()
  })

const p95 = (all: ReadonlyArray<number>): number => all.toSorted((a, b) => a - b)[Math.floor(all.length * 0.95)] ?? 0

it.scopedLive(
  `${pairs} reads after a write by another process see it, also while a replica is 45 seconds behind`,
  () =>
    Effect.gen(function* () {
      const { awaitReplicas, primary, replicas } = yield* EmbeddedPostgres.make({ directory, replicas: 3 })
      yield* query(primary.url(), "CREATE TABLE item (id int PRIMARY KEY)")
      yield* awaitReplicas
      const readers = replicas.map((replica) => Redacted.value(replica.url()))
      const start = Effect.flatMap(startChild("itemServer", readers, primary.url()), ({ ended, line }) =>
        Effect.flatMap(line, (port) =>
          port === undefined
            ? Effect.flatMap(ended, ({ stderr }) => Effect.dieMessage(stderr))
            : Effect.succeed(Number(port))
        )
      )
      const [writer, reader] = yield* Effect.all([start, start], { concurrency: 2 })
      const http = yield* agent
      let last = 0
      const run = (count: number) =>
        Effect.gen(function* () {
          const [own, any]: [Array<number>, Array<number>] = [[], []]
          let byReplicas = 0
          const pair = Effect.gen(function* () {
            const id = ++last
            const written = yield* send(http, writer, "POST", `/item/${id}`)
            assert.strictEqual(written.status, 201)
            const read = yield* send(http, reader, "GET", `/item/${id}`, written.cookie)
            const { port, there } = JSON.parse(read.body)
            assert.isTrue(there, `row ${id} is missing in the answer of ${port}`)
            if (port !== primary.port) byReplicas++
            own.push(read.millis)
            any.push((yield* send(http, reader, "GET", `/any/${id}`)).millis)
          })
          yield* Effect.forEach(
            Array.from({ length: clients }),
            () => Effect.replicateEffect(pair, count / clients, { discard: true }),
            { concurrency: "unbounded", discard: true }
          )
          return { share: byReplicas / count, added: p95(own) - p95(any) }
        })
      const current = yield* run(pairs / 2)
      const [late] = replicas
      yield* late?.delayReplay("45 seconds") ?? Effect.void
      const delayed = yield* run(pairs / 2)
      const shown = ({ added, share }: typeof current) =>
        `${Math.round(1000 * share) / 10} % by replicas, ${added.toFixed(1)} ms added at the 95th percentile`
      console.log(`${pairs} pairs, none stale: ${shown(current)}; with one replica 45 s behind, ${shown(delayed)}`)
      for (const { share } of [current, delayed]) assert.isAtLeast(share, 0.9)
    }),
  240_000
)
