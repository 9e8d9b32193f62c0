/**
 * The cost of a test database: of a sandbox, of a copy of a template, prepared ahead or not, and of the
 * start of a server.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { Database, EmbeddedPostgres, TestDatabase } from "effect-db"
import { median } from "./rates.js"

class Db extends Database.Service<Db>()("bench") {}

interface Options {
  /** The number of tests of each kind, in tens. */
  readonly rounds: number
}

/** The tables of a small application. */
const migrate = Effect.gen(function* () {
  const sql = yield* Db.writer
  for (let i = 0; i < 20; i++)
    yield* sql.unsafe(
      `CREATE TABLE t${i} (id int PRIMARY KEY GENERATED ALWAYS AS IDENTITY, name text UNIQUE, at timestamptz DEFAULT now())`
    )
})

const work = Effect.flatMap(Db.writer, (sql) =>
  Db.withTransaction(
    Effect.zipRight(sql`INSERT INTO t1 (name) VALUES (${`n${Math.random()}`})`, sql`SELECT count(*) FROM t1`)
  )
)

const timed = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const start = performance.now()
    return Effect.map(self, () => performance.now() - start)
  })

/** Returns the median time of an effect, in ms, after two runs that are not counted. */
const medianOf = <A, E, R>(count: number, self: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.replicateEffect(timed(self), count + 2), (times) => median(times.slice(2)))

/** Returns the median time from the begin of a build until its first statement is answered. */
const untilReady = <E, R>(count: number, layer: Layer.Layer<Db, E, R>, pause: number) => {
  const build = Effect.scoped(
    Effect.flatMap(
      Effect.sync(() => performance.now()),
      (start) =>
        Effect.flatMap(Layer.build(layer), (context) =>
          Effect.flatMap(Db.writer, (sql) => sql`SELECT 1`).pipe(
            Effect.map(() => performance.now() - start),
            Effect.provide(context)
          )
        )
    )
  )
  // a warm copy is prepared during the test before
  const paused = Effect.zipLeft(build, Effect.sleep(pause))
  return Effect.map(Effect.replicateEffect(paused, count + 2), (times) => median(times.slice(2)))
}

const row = (name: string, ms: number, goal: string, others: string) =>
  console.log(`${name.padEnd(34)} ${ms.toFixed(1).padStart(8)} ms   ${goal.padEnd(14)} ${others}`)

export const testing = async (url: string, { rounds }: Options): Promise<void> => {
  const count = rounds * 10
  const sandbox = TestDatabase.layer(Db)
  const template = (warm: number) => TestDatabase.layerTemplate(Db, { migrate, hash: "bench", warm })
  const program = Effect.gen(function* () {
    yield* migrate
    const plain = yield* medianOf(count, work)
    const sandboxed = yield* medianOf(count, Effect.provide(work, sandbox))
    const shared = yield* Effect.scoped(
      Effect.flatMap(Layer.build(sandbox), (context) => medianOf(count, Effect.provide(work, context)))
    )
    const cold = yield* untilReady(rounds * 3, template(0), 0)
    const warm = yield* untilReady(rounds * 3, template(2), 200)
    const start = yield* medianOf(1, Effect.scoped(EmbeddedPostgres.make({ replicas: 0 })))
    console.log(`${"".padEnd(34)} ${"median".padStart(11)}   ${"goal".padEnd(14)} published by others`)
    row("a transaction of two statements", plain, "", "")
    row("the same in a sandbox of its own", sandboxed, "", "")
    row("  more for a sandbox for each test", sandboxed - plain, "at most 1 ms", "Ecto: no figure")
    row("  more in a sandbox for a group", shared - plain, "", "")
    row("a copy of a template, ready", cold, "at most 40 ms", "pgtestdb: about 10 ms a copy")
    row("a copy that was prepared ahead", warm, "at most 5 ms", "IntegreSQL: about 0 while copies are left")
    row("the start of a server, and its end", start, "at most 3000 ms", "")
  })
  await Effect.runPromise(Effect.provide(program, Db.layer({ writer: Redacted.make(url) })))
}
