/**
 * A program that uses databases of templates until it is killed. It prints the name of its database
 * when that is open, or, with `migrating`, the name of the database that it migrates.
 */
import { NodeRuntime } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { Database, TestDatabase } from "effect-db"

class Db extends Database.Service<Db>()("app") {}

const [mode, hash = "1"] = process.argv.slice(2)

const report = Effect.flatMap(Db.writer, (sql) =>
  Effect.map(sql<{ name: string }>`SELECT current_database() AS name`, ([row]) => console.log(row?.name))
)

const migrate = Effect.gen(function* () {
  const sql = yield* Db.writer
  yield* sql`CREATE TABLE item (name text UNIQUE)`
  if (mode !== "migrating") return
  yield* report
  yield* Effect.never
})

const program = Effect.gen(function* () {
  yield* report
  const sql = yield* Db.writer
  if (mode === "busy") yield* sql`SELECT pg_sleep(600)`
  yield* Effect.never
})

NodeRuntime.runMain(
  Effect.provide(
    program,
    TestDatabase.layerTemplate(Db, { migrate, hash, warm: 2 }).pipe(
      Layer.provide(Db.layer({ writer: Redacted.make(process.env.DATABASE_URL ?? "") }))
    )
  )
)
