import { createServer, type ServerResponse } from "node:http"
import type { AddressInfo } from "node:net"
import type { PgClient } from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { DatabaseError, DatabaseRuntime } from "effect-db"
import { Audit, Db, freshTable, insert } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { tagOf } from "../support/failures.js"
import { fresh, rejectionOf } from "../support/freshRuntime.js"
import { makeProxy } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"

describe("the rejections of runPromise", () => {
  const rejection = <E>(make: (sql: PgClient) => Effect.Effect<unknown, E>) =>
    Effect.gen(function* () {
      const { db, runtime } = yield* fresh()
      yield* Effect.promise(() => runtime.open())
      return {
        rejected: yield* rejectionOf(runtime.runPromise(Effect.flatMap(Db.writer, make))),
        awaited: yield* rejectionOf(db.writer`SELECT 1 / 0`.then())
      }
    })

  for (const [end, failing] of [
    ["a statement", (sql: PgClient) => sql`SELECT 1 / 0`],
    ["a statement under Effect.orDie", (sql: PgClient) => Effect.orDie(sql`SELECT 1 / 0`)],
    ["a transaction of the client", (sql: PgClient) => sql.withTransaction(sql`SELECT 1 / 0`)]
  ] as const) {
    it.scopedLive(`runPromise rejects with the DatabaseError of ${end}, as an awaited statement does`, () =>
      Effect.gen(function* () {
        const { awaited, rejected } = yield* rejection(failing)
        assert.isTrue(DatabaseError.isDatabaseError(rejected))
        assert.strictEqual(tagOf(rejected), tagOf(awaited))
      })
    )
  }

  it.scopedLive("runPromise rejects with the program's own failure or defect unchanged", () =>
    Effect.gen(function* () {
      const bug = new Error("a bug")
      assert.strictEqual((yield* rejection(() => Effect.fail("mine"))).rejected, "mine")
      assert.strictEqual((yield* rejection(() => Effect.fail(bug))).rejected, bug)
      assert.strictEqual((yield* rejection(() => Effect.die(bug))).rejected, bug)
    })
  )
})

describe("the opening and closing of a runtime", () => {
  it.scopedLive("the opens of a runtime are counted: only the last close closes it, and it may be opened again", () =>
    Effect.gen(function* () {
      const { db, runtime } = yield* fresh()
      yield* Effect.promise(() => Promise.all([runtime.open(), runtime.open(), runtime.open()]))
      const { servers } = yield* Effect.promise(() => db.status())
      assert.strictEqual(servers[0]?.writes?.total, 1)
      yield* Effect.promise(() => runtime.close())
      yield* Effect.promise(() => runtime.close())
      assert.deepStrictEqual(yield* Effect.promise(async () => await db.writer`SELECT 1 AS one`), [{ one: 1 }])
      yield* Effect.promise(() => runtime.close())
      assert.strictEqual(tagOf(yield* rejectionOf(db.writer`SELECT 1`.then())), "DatabaseClosed")
      // closing a closed runtime does nothing
      yield* Effect.promise(() => runtime.close())
      yield* Effect.promise(() => runtime.open())
      assert.deepStrictEqual(yield* Effect.promise(async () => await db.writer`SELECT 1 AS one`), [{ one: 1 }])
    })
  )

  it.scopedLive("a runtime that many calls open at a time, and again inside, is built once and shared by all", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      let made = 0
      const counting = Layer.effectDiscard(Effect.sync(() => made++))
      const layer = Layer.merge(Db.layer({ writer, maxConnections: 2 }), counting)
      const runtime = DatabaseRuntime.make({ db: Db }, layer)
      const { db } = runtime.databases
      const session = async () => (await db.writer<{ pid: number }>`SELECT pg_backend_pid() AS pid`)[0]?.pid
      const part = async () => {
        await runtime.open()
        try {
          // the runtime inside of a unit of work is the one outside of it
          return await runtime.unitOfWork(async () => {
            await runtime.open()
            const inside = await session()
            await runtime.close()
            return [inside, await session()]
          })
        } finally {
          await runtime.close()
        }
      }
      const sessions = yield* Effect.promise(async () => {
        await runtime.open()
        const atOnce = await Promise.all(Array.from({ length: 50 }, part))
        // no caller has closed it
        atOnce.push([await session()], [await session()])
        await runtime.close()
        return atOnce
      })
      assert.strictEqual(made, 1)
      assert.isAtMost(new Set(sessions.flat()).size, 2)
      for (const [inside, after] of sessions.slice(0, 50)) assert.strictEqual(inside, after)
      assert.strictEqual(tagOf(yield* rejectionOf(session())), "DatabaseClosed")
      // a server process needs time to end
      const left = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
      yield* query(writer, left).pipe(
        eventually(({ length }) => length === 0),
        Effect.zipRight(query(writer, left)),
        Effect.tap((found) => assert.deepStrictEqual(found, []))
      )
    })
  )

  it.scopedLive("a use before the open or after the close fails with DatabaseClosed, which names the database", () =>
    Effect.gen(function* () {
      const { db, runtime } = yield* fresh()
      const before = yield* rejectionOf(db.writer`SELECT 1`.then())
      assert.strictEqual(tagOf(before), "DatabaseClosed")
      assert.include(String(before), 'database "app" is not open yet')
      assert.strictEqual(tagOf(yield* rejectionOf(runtime.runPromise(insert("x")))), "DatabaseClosed")
      assert.strictEqual(tagOf(yield* rejectionOf(runtime.unitOfWork(() => 1))), "DatabaseClosed")
      yield* Effect.promise(() => runtime.open())
      yield* Effect.promise(() => runtime.close())
      const after = yield* rejectionOf(db.writer`SELECT 1`.then())
      assert.include(String(after), 'database "app" is closed')
    })
  )

  it.scopedLive("a failed opening is reported to all waiters, nothing stays open, and it may be retried", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const proxy = yield* makeProxy(writer)
      const layer = Layer.mergeAll(Db.layer({ writer }), Audit.layer({ writer: proxy.url, connectTimeout: "1 second" }))
      const runtime = DatabaseRuntime.make({ db: Db, audit: Audit }, layer)
      yield* proxy.refuse
      const failures = yield* Effect.all([rejectionOf(runtime.open()), rejectionOf(runtime.open())], { concurrency: 2 })
      assert.deepStrictEqual(failures.map(tagOf), ["ConnectFailed", "ConnectFailed"])
      const left = yield* query<{ n: number }>(
        writer,
        "SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
      )
      assert.deepStrictEqual(left, [{ n: 0 }])
      assert.strictEqual(tagOf(yield* rejectionOf(runtime.databases.db.writer`SELECT 1`.then())), "DatabaseClosed")
      yield* proxy.accept
      yield* Effect.promise(() => runtime.open())
      assert.deepStrictEqual(yield* Effect.promise(async () => await runtime.databases.audit.writer`SELECT 1 AS one`), [
        { one: 1 }
      ])
      yield* Effect.promise(() => runtime.close())
    })
  )

  it.scopedLive("a close during an opening waits for it, and an opening during a close waits as well", () =>
    Effect.gen(function* () {
      const { db, runtime } = yield* fresh()
      const opening = runtime.open()
      const closing = runtime.close()
      const again = runtime.open()
      yield* Effect.promise(() => Promise.all([opening, closing, again]))
      assert.deepStrictEqual(yield* Effect.promise(async () => await db.writer`SELECT 1 AS one`), [{ one: 1 }])
      yield* Effect.promise(() => runtime.close())
      assert.strictEqual(tagOf(yield* rejectionOf(db.writer`SELECT 1`.then())), "DatabaseClosed")
    })
  )

  it.scopedLive(
    "a lazy runtime is opened by its first uses, and DatabaseRuntime.shared returns one runtime for a key",
    () =>
      Effect.gen(function* () {
        const { db, runtime } = yield* fresh({ lazy: true })
        const rows = yield* Effect.promise(() => Promise.all([db.writer`SELECT 1 AS n`, db.writer`SELECT 2 AS n`]))
        assert.deepStrictEqual(rows, [[{ n: 1 }], [{ n: 2 }]])
        const key = yield* Effect.sync(() => `test ${Math.random()}`)
        const one = DatabaseRuntime.shared(key, () => runtime)
        // a use is no open, so the first close closes
        yield* Effect.promise(() => runtime.open())
        yield* Effect.promise(() => runtime.close())
        assert.strictEqual(tagOf(yield* rejectionOf(db.writer`SELECT 1`.then())), "DatabaseClosed")
        const other = DatabaseRuntime.shared(key, () => DatabaseRuntime.make({}, Layer.empty))
        assert.strictEqual<unknown>(one, other)
      })
  )
})

/**
 * Returns the answer of plain code behind the middleware, and the error that its next handler
 * receives.
 */
const answerBehind = (
  runtime: { readonly middleware: ReturnType<typeof DatabaseRuntime.make>["middleware"] },
  options: DatabaseRuntime.NodeOptions,
  code: (response: ServerResponse) => void
) =>
  Effect.gen(function* () {
    const errors: Array<Error> = []
    const inUnit = runtime.middleware(options)
    const server = createServer((request, response) =>
      inUnit(request, response, (error) => {
        if (error === undefined) return code(response)
        errors.push(error)
        response.writeHead(502).end()
      })
    )
    yield* Effect.acquireRelease(
      Effect.async<void>((resume) => void server.listen(0, () => resume(Effect.void))),
      () => Effect.sync(() => server.close())
    )
    // a server that listens on a port has such an address
    const { port } = server.address() as AddressInfo
    const { status } = yield* Effect.promise(() => fetch(`http://localhost:${port}`))
    return { status, errors }
  })

describe("the middleware of a runtime", () => {
  it.scopedLive("a middleware passes a text that is thrown behind it to the next handler as an Error", () =>
    Effect.gen(function* () {
      const { runtime } = yield* fresh({ lazy: true })
      const { errors, status } = yield* answerBehind(runtime, {}, () => {
        throw "a text"
      })
      assert.strictEqual(status, 502)
      // some frameworks treat only an Error as an error
      assert.deepStrictEqual(errors, [new Error("a text", { cause: "a text" })])
    })
  )

  it.scopedLive("a middleware answers 500 if its outcome function throws, and nothing is stored", () =>
    Effect.gen(function* () {
      const { db, runtime, stored } = yield* fresh({ lazy: true })
      const outcome = () => {
        throw new Error("undecided")
      }
      const { errors, status } = yield* answerBehind(runtime, { outcome }, (response) => {
        db.writer`INSERT INTO item ${db.writer.insert({ name: "x" })}`.then(() => response.end("stored"))
      })
      assert.deepStrictEqual({ errors, status }, { errors: [], status: 500 })
      assert.deepStrictEqual(yield* stored, [])
    })
  )
})

describe("the handler of web requests", () => {
  it.scopedLive("a handler answers 503 if the databases cannot be opened, and serves when they can be", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const proxy = yield* makeProxy(writer)
      const layer = Db.layer({ writer: proxy.url, connectTimeout: "1 second" })
      const runtime = DatabaseRuntime.make({ db: Db }, layer, { lazy: true })
      yield* Effect.addFinalizer(() => Effect.promise(() => runtime.close()))
      const handle = runtime.handler(async () => Response.json(await runtime.databases.db.writer`SELECT 1 AS one`))
      const ask = Effect.promise(() => handle(new Request("http://localhost/")))
      yield* proxy.refuse
      const refused = yield* ask
      assert.strictEqual(refused.status, 503)
      assert.strictEqual(refused.headers.get("content-type"), "application/problem+json")
      yield* proxy.accept
      const served = yield* ask
      assert.deepStrictEqual(yield* Effect.promise(() => served.json()), [{ one: 1 }])
    })
  )

  it.scopedLive("a handler logs why a request was not stored, and does not send that to the client", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshTable
      const lines: Array<string> = []
      const logger = Logger.make(({ message }) => void lines.push(String(message)))
      const layer = Layer.merge(Db.layer({ writer }), Logger.replace(Logger.defaultLogger, logger))
      const runtime = DatabaseRuntime.make({ db: Db }, layer, { lazy: true })
      yield* Effect.addFinalizer(() => Effect.promise(() => runtime.close()))
      const handle = runtime.handler(async () => {
        await runtime.databases.db.writer`SELECT 1/0`.then(undefined, () => {})
        return new Response("stored")
      })
      const response = yield* Effect.promise(() => handle(new Request("http://localhost/")))
      assert.strictEqual(response.status, 500)
      assert.notInclude(yield* Effect.promise(() => response.text()), "division by zero")
      assert.strictEqual(lines.length, 1)
      assert.include(lines[0], "division by zero")
    })
  )
})

describe("a web request that is answered again", () => {
  const collision = "DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$"
  // with the content-length that a server has received
  const post = (body: string, headers: Record<string, string> = { "content-length": `${Buffer.byteLength(body)}` }) =>
    new Request("http://localhost/", { method: "POST", body, headers })

  it.scopedLive("each attempt of a web request reads its body from the start; a body over 1 MiB has one attempt", () =>
    Effect.gen(function* () {
      const { db, runtime, stored } = yield* fresh({ lazy: true })
      let attempts = 0
      const handle = runtime.handler(
        async (request) => {
          const name = await request.text()
          await db.writer`INSERT INTO item ${db.writer.insert({ name })}`
          if (++attempts === 1) await db.writer.query(collision)
          return new Response(`${name} ${attempts}`)
        },
        { retry: true }
      )
      const response = yield* Effect.promise(() => handle(post("hello")))
      assert.strictEqual(yield* Effect.promise(() => response.text()), "hello 2")
      assert.deepStrictEqual(yield* stored, ["hello"])
      attempts = 0
      const long = yield* rejectionOf(handle(post("long", { "content-length": "1048577" })))
      assert.strictEqual(tagOf(long), "SerializationFailure")
      assert.strictEqual(attempts, 1)
    })
  )

  it.scopedLive("a collision in a beforeCommit hook is retried too, and the last attempt's error is thrown", () =>
    Effect.gen(function* () {
      const { db, runtime } = yield* fresh({ lazy: true })
      let attempts = 0
      const handle = runtime.handler(
        async () => {
          if (++attempts > 1) await db.writer`SELECT 1/0`
          await db.beforeCommit(() => db.writer.query(collision))
          return new Response("never stored")
        },
        { retry: true }
      )
      const thrown = yield* rejectionOf(handle(post("")))
      assert.strictEqual(tagOf(thrown), "InvalidInput")
      assert.strictEqual(attempts, 2)
    })
  )
})
