/** TLS to a real server, by the parameters of a connection string and the files that they name. */
import * as fs from "node:fs"
import * as net from "node:net"
import * as path from "node:path"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { type Database, DatabaseConfig, type ServerConfig } from "effect-db"
import { describe } from "vitest"
import { Db } from "../support/databases.js"
import { directory, emptyFolder } from "../support/directory.js"
import { eventually, eventuallySucceeds } from "../support/eventually.js"
import { query } from "../support/server.js"
import { listenOnPort } from "../support/tcp.js"
import { makeTlsServer } from "../support/tls.js"
import { makeIdentity, makeTlsGate } from "../support/tlsGate.js"

/** Creates a folder, and returns a function that writes a file in it. */
const files = Effect.map(emptyFolder, (folder) => (name: string, text: string) => {
  const file = path.join(folder, name)
  fs.writeFileSync(file, text)
  return file
})

const given = Effect.gen(function* () {
  const server = yield* makeTlsServer
  const write = yield* files
  const ca = write("ca.crt", server.certificate)
  const text = (parameters: string, port = server.port) =>
    Redacted.make(
      `dbname=postgres user=${server.username} password=${Redacted.value(server.password)} port=${port} ${parameters}`
    )
  return { server, write, ca, text }
})

const session = (writer: ServerConfig.ServerInput, options: Partial<Database.Options> = {}) =>
  Effect.provide(
    Effect.flatMap(
      Db.writer,
      (sql) => sql<{ ssl: boolean; version: string }>`
        SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()`
    ),
    Db.layer({ writer, connectTimeout: "3 seconds", ...options })
  ).pipe(Effect.map(([row]) => row))

const failure = (writer: ServerConfig.ServerInput) =>
  Effect.map(Effect.flip(session(writer)), (error) => ({
    reason: error._tag === "ConnectFailed" ? error.reason : error._tag,
    message: error.message
  }))

/** Forwards a connection to a port. */
const forward = (client: net.Socket, port: number) => {
  const socket = net.connect(port, "127.0.0.1").on("error", () => {})
  client.pipe(socket).pipe(client)
}

/** Forwards connections to a port, and records the first byte of each. */
const listen = (port: number) =>
  Effect.gen(function* () {
    const first: Array<number | undefined> = []
    const own = yield* listenOnPort((client) => {
      client.once("data", (chunk) => first.push(chunk[0]))
      forward(client, port)
    })
    return { port: own, first }
  })

describe("TLS by the parameters of a connection string", () => {
  it.scopedLive("TLS verifies by sslrootcert, with or without the name, and keeps to ssl_max_protocol_version", () =>
    Effect.gen(function* () {
      const { ca, text } = yield* given
      assert.deepStrictEqual(
        yield* session(text(`host=localhost sslmode=require sslrootcert=${ca} ssl_max_protocol_version=TLSv1.2`)),
        { ssl: true, version: "TLSv1.2" }
      )
      const elsewhere = `host=db.example.com hostaddr=127.0.0.1 sslrootcert=${ca}`
      assert.isTrue((yield* session(text(`${elsewhere} sslmode=verify-ca`)))?.ssl)
      for (const mode of ["verify-full", "require"]) {
        const { message, reason } = yield* failure(text(`${elsewhere} sslmode=${mode}`))
        assert.strictEqual(reason, "tls")
        assert.include(message, "db.example.com")
        assert.include(
          message,
          "connect by a name in the certificate, or verify the chain alone with sslmode=verify-ca"
        )
      }
      for (const parameters of ["sslmode=verify-ca", "sslmode=require", "sslrootcert=system"]) {
        const { message, reason } = yield* failure(text(`host=localhost ${parameters}`))
        assert.strictEqual(reason, "tls", parameters)
        assert.include(message, "give the issuer's certificate with sslrootcert=FILE in the URL or with ssl: { ca }")
        assert.include(message, "sslmode=no-verify")
      }
      // the advice is the same for several hosts
      const { message } = yield* failure(text(`host=localhost,localhost sslmode=require`))
      assert.include(message, "sslrootcert=FILE")
      assert.isTrue((yield* session(text("host=localhost sslmode=no-verify")))?.ssl)
    })
  )

  it.scopedLive("TLS binds the channel if that is required, and fails if the server cannot bind it", () =>
    Effect.gen(function* () {
      const { ca, server, text, write } = yield* given
      const binding = "sslmode=require channel_binding=require"
      assert.isTrue((yield* session(text(`host=localhost sslrootcert=${ca} ${binding}`)))?.ssl)
      const client = makeIdentity("client")
      const gate = yield* makeTlsGate(server.url, [client])
      const certificate = `sslcert=${write("c.crt", client.cert)} sslkey=${write("c.key", client.key)}`
      const throughGate = (parameters: string) =>
        text(
          `host=localhost sslrootcert=${write("gate.crt", gate.server.cert)} ${certificate} ${parameters}`,
          gate.port
        )
      // the gate ends TLS, and connects to the server without it
      assert.isFalse((yield* session(throughGate("sslmode=require")))?.ssl)
      const { message, reason } = yield* failure(throughGate(binding))
      assert.strictEqual(reason, "authentication")
      assert.include(message, "it does not offer SCRAM-SHA-256-PLUS, which channel_binding=require needs")
      // a role that logs in without a password, so SCRAM cannot bind the channel
      const rules = yield* query<{ file: string }>(server.url, "SHOW hba_file")
      const file = Object.values(rules[0] ?? {})[0] ?? ""
      fs.writeFileSync(file, `host all open all trust\n${fs.readFileSync(file, "utf8")}`)
      yield* query(server.url, "CREATE ROLE open LOGIN")
      yield* query(server.url, "SELECT pg_reload_conf()")
      const open = (parameters: string) =>
        Redacted.make(`host=localhost port=${server.port} dbname=postgres user=open sslrootcert=${ca} ${parameters}`)
      yield* eventuallySucceeds(session(open("sslmode=require")))
      assert.strictEqual((yield* failure(open(binding))).reason, "authentication")
    })
  )

  it.scopedLive("TLS begins at once with sslnegotiation=direct, for a cancel as well", () =>
    Effect.gen(function* () {
      const { ca, server, text } = yield* given
      const relay = yield* listen(server.port)
      const writer = text(`host=localhost sslmode=verify-full sslrootcert=${ca} sslnegotiation=direct`, relay.port)
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        const sleeping = query(
          server.url,
          "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep(60%'"
        )
        const fiber = yield* Effect.fork(sql`SELECT pg_sleep(60)`)
        yield* eventually(sleeping, (rows) => rows.length > 0)
        // the first byte of a TLS handshake
        assert.deepStrictEqual(relay.first, [0x16])
        yield* Fiber.interrupt(fiber)
        yield* eventually(sleeping, (rows) => rows.length === 0)
        assert.deepStrictEqual(relay.first, [0x16, 0x16])
      }).pipe(Effect.provide(Db.layer({ writer, maxConnections: 1 })))
    })
  )

  it.scopedLive("TLS reads a client's certificate and key from files for each connection", () =>
    Effect.gen(function* () {
      const { server, text, write } = yield* given
      const passphrase = "open sesame"
      const client = makeIdentity("client", passphrase)
      const gate = yield* makeTlsGate(server.url, [client])
      const parameters = (more: string) =>
        text(`host=localhost sslmode=verify-full sslrootcert=${write("gate.crt", gate.server.cert)} ${more}`, gate.port)
      const cert = `sslcert=${write("c.crt", client.cert)}`
      const key = write("c.key", client.key)
      const good = parameters(`${cert} sslkey=${key} sslpassword='${passphrase}'`)
      assert.isFalse((yield* session(good))?.ssl)
      const config = Either.getOrThrow(DatabaseConfig.make("app", { writer: good }))
      assert.notInclude(JSON.stringify(config), passphrase)
      for (const [more, says] of [
        [`${cert} sslkey=${key} sslpassword=wrong`, "TLS"],
        [`${cert} sslkey=${write("garbage.key", "no key at all")}`, "TLS"],
        [`sslcert=${write("garbage.crt", "none")} sslkey=${key} sslpassword='${passphrase}'`, "TLS"],
        [`${cert} sslkey=/nowhere/client.key`, "the file of sslkey, /nowhere/client.key, cannot be used: ENOENT"],
        [`sslcert=${directory} sslkey=${key}`, "it is not a regular file"],
        ["sslcrl=/nowhere/crl", "the file of sslcrl"]
      ] as const) {
        const { message, reason } = yield* failure(parameters(more))
        assert.strictEqual(reason, "tls", more)
        assert.include(message, says)
        assert.notInclude(message, passphrase)
      }
      // a file that has changed applies to the next connection
      yield* Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* sql`SELECT 1`
        fs.writeFileSync(key, "no key any more")
        assert.isTrue((yield* Effect.exit(sql`SELECT 1`))._tag === "Failure")
        fs.writeFileSync(key, client.key)
        yield* sql`SELECT 1`
      }).pipe(Effect.provide(Db.layer({ writer: good, strategy: "none", acquireTimeout: "1 second" })))
    })
  )

  it.scopedLive("TLS sends the host name to the server unless sslsni=0, and verifies it in both cases", () =>
    Effect.gen(function* () {
      const { ca, server, text } = yield* given
      const hello = Buffer.from("localhost")
      const seen = (parameters: string) =>
        Effect.scoped(
          Effect.gen(function* () {
            let found = false
            const port = yield* listenOnPort((client) => {
              client.on("data", (chunk: Buffer) => {
                found ||= chunk.includes(hello)
              })
              forward(client, server.port)
            })
            yield* session(text(`host=localhost sslmode=verify-full sslrootcert=${ca} ${parameters}`, port))
            return found
          })
        )
      assert.isTrue(yield* seen(""))
      assert.isFalse(yield* seen("sslsni=0"))
      const wrong = text(`host=db.example.com hostaddr=127.0.0.1 sslmode=verify-full sslrootcert=${ca} sslsni=0`)
      assert.strictEqual((yield* failure(wrong)).reason, "tls")
    })
  )

  it.scopedLive("TLS is set by the option ssl rather than by the connection string", () =>
    Effect.gen(function* () {
      const { server, text } = yield* given
      const url = text("host=localhost sslmode=disable sslrootcert=/nowhere")
      assert.isFalse((yield* session(url))?.ssl)
      assert.isTrue((yield* session({ url, ssl: { ca: server.certificate } }))?.ssl)
      assert.isTrue((yield* session(url, { ssl: { ca: server.certificate } }))?.ssl)
    })
  )

  it.scopedLive("TLS is not used over a Unix socket, whatever sslmode is", () =>
    Effect.gen(function* () {
      const { server, text } = yield* given
      for (const parameters of ["sslmode=verify-full", "sslmode=verify-full sslnegotiation=direct"]) {
        assert.isFalse((yield* session(text(`host=${server.sockets} ${parameters}`)))?.ssl)
      }
    })
  )
})
