/**
 * Many requests at once, whose clients leave at any moment, whose handlers fail in every way, and
 * whose connections are killed: the stored rows match the answers that the clients have received.
 *
 * `EFFECT_DB_CHAOS=full`: 10,000 requests instead of 2,000. `EFFECT_DB_CHAOS_SEED=...` selects the
 * events; every failure names it.
 */
import * as http from "node:http"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { startChild } from "../support/child.js"
import { freshTable } from "../support/databases.js"
import { randoms } from "../support/random.js"
import { query, terminateBackends } from "../support/server.js"

const isFull = process.env.EFFECT_DB_CHAOS === "full"
const seed = Number(process.env.EFFECT_DB_CHAOS_SEED ?? (isFull ? Date.now() % 1_000_000 : 20_261_125))
const total = isFull ? 10_000 : 2000
const sockets = 64
/** The number of answers after which all the server's connections to the database are killed. */
const killEvery = 500

const kinds = [
  "created",
  "created",
  "created",
  "redirected",
  "nothing",
  "read",
  "refused",
  "failed",
  "died",
  "late",
  "nested",
  "slow"
] as const

/** The kinds that store a row when they succeed. */
const storing = new Set<string>(["created", "redirected", "nested", "slow"])

type Answer = { readonly status: number } | "left"

/** Sends a request, and aborts it if it is not answered within `patience` ms. */
const ask = (agent: http.Agent, port: number, path: string, patience: number | undefined): Promise<Answer> =>
  new Promise((resolve, reject) => {
    const request = http.request({ agent, host: "127.0.0.1", port, path, method: "POST" })
    const leaving =
      patience === undefined
        ? undefined
        : setTimeout(() => {
            request.destroy()
            resolve("left")
          }, patience)
    request.once("response", (response) => {
      clearTimeout(leaving)
      response.resume()
      response.once("end", () => resolve({ status: response.statusCode ?? 0 }))
      response.once("error", reject)
    })
    request.once("error", (error) => (request.destroyed ? resolve("left") : reject(error)))
    request.end()
  })

describe(`a storm of requests (seed ${seed})`, () => {
  it.scopedLive(
    `${total} requests on ${sockets} connections store the rows that their answers report, and SIGTERM ends the server in time`,
    () =>
      Effect.gen(function* () {
        const { name, writer } = yield* freshTable
        yield* query(writer, "CREATE TABLE late (n int REFERENCES item DEFERRABLE INITIALLY DEFERRED)")
        const server = yield* startChild("requestServer", [], writer)
        const port = Number(yield* server.line)
        const agent = new http.Agent({ keepAlive: true, maxSockets: sockets })
        yield* Effect.addFinalizer(() => Effect.sync(() => agent.destroy()))

        const random = randoms(seed)
        const plan = Array.from({ length: total }, (_, i) => ({
          key: `row-${i}`,
          kind: kinds[Math.floor(random() * kinds.length)] ?? "created",
          patience: random() < 0.1 ? random() * 20 : undefined
        }))
        const answers = new Map<string, Answer>()
        yield* Effect.forEach(
          plan,
          ({ key, kind, patience }) =>
            Effect.gen(function* () {
              answers.set(key, yield* Effect.promise(() => ask(agent, port, `/${kind}/${key}`, patience)))
              if (answers.size % killEvery === 0) yield* terminateBackends(name)
            }),
          { concurrency: sockets, discard: true }
        )

        // the server ends an aborted request when it receives the close of its socket
        const open = Effect.promise(() =>
          fetch(`http://127.0.0.1:${port}/open`).then((answer) => answer.json() as Promise<number>)
        )
        yield* Effect.repeat(Effect.zipLeft(open, Effect.yieldNow()), { until: (n) => n === 0 })

        const rows = yield* query<{ name: string; n: number }>(
          writer,
          "SELECT name, count(*)::int AS n FROM item GROUP BY name"
        )
        const stored = new Set(rows.map((row) => row.name))
        const wrong = plan.flatMap(({ key, kind }) => {
          const answer = answers.get(key)
          const isStored = stored.has(key)
          if (stored.has(`${key} inner`)) return [`${key} (${kind}): its nested transaction is stored`]
          if (answer === undefined) return [`${key} (${kind}): no answer`]
          if (isStored && !storing.has(kind)) return [`${key} (${kind}): stored`]
          // a client that has left, or has received an unknown outcome, expects neither
          if (answer === "left" || answer.status === 504) return []
          const succeeded = answer.status < 400 && storing.has(kind)
          return isStored === succeeded ? [] : [`${key} (${kind}): ${answer.status}, ${isStored ? "" : "not "}stored`]
        })
        assert.deepStrictEqual(wrong, [], `seed ${seed}`)
        const counts = new Map<string, number>()
        for (const answer of answers.values()) {
          const what = answer === "left" ? answer : String(answer.status)
          counts.set(what, (counts.get(what) ?? 0) + 1)
        }
        // each kind of answer has occurred
        for (const what of ["left", "201", "204", "303", "422", "500", "503"]) {
          assert.isAbove(counts.get(what) ?? 0, 0, `${what}: ${JSON.stringify([...counts])}, seed ${seed}`)
        }

        // a server that receives SIGTERM during work ends within its shutdownTimeout of a second, and
        // stores nothing of the work
        const cut = Array.from({ length: 8 }, (_, i) =>
          ask(agent, port, `/asleep/cut-${i}`, 30_000).catch(() => "left")
        )
        yield* Effect.repeat(Effect.zipLeft(open, Effect.yieldNow()), { until: (n) => n >= 16 })
        const start = performance.now()
        yield* server.signal("SIGTERM")
        const { code, stderr } = yield* server.ended
        const took = performance.now() - start
        yield* Effect.promise(() => Promise.all(cut))
        assert.strictEqual(stderr, "")
        assert.include([0, 130, 143], code)
        assert.isBelow(took, 2000)
        const cutRows = yield* query<{ n: number }>(
          writer,
          "SELECT count(*)::int AS n FROM item WHERE name LIKE 'cut-%'"
        )
        assert.deepStrictEqual(cutRows, [{ n: 0 }])
      }),
    isFull ? 180_000 : 60_000
  )
})
