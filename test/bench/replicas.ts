/**
 * Reads by replicas, in turns: by the number of replicas, and by what a read requires. The ratios show
 * the cost of a token, of a bounded lag and of the monitor.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { Consistency, Database } from "effect-db"
import { fill, median } from "./rates.js"
import { anyId, effectLoop, type Loop, opened, selectText, updateText } from "./subjects.js"

interface Options {
  readonly rounds: number
  /** The duration of each turn, in ms. */
  readonly ms: number
}

class Db extends Database.Service<Db>()("bench") {}

interface Way {
  readonly name: string
  readonly loop: Loop
}

const read = Effect.flatMap(Db.reader, (sql) => sql.unsafe(selectText, [anyId()]))
const write = Effect.flatMap(Db.writer, (sql) => sql.unsafe(updateText, [anyId()]))

const concurrencies = [1, 10, 64]

/** Opens a database. */
const open = async (url: string, readers: ReadonlyArray<string>, options: Partial<Database.Options> = {}) => {
  const settings = { writer: Redacted.make(url), readers: readers.map((reader) => Redacted.make(reader)), ...options }
  const { close, context } = await opened(Db.layer(settings))
  return { close, loopOf: (effect: Effect.Effect<unknown, unknown, Db>) => effectLoop(Effect.provide(effect, context)) }
}

const measure = async (ways: ReadonlyArray<Way>, { ms, rounds }: Options) => {
  const seen = new Map<string, Array<number>>()
  for (let round = -1; round < rounds; round++) {
    for (const concurrency of concurrencies) {
      for (const { loop, name } of round % 2 === 0 ? ways : ways.toReversed()) {
        const start = performance.now()
        const count = await loop(concurrency, start + ms)
        const key = `${name}|${concurrency}`
        const rate = count / ((performance.now() - start) / 1000)
        // the first round is for warming up
        if (round >= 0) seen.set(key, [...(seen.get(key) ?? []), rate])
      }
    }
  }
  return (name: string, concurrency: number) => median(seen.get(`${name}|${concurrency}`) ?? [])
}

export const replicas = async (url: string, options: Options, readers: ReadonlyArray<string>): Promise<void> => {
  await fill(url)
  const [one = url] = readers
  const databases = {
    none: await open(url, []),
    one: await open(url, [one]),
    two: await open(url, readers.slice(0, 2)),
    three: await open(url, readers),
    unmonitored: await open(url, [one], { monitor: false })
  }
  const session = Consistency.makeSession({ maxWait: "1 second" })
  const own = <A, E>(effect: Effect.Effect<A, E, Db>) => Consistency.withSession(effect, session)
  const fresh = Effect.suspend(() => {
    const mine = Consistency.makeSession({ maxWait: "1 second" })
    return Effect.zipRight(Consistency.withSession(write, mine), Consistency.withSession(read, mine))
  })
  const bounded = (lag: Consistency.Consistency) => Db.withConsistency(read, lag)
  const ways: ReadonlyArray<Way> = [
    { name: "reads by the primary", loop: databases.none.loopOf(read) },
    { name: "one replica", loop: databases.one.loopOf(read) },
    { name: "two replicas", loop: databases.two.loopOf(read) },
    { name: "three replicas", loop: databases.three.loopOf(read) },
    { name: "one, without a monitor", loop: databases.unmonitored.loopOf(read) },
    { name: "one, with an old token", loop: databases.one.loopOf(own(read)) },
    { name: "one, at most 10 s old", loop: databases.one.loopOf(bounded(Consistency.Bounded({ lag: "10 seconds" }))) },
    {
      name: "one, as of now",
      loop: databases.one.loopOf(bounded(Consistency.Bounded({ lag: 0, maxWait: "1 second" })))
    },
    { name: "write, then any read", loop: databases.one.loopOf(Effect.zipRight(write, read)) },
    { name: "write, then read with token", loop: databases.one.loopOf(fresh) }
  ]
  // the token of the session is of the past when the reads begin
  await databases.one.loopOf(own(Db.withTransaction(write)))(1, performance.now() + 50)
  const rate = await measure(ways, options)
  const line = (first: string, rest: ReadonlyArray<string | number>) =>
    console.log(`| ${first.padEnd(28)} |${rest.map((_) => `${String(_).padStart(9)} |`).join("")}`)
  console.log(`per second, medians of ${options.rounds} rounds of ${options.ms} ms, 10 connections to each server\n`)
  line("callers", concurrencies)
  line(
    "-".repeat(28),
    concurrencies.map(() => "-".repeat(9))
  )
  for (const { name } of ways)
    line(
      name,
      concurrencies.map((concurrency) => Math.round(rate(name, concurrency)))
    )
  await Promise.all(Object.values(databases).map(({ close }) => close()))
}
