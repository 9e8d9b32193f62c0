/**
 * The handlers of Express, Fastify and Hono, in plain code. The rows that a handler inserts begin
 * with its name.
 */
import { Consistency, type DatabaseRuntime } from "effect-db"
import type { Audit, Db } from "../../databases.js"
import { hear, meet, tell } from "./messages.js"

/** A runtime with both databases. */
export type Runtime = DatabaseRuntime.DatabaseRuntime<{ db: typeof Db; audit: typeof Audit }, Db | Audit>

/** An answer of a handler. */
interface Answer {
  readonly status: number
  readonly body?: string | AsyncIterable<string> | undefined
}

/** The handlers, by the last segment of their paths. */
export type Handlers = Readonly<Record<string, () => Promise<Answer>>>

/** The statuses with which handlers answer. */
export const statuses = [200, 201, 204, 301, 304, 399, 400, 404, 500, 503]

const tagOf = (error: unknown): string => (error instanceof Error && "_tag" in error ? String(error._tag) : "no tag")

export const makeHandlers = ({ databases: { audit, db } }: Runtime): Handlers => {
  const add = async (name: string) => void (await db.writer`INSERT INTO item ${db.writer.insert({ name })}`)
  const note = async (what: string, amount = 0) =>
    void (await audit.writer`INSERT INTO event ${audit.writer.insert({ what, amount })}`)
  const pid = async () => (await db.writer<{ pid: number }>`SELECT pg_backend_pid() AS pid`)[0]?.pid
  const port = async () => (await db.writer<{ port: number }>`SELECT inet_client_port() AS port`)[0]?.port
  const seen = async (name: string) =>
    (
      await db.reader`
        SELECT pg_is_in_recovery() AS standby, count(*)::int AS n FROM item WHERE name = ${name}`
    )[0]
  const schema = async (kind: "writer" | "reader") =>
    (await db[kind]<{ name: string }>`SELECT current_schema() AS name`)[0]?.name
  const orphan = async () => void (await db.writer`INSERT INTO late VALUES (-1)`)
  const failed = async (code: () => Promise<void>) => code().then(() => "no failure", tagOf)

  return {
    ...Object.fromEntries(
      statuses.map((status) => [
        `status-${status}`,
        async () => {
          await add(`status-${status}`)
          return { status }
        }
      ])
    ),
    insert: async () => {
      await add("insert")
      return { status: 200, body: "inserted" }
    },
    throws: async () => {
      await add("throws")
      throw new Error("a bug")
    },
    "early-commit": async () => {
      await add("early-commit: kept")
      await db.commit()
      await add("early-commit: undone")
      return { status: 500 }
    },
    "early-rollback": async () => {
      await add("early-rollback")
      await db.rollback()
      return { status: 200 }
    },
    independent: async () => {
      await add("independent: undone")
      await db.independent(() => add("independent: kept"))
      return { status: 500 }
    },
    nested: async () => {
      await add("nested: before")
      await db.withTransaction(() => add("nested: one"))
      const inner = db.withTransaction(async () => {
        await add("nested: undone")
        throw new Error("caught")
      })
      await inner.catch(() => {})
      await db.withTransaction(() => db.withTransaction(() => add("nested: two")))
      return { status: 200 }
    },
    five: async () => {
      const tasks = [1, 2, 3, 4, 5].map(async (n) => {
        await add(`five: ${n}`)
        return pid()
      })
      return { status: 200, body: JSON.stringify(await Promise.all(tasks)) }
    },
    race: async () => ({ status: 200, body: JSON.stringify(await Promise.all([pid(), pid()])) }),
    two: async () => {
      await add("two")
      await note("two", 13)
      return { status: 201, body: "both stored" }
    },
    "orphan-empty": async () => {
      await add("orphan-empty")
      await orphan()
      return { status: 204 }
    },
    "orphan-text": async () => {
      await add("orphan-text")
      await orphan()
      return { status: 200, body: "stored" }
    },
    "orphan-stream": async () => {
      await add("orphan-stream")
      await orphan()
      const body = async function* () {
        yield "stored "
        yield "and more"
      }
      return { status: 200, body: body() }
    },
    hang: async () => {
      await add("hang")
      tell("hang", await pid())
      return new Promise(() => {})
    },
    sleep: async () => {
      await add("sleep")
      tell("sleep", await pid())
      await db.writer`SELECT pg_sleep(600)`
      return { status: 200 }
    },
    leaving: async () => {
      await add("leaving")
      return { status: 200 }
    },
    stream: async () => {
      await add("stream: in time")
      const body = async function* () {
        yield "start\n"
        await hear("stream: started")
        yield `${await failed(() => add("stream: undone"))}\n`
        await db.independent(() => add("stream: own"))
        yield "own\n"
      }
      return { status: 200, body: body() }
    },
    background: async () => {
      await add("background: in time")
      const later = async () => {
        await hear("background: answered")
        const late = await failed(() => add("background: undone"))
        await db.independent(() => add("background: own"))
        tell("background: done", late)
      }
      void later()
      return { status: 202 }
    },
    hook: async () => {
      await add("hook")
      await db.beforeCommit(() => note("hook"))
      return { status: 200 }
    },
    veto: async () => {
      await add("veto")
      await note("veto")
      await db.beforeCommit(() => {
        throw new Error("no")
      })
      return { status: 200 }
    },
    readers: async () => {
      const before = await seen("readers")
      await add("readers")
      return { status: 200, body: JSON.stringify([before, await seen("readers")]) }
    },
    wrote: async () => {
      await add("wrote")
      return { status: 201 }
    },
    again: async () => {
      const strong = await db.withConsistency(() => seen("wrote"), Consistency.Strong())
      return { status: 200, body: JSON.stringify([strong, (await seen("wrote"))?.standby]) }
    },
    move: async () => {
      await add("move: before")
      tell("move: under way")
      await hear("move: moved")
      await add("move: after")
      return { status: 200, body: String(await port()) }
    },
    schemas: async () => {
      await add("schemas: by default")
      await db.writer`SET LOCAL search_path TO ${db.writer("tenant")}`
      await add("schemas: of the request")
      await db.writer`INSERT INTO ${db.writer("public.item")} ${db.writer.insert({ name: "schemas: of the statement" })}`
      return { status: 200, body: JSON.stringify([await pid(), await schema("reader")]) }
    },
    tenants: async () => {
      const before = await schema("writer")
      await add("tenants")
      await db.writer`INSERT INTO ${db.writer("public.item")} ${db.writer.insert({ name: `tenants: of ${before}` })}`
      // the three concurrent requests have inserted by now, and none has committed
      await meet("tenants", 3)
      const [row] = await db.reader<{ n: number }>`SELECT count(*)::int AS n FROM item WHERE name = 'tenants'`
      const seen = [
        before,
        await schema("reader"),
        await db.withSchema(() => schema("writer"), "other"),
        await db.withTransaction(() => schema("writer")),
        await db.independent(() => schema("writer")),
        row?.n
      ]
      return { status: 200, body: JSON.stringify(seen) }
    },
    "tenant-stream": async () => {
      await add("tenant-stream")
      const body = async function* () {
        yield `${await db.independent(() => schema("writer"))}\n`
        yield `${await db.independent(() => schema("reader"))}\n`
      }
      return { status: 200, body: body() }
    },
    "no-tenant": async () => ({ status: 200, body: await failed(() => add("no-tenant")) }),
    schema: async () => ({ status: 200, body: JSON.stringify([await pid(), await schema("writer")]) }),
    where: async () => ({ status: 200, body: String(await port()) })
  }
}
