/**
 * The same two operations on each client: read one row by its key, and a transaction that reads and updates one row.
 */
import * as path from "node:path"
import { pathToFileURL } from "node:url"
import { PgClient } from "@effect/sql-pg"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { Database } from "effect-db"
import pg from "pg"
import postgres from "postgres"

export const rows = 10_000

export const anyId = () => 1 + Math.floor(Math.random() * rows)

/**
 * Runs an operation repeatedly, `concurrency` at a time, until the time is over; returns the count.
 */
export type Loop = (concurrency: number, until: number) => Promise<number>

export interface Subject {
  readonly name: string
  readonly select: Loop
  readonly transaction: Loop
  readonly close: () => Promise<void>
}

const promiseLoop =
  (once: () => Promise<unknown>): Loop =>
  async (concurrency, until) => {
    let count = 0
    const worker = async () => {
      while (performance.now() < until) {
        await once()
        count++
      }
    }
    await Promise.all(Array.from({ length: concurrency }, worker))
    return count
  }

export const effectLoop =
  (once: Effect.Effect<unknown, unknown>): Loop =>
  (concurrency, until) => {
    let count = 0
    const worker = Effect.whileLoop({
      while: () => performance.now() < until,
      body: () => once,
      step: () => {
        count++
      }
    })
    return Effect.runPromise(
      Effect.as(
        Effect.all(
          Array.from({ length: concurrency }, () => worker),
          { concurrency: "unbounded" }
        ),
        undefined
      )
    ).then(() => count)
  }

export const selectText = "SELECT id, title, amount FROM item WHERE id = $1"
export const updateText = "UPDATE item SET amount = amount + 1 WHERE id = $1"

const plainPg = (url: string, named: boolean): Subject => {
  const pool = new pg.Pool({ connectionString: url, max: 10 })
  const select = (id: number) =>
    named ? { name: "select", text: selectText, values: [id] } : { text: selectText, values: [id] }
  const update = (id: number) =>
    named ? { name: "update", text: updateText, values: [id] } : { text: updateText, values: [id] }
  return {
    name: named ? "pg (named)" : "pg (text)",
    select: promiseLoop(() => pool.query(select(anyId()))),
    transaction: promiseLoop(async () => {
      const client = await pool.connect()
      const id = anyId()
      try {
        await client.query("BEGIN")
        await client.query(select(id))
        await client.query(update(id))
        await client.query("COMMIT")
      } finally {
        client.release()
      }
    }),
    close: () => pool.end()
  }
}

const postgresJs = (url: string): Subject => {
  const sql = postgres(url, { max: 10 })
  return {
    name: "postgres.js",
    select: promiseLoop(() => sql`SELECT id, title, amount FROM item WHERE id = ${anyId()}`),
    transaction: promiseLoop(() =>
      sql.begin(async (tx) => {
        const id = anyId()
        await tx`SELECT id, title, amount FROM item WHERE id = ${id}`
        await tx`UPDATE item SET amount = amount + 1 WHERE id = ${id}`
      })
    ),
    close: () => sql.end()
  }
}

export const operations = (sql: PgClient.PgClient) => ({
  select: Effect.suspend(() => sql`SELECT id, title, amount FROM item WHERE id = ${anyId()}`),
  body: Effect.suspend(() => {
    const id = anyId()
    return Effect.zipRight(
      sql`SELECT id, title, amount FROM item WHERE id = ${id}`,
      sql`UPDATE item SET amount = amount + 1 WHERE id = ${id}`
    )
  })
})

/** Opens a layer until `close` is called. */
export const opened = async <A>(layer: Layer.Layer<A, unknown>) => {
  const scope = Effect.runSync(Scope.make())
  const context = await Effect.runPromise(Layer.buildWithScope(layer, scope))
  return { context, close: () => Effect.runPromise(Scope.close(scope, Effect.runSync(Effect.exit(Effect.void)))) }
}

const plainEffect = async (url: string): Promise<Subject> => {
  const { close, context } = await opened(PgClient.layer({ url: Redacted.make(url), maxConnections: 10 }))
  const sql = Context.get(context, PgClient.PgClient)
  const { body, select } = operations(sql)
  return {
    name: "@effect/sql-pg",
    select: effectLoop(select),
    transaction: effectLoop(sql.withTransaction(body)),
    close
  }
}

const ours = async (
  url: string,
  name = "effect-db",
  { Service } = Database,
  options: Partial<Database.Options> = {}
): Promise<Subject> => {
  class Db extends Service<Db>()(name) {}
  const { close, context } = await opened(Db.layer({ writer: Redacted.make(url), maxConnections: 10, ...options }))
  const sql = Context.get(context, Db).writer
  const { body, select } = operations(sql)
  return {
    name,
    select: effectLoop(select),
    transaction: effectLoop(sql.withTransaction(body)),
    close
  }
}

/** Opens this build of effect-db, and the one in the `dist` of a folder. */
export const openBuilds = async (url: string, folder: string): Promise<ReadonlyArray<Subject>> => {
  const file = pathToFileURL(path.resolve(folder, "dist/index.js")).href
  const other: { readonly Database: typeof Database } = await import(file)
  return [await ours(url), await ours(url, "the other build", other.Database)]
}

/** Opens this build with each treatment of a COMMIT without an answer; the first is `"status"`. */
export const openOutcomes = async (url: string): Promise<ReadonlyArray<Subject>> => [
  await ours(url),
  await ours(url, "marker", Database, { outcome: "marker" }),
  await ours(url, "unknown", Database, { outcome: "unknown" })
]

/** Opens all clients. */
export const open = async (url: string): Promise<ReadonlyArray<Subject>> => [
  await ours(url),
  plainPg(url, false),
  plainPg(url, true),
  postgresJs(url),
  await plainEffect(url)
]
