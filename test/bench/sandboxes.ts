/**
 * The cost of a sandbox: a transaction in one of its own, in one that a group shares, and without.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { Database, TestDatabase } from "effect-db"
import { median } from "./rates.js"

class Db extends Database.Service<Db>()("bench") {}

interface Options {
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

const row = (name: string, ms: number) => console.log(`${name.padEnd(46)} ${ms.toFixed(2).padStart(6)} ms`)

export const sandboxes = async (url: string, { rounds }: Options): Promise<void> => {
  const count = rounds * 20
  const sandbox = TestDatabase.layer(Db)
  const program = Effect.gen(function* () {
    yield* migrate
    const plain = yield* medianOf(count, work)
    const own = yield* medianOf(count, Effect.provide(work, sandbox))
    const shared = yield* Effect.scoped(
      Effect.flatMap(Layer.build(sandbox), (context) => medianOf(count, Effect.provide(work, context)))
    )
    row("a transaction of two statements", plain)
    row("the same in a sandbox of its own", own)
    row("  more for a sandbox for each test", own - plain)
    row("the same in a sandbox for a group", shared)
    console.log("Ecto's SQL sandbox: no published figure")
  })
  await Effect.runPromise(Effect.provide(program, Db.layer({ writer: Redacted.make(url) })))
}
