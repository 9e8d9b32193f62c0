/** A database with the same tables in several schemas, and statements that show which is used. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { type Database, DatabaseError } from "effect-db"
import { pooled } from "./bouncer.js"
import { Db, Place } from "./databases.js"
import { eventually } from "./eventually.js"
import { failure } from "./failures.js"
import { type Message, makeProxy } from "./proxy.js"
import { freshDatabase, query } from "./server.js"

const schemas = ["public", "a", "b", "c"]

/**
 * Statements that create in each schema a table `mark` with its name and a table `item`, and a
 * function that reads the `mark` of the current schema.
 */
const setUp = [
  ...schemas.flatMap((name) => [
    `CREATE SCHEMA IF NOT EXISTS ${name}`,
    `CREATE TABLE ${name}.mark AS SELECT '${name}' AS name`,
    `CREATE TABLE ${name}.item (name text UNIQUE)`
  ]),
  `CREATE FUNCTION public.seen(n int) RETURNS text LANGUAGE plpgsql AS
     $$ BEGIN RETURN (SELECT name FROM mark); END $$`
].join(";")

export const place = Effect.tap(freshDatabase, ({ reader, writer }) =>
  Effect.zipRight(
    query(writer, setUp),
    eventually(query(reader, "SELECT 1 FROM pg_proc WHERE proname = 'seen'"), (rows) => rows.length === 1)
  )
)

/** Returns the URLs of a database: through PgBouncer, if the mode is for it and it is available. */
const address = (made: Effect.Effect.Success<typeof place>, { mode }: Partial<Database.Options>) =>
  mode === "transactionPooler" ? (pooled(made.name) ?? made) : made

/** Opens a database with the schemas, with one connection in each pool. */
export const fresh = (options: Partial<Database.Options> = {}) =>
  Layer.unwrapScoped(
    Effect.map(place, (made) => {
      const { reader, writer } = address(made, options)
      return Layer.merge(
        Db.layer({ writer, readers: [reader], maxConnections: 1, ...options }),
        Layer.succeed(Place, made)
      )
    })
  ).pipe(Layer.orDie)

const on = (kind: "writer" | "reader") =>
  Effect.flatMap(Db[kind], (sql) =>
    Effect.map(sql<{ name: string }>`SELECT name FROM mark`, ([row]) => row?.name ?? "none")
  )

/** The schema that a statement of the writer uses. */
export const here = on("writer")

/** The schema that a statement of the reader uses. */
export const there = on("reader")

export const a = Db.withSchema("a")

export const b = Db.withSchema("b")

/** The rows of each schema, as another session sees them. */
export const stored = Effect.flatMap(Place, ({ writer }) =>
  Effect.map(
    query<{ row: string }>(
      writer,
      `${schemas.map((name) => `SELECT '${name}: ' || name AS row FROM ${name}.item`).join(" UNION ALL ")} ORDER BY 1`
    ),
    (rows) => rows.map(({ row }) => row)
  )
)

export const tagOf = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.map(failure(self), (error) => (DatabaseError.isDatabaseError(error) ? error._tag : error))

/** Opens a database behind a proxy, and records the messages of its statements. */
export const watched = (options: Partial<Database.Options> = {}) =>
  Effect.gen(function* () {
    const made = yield* place
    const proxy = yield* makeProxy(address(made, options).writer)
    const sent: Array<string> = []
    const note = ({ bytes, from, type }: Message) => {
      if (from === "client" && (type === "P" || type === "Q" || type === "B" || type === "E")) {
        sent.push(bytes.toString("latin1"))
      }
      return false
    }
    yield* proxy.when(note, "pass")
    const context = yield* Layer.build(
      Layer.merge(Db.layer({ writer: proxy.url, maxConnections: 1, ...options }), Layer.succeed(Place, made))
    )
    return { proxy, sent, context }
  })
