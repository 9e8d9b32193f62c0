/** Authentication at login: the requests of a server that the client refuses. */
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as EmbeddedPostgres from "effect-db/EmbeddedPostgres"
import { describe } from "vitest"
import { Db } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventuallySucceeds } from "../support/eventually.js"
import { query } from "../support/server.js"
import { listenOnPort } from "../support/tcp.js"

const secret = "s3cr3t-w0rd"

/** An address of this machine that is not loopback, or its host name if it has no such address. */
const remote =
  Object.values(os.networkInterfaces())
    .flat()
    .find((one) => one !== undefined && !one.internal && one.family === "IPv4")?.address ?? os.hostname()

const attempt = (writer: string) =>
  Effect.scoped(Layer.build(Db.layer({ writer: Redacted.make(writer), connectTimeout: "3 seconds" })))

const refusal = (writer: string) =>
  Effect.map(Effect.flip(attempt(writer)), (error) => {
    assert.strictEqual(error._tag === "ConnectFailed" ? error.reason : error._tag, "authentication", error.message)
    assert.notInclude(error.message, secret)
    return error.message
  })

/**
 * Starts a server that answers each message of a client with the next of `answers`, and records the
 * messages.
 */
const pretend = (host: string, ...answers: ReadonlyArray<Buffer>) =>
  Effect.gen(function* () {
    const received: Array<Buffer> = []
    const port = yield* listenOnPort((socket) => {
      const left = [...answers]
      socket.on("data", (chunk) => {
        received.push(chunk)
        const answer = left.shift()
        if (answer === undefined) socket.destroy()
        else socket.write(answer)
      })
    }, host)
    return {
      url: (parameters: string) => `postgres://me:${secret}@${host}:${port}/app?${parameters}`,
      /** Returns the bytes that clients have sent after the first message, which has no password. */
      received: () => Buffer.concat(received.slice(1)).toString("latin1")
    }
  })

/** Returns an authentication request with its number and its data. */
const request = (kind: number, ...more: ReadonlyArray<number>) =>
  Buffer.from([0x52, 0, 0, 0, 8 + more.length, 0, 0, 0, kind, ...more])

const mechanisms = Buffer.from("SCRAM-SHA-256\0\0")
const ready = Buffer.from([0x5a, 0, 0, 0, 5, 0x49])

describe("a server that requests a password", () => {
  it.scopedLive("a remote server that requests a password, in the clear or by md5, gets none without TLS", () =>
    Effect.gen(function* () {
      for (const [method, ask] of [
        ["password", request(3)],
        ["md5", request(5, 1, 2, 3, 4)]
      ] as const) {
        const { received, url } = yield* pretend(remote, ask)
        assert.include(
          yield* refusal(url("sslmode=disable")),
          `it asks for the password by ${method}, over a connection without TLS to a remote host`
        )
        assert.strictEqual(received(), "")
      }
    })
  )

  it.scopedLive("a server on loopback that requests the password in the clear gets it", () =>
    Effect.gen(function* () {
      const { received, url } = yield* pretend("127.0.0.1", request(3))
      yield* Effect.flip(attempt(url("")))
      assert.include(received(), secret)
    })
  )

  it.scopedLive("a server that ends SCRAM without a proof that it knows the password is refused", () =>
    Effect.gen(function* () {
      const { url } = yield* pretend("127.0.0.1", request(10, ...mechanisms), Buffer.concat([request(0), ready]))
      assert.include(yield* refusal(url("")), "it ended SCRAM without a proof that it knows the password")
    })
  )

  it.scopedLive("a server whose method of authentication is not in require_auth is refused, and gets no password", () =>
    Effect.gen(function* () {
      for (const [asks, answers, parameters] of [
        ["md5", [request(5, 1, 2, 3, 4)], "require_auth=scram-sha-256"],
        ["password", [request(3)], "require_auth=!password"],
        ["scram-sha-256", [request(10, ...mechanisms)], "require_auth=md5,password"],
        ["none", [Buffer.concat([request(0), ready])], "require_auth=scram-sha-256"]
      ] as const) {
        const { received, url } = yield* pretend("127.0.0.1", ...answers)
        assert.include(yield* refusal(url(parameters)), `it asks for ${asks}, which require_auth does not allow`)
        assert.strictEqual(received(), "")
      }
    })
  )
})

describe("a real server with md5", () => {
  it.scopedLive("a client logs in by md5 over loopback alone, and only by the methods in require_auth", () =>
    Effect.gen(function* () {
      const postgres = yield* EmbeddedPostgres.make({ directory, settings: { listen_addresses: "*" } })
      const { port } = postgres.primary
      const admin = postgres.primary.url()
      yield* query(
        admin,
        `DO $$ BEGIN SET LOCAL password_encryption = 'md5'; CREATE ROLE old LOGIN PASSWORD '${secret}'; END $$`
      )
      const rules = path.join(postgres.directory, "primary", "pg_hba.conf")
      fs.writeFileSync(rules, `host all old all md5\nhost all open all trust\n${fs.readFileSync(rules, "utf8")}`)
      yield* query(admin, "CREATE ROLE open LOGIN")
      yield* query(admin, "SELECT pg_reload_conf()")
      const server = (host: string, user: string, parameters = "") =>
        `postgres://${user}:${secret}@${host}:${port}/postgres?sslmode=disable${parameters}`
      yield* eventuallySucceeds(attempt(server("127.0.0.1", "old")))
      assert.include(yield* refusal(server(remote, "old")), "md5")
      assert.include(yield* refusal(server("127.0.0.1", "old", "&require_auth=scram-sha-256")), "md5")
      yield* attempt(server("127.0.0.1", "open"))
      assert.include(yield* refusal(server("127.0.0.1", "open", "&require_auth=scram-sha-256")), "none")
      yield* attempt(server("127.0.0.1", "open", "&require_auth=none,scram-sha-256"))
      const { password, username } = postgres
      const scram = `postgres://${username}:${Redacted.value(password)}@127.0.0.1:${port}/postgres`
      yield* attempt(`${scram}?require_auth=scram-sha-256`)
    })
  )
})
