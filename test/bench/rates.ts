/**
 * All clients side by side on one server, in turns: a table of medians and their ratios; then once
 * more with a millisecond of delay each way, where round trips dominate.
 */
import pg from "pg"
import { delayed } from "./delay.js"
import { open, openBuilds, openOutcomes, rows, type Subject } from "./subjects.js"

interface Options {
  readonly rounds: number
  /** The duration of each turn, in ms. */
  readonly ms: number
  readonly only: string | undefined
  /** The folder of another build, to compare this one with instead of the other clients. */
  readonly against: string | undefined
  /** True to compare the settings of `outcome`, instead of the other clients. */
  readonly outcomes: boolean
}

interface Case {
  readonly what: "select" | "transaction"
  readonly concurrency: number
}

export const median = (numbers: ReadonlyArray<number>): number => {
  const sorted = [...numbers].sort((a, b) => a - b)
  return sorted[Math.floor(sorted.length / 2)] ?? 0
}

export const fill = async (url: string) => {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  await client.query("CREATE TABLE item (id int PRIMARY KEY, title text NOT NULL, amount int NOT NULL)")
  await client.query("INSERT INTO item SELECT n, 'item ' || n, 0 FROM generate_series(1, $1::int) AS n", [rows])
  await client.query("VACUUM ANALYZE item")
  await client.end()
}

const measure = async (subjects: ReadonlyArray<Subject>, cases: ReadonlyArray<Case>, { ms, rounds }: Options) => {
  const seen = new Map<string, Array<number>>()
  for (let round = -1; round < rounds; round++) {
    for (const { concurrency, what } of cases) {
      // the order changes from round to round, so that no subject always follows the same one
      for (const subject of round % 2 === 0 ? subjects : subjects.toReversed()) {
        const start = performance.now()
        const count = await subject[what](concurrency, start + ms)
        const rate = count / ((performance.now() - start) / 1000)
        const key = `${subject.name}|${what}|${concurrency}`
        // the first round is for warming up
        if (round >= 0) seen.set(key, [...(seen.get(key) ?? []), rate])
      }
    }
    if (process.stderr.isTTY) process.stderr.write(`round ${round + 1} of ${rounds}\r`)
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
  console.log("")
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

const run = async (url: string, cases: ReadonlyArray<Case>, options: Options) => {
  const opened = options.outcomes ? openOutcomes(url) : open(url)
  const all = await (options.against === undefined ? opened : openBuilds(url, options.against))
  const subjects = all.filter((subject) => options.only === undefined || subject.name === options.only)
  print(subjects, await measure(subjects, cases, options))
  await Promise.all(all.map((subject) => subject.close()))
}

export const rates = async (url: string, options: Options): Promise<void> => {
  await fill(url)
  console.log(`per second, medians of ${options.rounds} rounds of ${options.ms} ms, 10 connections each`)
  const cases = (["select", "transaction"] as const).flatMap((what) =>
    [1, 10, 64].map((concurrency) => ({ what, concurrency }))
  )
  await run(url, cases, options)
  console.log("\nthe same with a network that takes 1 ms each way")
  const [slow, close] = await delayed(url, 1)
  await run(
    slow,
    (["select", "transaction"] as const).map((what) => ({ what, concurrency: 1 })),
    options
  )
  await close()
}
