/**
 * `npm run bench`: all clients side by side on one embedded server, interleaved, medians, as a table with ratios. Nothing is asserted.
 *
 * Options: `--rounds N` (default 9), `--ms N` for each turn (default 400), `--only NAME` to profile one client.
 */
import { parseArgs } from "node:util"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { EmbeddedPostgres } from "effect-db"
import pg from "pg"
import { open, rows, type Subject } from "./subjects.js"

const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "9" },
    ms: { type: "string", default: "400" },
    only: { type: "string" }
  }
})

const median = (numbers: ReadonlyArray<number>): number => {
  const sorted = [...numbers].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] ?? 0
}

const fill = async (url: string) => {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  await client.query("CREATE TABLE item (id int PRIMARY KEY, title text NOT NULL, amount int NOT NULL)")
  await client.query("INSERT INTO item SELECT n, 'item ' || n, 0 FROM generate_series(1, $1::int) AS n", [rows])
  await client.query("VACUUM ANALYZE item")
  await client.end()
}

const measure = async (subjects: ReadonlyArray<Subject>) => {
  const duration = Number(values.ms)
  const cases = (["select", "transaction"] as const).flatMap((what) =>
    [1, 10, 64].map((concurrency) => ({ what, concurrency }))
  )
  const seen = new Map<string, Array<number>>()
  for (let round = -1; round < Number(values.rounds); round++) {
    for (const { concurrency, what } of cases) {
      for (const subject of subjects) {
        const start = performance.now()
        const count = await subject[what](concurrency, start + duration)
        const rate = count / ((performance.now() - start) / 1000)
        const key = `${subject.name}|${what}|${concurrency}`
        // the first round is for warming up
        if (round >= 0) seen.set(key, [...(seen.get(key) ?? []), rate])
      }
    }
    process.stderr.write(`round ${round + 1} of ${values.rounds}\r`)
  }
  const rate = (name: string, what: string, concurrency: number) =>
    median(seen.get(`${name}|${what}|${concurrency}`) ?? [])
  return { cases, rate }
}

const print = (subjects: ReadonlyArray<Subject>, { cases, rate }: Awaited<ReturnType<typeof measure>>) => {
  const cell = (text: string | number) => String(text).padStart(12)
  const line = (first: string, rest: ReadonlyArray<string | number>) =>
    console.log(`| ${first.padEnd(26)} |${rest.map((_) => `${cell(_)} |`).join("")}`)
  const heads = cases.map(({ concurrency, what }) => `${what === "select" ? "select" : "tx"}, ${concurrency}`)
  console.log(`\nper second, medians of ${values.rounds} rounds of ${values.ms} ms, 10 connections each\n`)
  line("", heads)
  line(
    "-".repeat(26),
    heads.map(() => "-".repeat(12))
  )
  for (const { name } of subjects) {
    line(
      name,
      cases.map((_) => Math.round(rate(name, _.what, _.concurrency)))
    )
  }
  for (const { name } of subjects.slice(1)) {
    line(
      `effect-db / ${name}`,
      cases.map((_) => (rate("effect-db", _.what, _.concurrency) / rate(name, _.what, _.concurrency)).toFixed(2))
    )
  }
}

const program = Effect.gen(function* () {
  const server = yield* EmbeddedPostgres.EmbeddedPostgres
  const url = Redacted.value(server.settings("bench").writer)
  yield* Effect.promise(() => fill(url))
  const all = yield* Effect.promise(() => open(url))
  const subjects = all.filter((subject) => values.only === undefined || subject.name === values.only)
  print(subjects, yield* Effect.promise(() => measure(subjects)))
  yield* Effect.promise(() => Promise.all(all.map((subject) => subject.close())))
}).pipe(Effect.provide(EmbeddedPostgres.EmbeddedPostgres.layer({ databases: ["bench"] })))

await Effect.runPromise(program)
