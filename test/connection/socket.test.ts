/** Connections over streams that the program opens, as connectors and tunnels return them. */
import * as net from "node:net"
import { Duplex } from "node:stream"
import { inspect } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { type Database, DatabaseConfig } from "effect-db"
import { describe } from "vitest"
import { Db } from "../support/databases.js"
import { eventually, until } from "../support/eventually.js"
import { freshDatabase, query } from "../support/server.js"
import { makeTlsServer } from "../support/tls.js"

/** Returns a stream that hides the socket beneath it, as a tunnel does. */
const tunnel = (socket: net.Socket): Duplex =>
  Duplex.from({
    readable: socket,
    writable: socket
  })

const open = (port: number, host = "127.0.0.1") =>
  Effect.async<net.Socket, Error>((resume) => {
    const socket = net.connect(port, host)
    socket.once("connect", () => resume(Effect.succeed(socket)))
    socket.once("error", (error) => resume(Effect.fail(error)))
  })

const given = Effect.map(freshDatabase, ({ name, writer }) => {
  const { password, port, username } = new URL(Redacted.value(writer))
  const parts = { database: name, username, password: Redacted.make(decodeURIComponent(password)) }
  return { name, writer, port: Number(port), parts }
})

const failure = (options: Database.Options) =>
  Effect.map(Effect.flip(Effect.scoped(Layer.build(Db.layer(options)))), (error) => {
    assert.notInclude(inspect(error, { depth: 10 }), "s3cret")
    return error._tag === "ConnectFailed" ? [error.reason, error.message] : [error._tag, error.message]
  })

describe("sockets of the program", () => {
  it.scopedLive("a socket of the program carries large statements and rows, as a net.Socket and as a Duplex", () =>
    Effect.gen(function* () {
      const { name, parts, port } = yield* given
      for (const socket of [open(port), Effect.map(open(port), tunnel)]) {
        yield* Effect.gen(function* () {
          const sql = yield* Db.writer
          assert.deepStrictEqual(yield* sql`SELECT current_database() AS name`, [{ name }])
          const text = "x".repeat(5_000_000)
          assert.deepStrictEqual(yield* sql`SELECT length(${text}::text) AS size`, [{ size: text.length }])
          const [row] = yield* sql<{ text: string }>`SELECT repeat('y', 5000000) AS text`
          assert.strictEqual(row?.text.length, 5_000_000)
          const { servers } = yield* Db.status
          assert.strictEqual(servers[0]?.name, "tunnel")
        }).pipe(
          Effect.provide(Db.layer({ writer: { ...parts, socket, name: "tunnel" }, statementTimeout: "20 seconds" }))
        )
      }
    })
  )

  it.scopedLive("a cancel gets a stream of its own from the program, and a stream is closed with its connection", () =>
    Effect.gen(function* () {
      const { parts, port, writer } = yield* given
      let opened = 0
      let closed = 0
      const socket = Effect.map(open(port), (socket) => {
        opened++
        socket.once("close", () => closed++)
        return tunnel(socket)
      })
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const sleeping = query(
          writer,
          "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query LIKE 'SELECT pg_sleep(61%'"
        )
        const fiber = yield* Effect.fork(sql`SELECT pg_sleep(61)`)
        yield* eventually(sleeping, (rows) => rows.length > 0)
        assert.strictEqual(opened, 1)
        yield* Fiber.interrupt(fiber)
        yield* eventually(sleeping, (rows) => rows.length === 0)
        // the connection is kept, so the second stream was that of the cancel
        yield* sql`SELECT 1`
        assert.strictEqual(opened, 2)
        assert.isBelow(closed, 2)
      }).pipe(Effect.provide(Db.layer({ writer: { ...parts, socket }, maxConnections: 1 })))
      yield* until(() => closed === opened)
    })
  )

  it.scopedLive("a statement whose socket breaks fails with Disconnected, and the next one succeeds", () =>
    Effect.gen(function* () {
      const { parts, port } = yield* given
      const sockets: Array<net.Socket> = []
      const socket = Effect.map(open(port), (socket) => {
        sockets.push(socket)
        return tunnel(socket)
      })
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const fiber = yield* Effect.fork(Effect.flip(sql`SELECT pg_sleep(60)`))
        yield* eventually(Db.status, ({ servers }) => servers[0]?.writes?.active === 1)
        for (const socket of sockets) socket.destroy()
        const error = yield* Fiber.join(fiber)
        assert.strictEqual(Reflect.get(Object(error.cause), "_tag"), "Disconnected")
        yield* sql`SELECT 1`
      }).pipe(Effect.provide(Db.layer({ writer: { ...parts, socket } })))
    })
  )

  it.scopedLive("TLS over a socket of the program works with a servername, and is refused without one", () =>
    Effect.gen(function* () {
      const { certificate, password, port, username } = yield* makeTlsServer
      const parts = { database: "postgres", username, password, socket: Effect.map(open(port), tunnel) }
      const ssl = (ssl: DatabaseConfig.Ssl) => ({ writer: { ...parts, ssl }, connectTimeout: "3 seconds" as const })
      const rows = yield* Effect.provide(
        Effect.flatMap(Db.writer, (sql) => sql`SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()`),
        Db.layer(ssl({ ca: certificate, servername: "localhost" }))
      )
      assert.deepStrictEqual(rows, [{ ssl: true }])
      assert.strictEqual((yield* failure(ssl({ ca: certificate, servername: "db.example.com" })))[0], "tls")
      for (const wrong of [true, { ca: certificate }]) {
        const refused = Either.getOrThrow(Either.flip(DatabaseConfig.make("app", ssl(wrong))))
        assert.strictEqual(refused.setting, "writer.ssl")
      }
    })
  )

  it.scopedLive("a socket of the program is unreferenced while it is idle, also beneath TLS, if it has an unref", () =>
    Effect.gen(function* () {
      const { certificate, password, port, username } = yield* makeTlsServer
      for (const ssl of [false, { ca: certificate, servername: "localhost" }]) {
        const said: Array<string> = []
        const members = { ref: () => said.push("ref"), unref: () => said.push("unref") }
        for (const more of [members, {}]) {
          const socket = Effect.map(open(port), (socket) => Object.assign(tunnel(socket), more))
          yield* Effect.gen(function* () {
            const sql = yield* Db.writer
            yield* sql`SELECT 1`
            yield* sql`SELECT 1`
          }).pipe(
            Effect.provide(
              Db.layer({ writer: { database: "postgres", username, password, socket, ssl }, idleExit: true })
            )
          )
        }
        // the first unref follows start-up, and the others follow the statements
        assert.deepStrictEqual(said.slice(0, 5), ["unref", "ref", "unref", "ref", "unref"])
      }
    })
  )

  it.scopedLive("a connect is unreachable if its socket fails, takes too long, is closed or is no stream", () =>
    Effect.gen(function* () {
      const { parts, port } = yield* given
      const attempt = (socket: DatabaseConfig.Connector) =>
        failure({ writer: { ...parts, socket }, connectTimeout: "500 millis" })
      const destroyed = Effect.map(open(port), (socket) => socket.destroy())
      let isInterrupted = false
      const never = Effect.onInterrupt(Effect.never, () =>
        Effect.sync(() => {
          isInterrupted = true
        })
      )
      for (const [socket, says] of [
        [Effect.fail(new Error("s3cret")), "the effect that opens the socket failed"],
        [Effect.die("s3cret"), "the effect that opens the socket failed"],
        [never, "the socket was not opened within"],
        [destroyed, "the socket is closed already"],
        [Effect.succeed(3 as never), "the socket is no stream"]
      ] as const) {
        const [reason, message] = yield* attempt(socket)
        assert.strictEqual(reason, "unreachable", message)
        assert.include(message, says)
      }
      yield* eventually(
        Effect.sync(() => isInterrupted),
        (it) => it
      )
    })
  )
})
