/**
 * Databases of tests: the start of a server for a whole run, and the build of `TestDatabase.layerTemplate`,
 * alone and 8 at a time, with and without copies that are prepared ahead.
 *
 * Most of a build without prepared copies is the first connect, for which the server starts a process.
 * The time of a copy alone is that of the statement, by each way that the server has.
 */
import * as Effect from "effect/Effect"
import { Database, TestDatabase } from "effect-db"
import { median } from "./rates.js"

interface Options {
  readonly rounds: number
}

class Db extends Database.Service<Db>()("bench") {}

/** Twenty tables, each with two indexes. */
const migrate = Effect.gen(function* () {
  const sql = yield* Db.writer
  for (let n = 0; n < 20; n++) {
    yield* sql.unsafe(`CREATE TABLE t${n} (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, name text UNIQUE)`)
  }
})

/** The figures that others publish for a copy of a template, on hardware of their own. */
const published = [
  ["pgtestdb", "about 10 ms for a copy, about 500 ms for a template of a thousand migrations, on a server in memory"],
  ["IntegreSQL", "no figure in its README; a pool of copies is kept ahead by a service"],
  ["Ecto's SQL sandbox", "no copies: a transaction that is rolled back, as TestDatabase.layer"]
]

const ms = (times: ReadonlyArray<number>): string => `${median(times).toFixed(1)} ms`

const timed = <A, E, R>(times: Array<number>, self: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const start = performance.now()
    return Effect.tap(self, () => Effect.sync(() => times.push(performance.now() - start)))
  })

const starts = (rounds: number) =>
  Effect.gen(function* () {
    for (const replicas of [0, 1]) {
      const times: Array<number> = []
      for (let round = 0; round < Math.min(3, rounds); round++) {
        const setUp = Effect.promise(TestDatabase.serverSetup({ replicas }))
        yield* Effect.acquireUseRelease(timed(times, setUp), () => Effect.void, Effect.promise)
      }
      console.log(`start of a server with ${replicas} replicas  ${ms(times)}`)
    }
  })

const copies = (rounds: number) =>
  Effect.gen(function* () {
    const sql = yield* Db.writer
    yield* sql`CREATE DATABASE bench_template`
    yield* sql`SELECT set_config('file_copy_method', 'copy', false) FROM pg_settings WHERE name = 'file_copy_method'`
    for (const [name, strategy] of [
      ["through the log (wal_log)", "wal_log"],
      ["of the files (file_copy)", "file_copy"],
      ["of the files with shared blocks (clone)", "file_copy"]
    ] as const) {
      if (name.includes("clone")) yield* sql`SET file_copy_method = clone`
      const times: Array<number> = []
      for (let round = 0; round < rounds; round++) {
        yield* timed(times, sql.unsafe(`CREATE DATABASE bench_copy TEMPLATE bench_template STRATEGY ${strategy}`))
        yield* sql`DROP DATABASE bench_copy`
      }
      console.log(`copy ${name}  ${ms(times)}`)
    }
  })

const builds = (rounds: number) =>
  Effect.gen(function* () {
    for (const warm of [0, 2]) {
      const DbTest = TestDatabase.layerTemplate(Db, { migrate, hash: "1", warm })
      const built: Array<number> = []
      const released: Array<number> = []
      for (let round = 0; round <= rounds; round++) {
        const start = performance.now()
        let end = start
        yield* Effect.provide(
          Effect.gen(function* () {
            // the first round migrates the template
            if (round > 0) built.push(performance.now() - start)
            // a test that takes long enough for the next copy
            if (warm > 0) yield* Effect.sleep("300 millis")
            end = performance.now()
          }),
          DbTest
        )
        released.push(performance.now() - end)
      }
      console.log(`build with ${warm} prepared copies  ${ms(built)}, release ${ms(released)}`)
    }
    const DbTest = TestDatabase.layerTemplate(Db, { migrate, hash: "1" })
    const start = performance.now()
    yield* Effect.all(
      Array.from({ length: 8 * rounds }, () => Effect.provide(Effect.void, DbTest)),
      { concurrency: 8, discard: true }
    )
    console.log(
      `8 builds at a time  ${((performance.now() - start) / (8 * rounds)).toFixed(1)} ms each, release included`
    )
  })

/** Measures on servers of its own, in memory where there is room. */
export const templates = async (_: string, { rounds }: Options): Promise<void> => {
  await Effect.runPromise(starts(rounds))
  const end = await TestDatabase.serverSetup({})()
  const single = TestDatabase.layerServer(Db, { strategy: "single", maxLifetime: Number.POSITIVE_INFINITY })
  await Effect.runPromise(Effect.provide(copies(rounds), single))
  await Effect.runPromise(Effect.provide(builds(rounds), TestDatabase.layerServer(Db)))
  await end()
  for (const [name, text] of published) console.log(`${name}: ${text}`)
}
