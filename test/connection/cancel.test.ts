/** Cancel requests: how they reach the server, and the statements for which they are sent. */
import * as Net from "node:net"
import * as path from "node:path"
import { pipeline } from "node:stream"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { type Database, DatabaseError } from "effect-db"
import * as EmbeddedPostgres from "effect-db/EmbeddedPostgres"
import { describe } from "vitest"
import { startChild } from "../support/child.js"
import { active, Db } from "../support/databases.js"
import { directory, emptyFolder } from "../support/directory.js"
import { eventually, until } from "../support/eventually.js"
import { type Message, makeProxy, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"
import { makeTlsServer } from "../support/tls.js"
import { makeIdentity, makeTlsGate } from "../support/tlsGate.js"

const long = Effect.flatMap(Db.writer, (sql) => sql`SELECT 1 FROM pg_sleep(60) AS long`)

const open = (options: Database.Options) =>
  Effect.map(Layer.build(Db.layer({ startup: "lazy", ...options })), (context) => Context.pick(Db)(context))

/** Waits until the server runs `count` of the long statements; returns the number that it runs. */
const running = (url: Redacted.Redacted<string>, count: number) => {
  const look = Effect.map(
    query<{ n: number }>(
      url,
      `SELECT count(*)::int AS n FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()
       AND datname = current_database() AND query LIKE '%AS long'`
    ),
    ([row]) => row?.n
  )
  return eventually(look, (n) => n === count)
}

/**
 * Creates a record of the messages that pass through a proxy. `ofLast` returns those on the
 * connection of the last message.
 */
const record = () => {
  const messages: Array<Message> = []
  const note = (message: Message) => {
    messages.push(message)
    return false
  }
  return { messages, note, ofLast: () => messages.filter((_) => _.connection === messages.at(-1)?.connection) }
}

describe("a cancel", () => {
  it.scopedLive("a cancel uses TLS if the session does, and is not sent if the server no longer accepts TLS", () =>
    Effect.gen(function* () {
      const server = yield* makeTlsServer
      const proxy = yield* makeProxy(server.url)
      const { messages, note, ofLast } = record()
      yield* proxy.when(note, "pass")
      const context = yield* open({
        writer: server.through(proxy.port),
        // a statement after a cancel waits for the connection of the cancelled one, which is kept
        maxConnections: 1
      })
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const session = sql<{
          pid: number
          ssl: boolean
        }>`SELECT pid, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()`
        const before = yield* session
        assert.strictEqual(before[0]?.ssl, true)

        const first = yield* Effect.fork(long)
        assert.strictEqual(yield* running(server.url, 1), 1)
        yield* Fiber.interrupt(first)
        assert.strictEqual(yield* running(server.url, 0), 0)
        const types = (some: ReadonlyArray<Message>) => some.map(({ type }) => type)
        assert.isAtLeast(proxy.accepted, 2)
        assert.deepStrictEqual([...new Set(types(ofLast()))], ["ssl", "tls"])
        assert.notInclude(types(messages), "cancel")
        // the server has confirmed the cancel, so the session is the same
        assert.deepStrictEqual(yield* session, before)

        const second = yield* Effect.fork(long)
        assert.strictEqual(yield* running(server.url, 1), 1)
        yield* server.set("ssl", "off")
        const accepted = proxy.accepted
        yield* Fiber.interrupt(second)
        yield* until(() => proxy.connections === 0)
        assert.strictEqual(proxy.connections, 0)
        // there are two attempts to cancel, and TLS is requested and refused in each
        assert.strictEqual(proxy.accepted, accepted + 2)
        assert.deepStrictEqual(types(ofLast()), ["ssl", "tls"])
        assert.strictEqual(ofLast()[1]?.bytes.toString("latin1"), "N")
        assert.notInclude(types(messages), "cancel")
        assert.strictEqual(yield* running(server.url, 1), 1)
      }).pipe(Effect.provide(context))
    })
  )

  it.scopedLive("a cancel sends the client's certificate if the server demands one", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const client = makeIdentity("client", "open sesame")
      const gate = yield* makeTlsGate(writer, [client])
      const { password, pathname, username } = new URL(Redacted.value(writer))
      const context = yield* open({
        writer: {
          host: "localhost",
          port: gate.port,
          database: pathname.slice(1),
          username,
          password: Redacted.make(decodeURIComponent(password)),
          ssl: { ca: gate.server.cert, ...client, passphrase: "open sesame" }
        }
      })
      const fiber = yield* Effect.fork(Effect.provide(long, context))
      assert.strictEqual(yield* running(writer, 1), 1)
      yield* Fiber.interrupt(fiber)
      yield* until(() => gate.clients.length + gate.refused === 2)
      assert.deepStrictEqual(gate.clients, [
        { name: "client", first: "startup" },
        { name: "client", first: "cancel" }
      ])
      assert.strictEqual(yield* running(writer, 0), 0)
    })
  )

  it.scopedLive("a cancel uses the Unix socket if the session does", () =>
    Effect.gen(function* () {
      const { password, port, sockets, url, username } = yield* makeTlsServer
      // a server listens on its TCP port too, so only a socket of the test shows that a cancel has used it
      const folder = yield* emptyFolder
      const socket = `.s.PGSQL.${port}`
      let accepted = 0
      const relay = Net.createServer((client) => {
        accepted++
        const server = Net.connect(path.join(sockets, socket))
        pipeline(client, server, client, () => {})
      })
      yield* Effect.acquireRelease(
        Effect.async<void>((resume) => void relay.listen(path.join(folder, socket), () => resume(Effect.void))),
        () => Effect.sync(() => relay.close())
      )
      const context = yield* open({ writer: { host: folder, port, database: "postgres", username, password } })
      yield* Effect.gen(function* () {
        const fiber = yield* Effect.fork(long)
        assert.strictEqual(yield* running(url, 1), 1)
        assert.strictEqual(accepted, 1)
        yield* Fiber.interrupt(fiber)
        assert.strictEqual(yield* running(url, 0), 0)
        assert.strictEqual(accepted, 2)
      }).pipe(Effect.provide(context))
    })
  )

  it.scopedLive("a hundred cancels at once reach a server that has no connection left", () =>
    Effect.gen(function* () {
      const { primary } = yield* EmbeddedPostgres.make({ directory, settings: { max_connections: 101 } })
      const url = primary.url()
      const context = yield* open({ writer: url, maxConnections: 101 })
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const fibers = yield* Effect.forEach(Array.from({ length: 100 }), () => Effect.fork(long))
        // queried through the last connection
        const count = sql<{ n: number }>`SELECT count(*)::int AS n FROM pg_stat_activity WHERE query LIKE '%AS long'`
        yield* eventually(count, ([row]) => row?.n === 100)
        const refused = yield* Effect.flip(Effect.sandbox(query(url, "SELECT 1")))
        assert.include(Cause.pretty(refused), "too many clients")

        const before = performance.now()
        yield* Fiber.interruptAll(fibers)
        assert.isBelow(performance.now() - before, 1000)
        assert.strictEqual(yield* active, 0)
        // the pool keeps its connections, so the server has none left for another client
        const busy = sql<{ n: number }>`SELECT count(*)::int AS n FROM pg_stat_activity
          WHERE state = 'active' AND query LIKE '%AS long'`
        yield* eventually(busy, ([row]) => row?.n === 0)
        assert.deepStrictEqual(yield* busy, [{ n: 0 }])
      }).pipe(Effect.provide(context))
    })
  )

  it.scopedLive("a cancel that is lost is sent once more", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const proxy = yield* makeProxy(writer)
      const context = yield* open({ writer: proxy.url })
      const fiber = yield* Effect.fork(Effect.provide(long, context))
      assert.strictEqual(yield* running(writer, 1), 1)
      const lost = yield* proxy.when(({ type }) => type === "cancel", "cut")
      yield* Fiber.interrupt(fiber)
      yield* lost
      assert.strictEqual(yield* running(writer, 0), 0)
    })
  )

  it.scopedLive("a cancel is sent for a statement that still runs when the scope of its reserved connection ends", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const context = yield* open({ writer })
      yield* Effect.gen(function* () {
        const { reserve } = yield* Db.writer
        const fiber = yield* Effect.scoped(
          Effect.gen(function* () {
            const connection = yield* reserve
            const fiber = yield* Effect.forkDaemon(
              connection.execute("SELECT 1 FROM pg_sleep(60) AS long", [], undefined)
            )
            assert.strictEqual(yield* running(writer, 1), 1)
            return fiber
          })
        )
        assert.strictEqual(yield* active, 0)
        const error = yield* Effect.flip(DatabaseError.refine(Fiber.join(fiber)))
        assert.strictEqual(error._tag === "Disconnected" && error.outcome, "undone")
        assert.strictEqual(yield* running(writer, 0), 0)
      }).pipe(Effect.provide(context))
    })
  )

  it.scopedLive("a cancel that the server never accepts does not keep the process alive", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const proxy = yield* makeProxy(writer)
      const program = yield* startChild("interrupted", [], proxy.url)
      const sent = yield* proxy.when(sends("long"), "freeze")
      assert.strictEqual(yield* program.line, "ready")
      yield* program.tell
      yield* sent
      yield* proxy.freeze
      const { code, lines, stderr } = yield* program.ended
      assert.strictEqual(code, 0, stderr)
      assert.deepStrictEqual(lines, ["ready", "interrupted"])
      // the connection of the statement, and those of two cancel requests, which never reach the server
      assert.strictEqual(proxy.accepted, 3)
    })
  )
})
