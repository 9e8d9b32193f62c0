/** The errors of an embedded cluster. */
import * as fs from "node:fs"
import * as net from "node:net"
import * as path from "node:path"
import { inspect } from "node:util"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Embedded from "effect-db/EmbeddedPostgres"
import { type EmbeddedPostgres, EmbeddedPostgresError } from "effect-db/EmbeddedPostgres"
import { vi } from "vitest"
import * as Settings from "../../src/internal/embedded/postgresqlConf.js"
import { emptyFolder } from "../support/directory.js"
import { make } from "../support/embedded.js"
import { query } from "../support/server.js"

/** Returns taken ports as if they were free, until the scope ends; such a loss of a port cannot be produced otherwise. */
const pretendFree = (ports: Array<number>) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const address = net.Server.prototype.address
      return vi.spyOn(net.Server.prototype, "address").mockImplementation(function (this: net.Server) {
        const port = ports.pop()
        return port === undefined ? address.call(this) : { address: "127.0.0.1", family: "IPv4", port }
      })
    }),
    (spy) => Effect.sync(() => spy.mockRestore())
  )

const holdPort = Effect.acquireRelease(
  Effect.async<net.Server>((resume) => {
    const server = net.createServer()
    server.listen(0, "127.0.0.1", () => resume(Effect.succeed(server)))
  }),
  (server) => Effect.async<void>((resume) => void server.close(() => resume(Effect.void)))
).pipe(
  Effect.map((server) => {
    const address = server.address()
    return typeof address === "object" && address !== null ? address.port : 0
  })
)

describe("the errors of an embedded cluster", () => {
  it.scopedLive("errors say what failed and what to do, and have no secret", () =>
    Effect.gen(function* () {
      const postgres = yield* make({ replicas: 1, databases: ["app"], settings: { log_statement: "all" } })
      const {
        primary,
        replicas: [replica]
      } = postgres
      if (replica === undefined) return expect.fail("no replica")
      const password = Redacted.value(postgres.password)
      // the server writes this statement, which has the password, to its log
      yield* query(primary.url(), `SELECT '${password}'`)
      const exists = yield* Effect.flip(postgres.createDatabase("app"))
      const missing = yield* Effect.flip(postgres.dropDatabase("nope"))
      const long = yield* Effect.flip(postgres.createDatabase("ü".repeat(32)))
      const promoted = yield* Effect.flip(primary.promote)
      yield* replica.freeze
      const frozen = yield* Effect.flip(postgres.awaitReplicas)
      yield* replica.thaw
      yield* primary.stop
      const stopped = yield* Effect.flip(postgres.createDatabase("x"))
      const notFrozen = yield* Effect.flip(primary.freeze)
      yield* Effect.sync(() =>
        fs.appendFileSync(path.join(postgres.directory, "primary", "postgresql.conf"), "nope=1\n")
      )
      const broken = yield* Effect.flip(primary.start)
      const errors = [exists, missing, long, promoted, frozen, stopped, notFrozen, broken]
      expect(errors.map((error) => [error.operation, error.server])).toEqual([
        ["createDatabase", "primary"],
        ["dropDatabase", "primary"],
        ["createDatabase", undefined],
        ["promote", "primary"],
        ["awaitReplicas", "replica-1"],
        ["createDatabase", "primary"],
        ["freeze", "primary"],
        ["start", "primary"]
      ])
      expect(exists.message).toContain('database "app" already exists')
      expect(missing.message).toContain('database "nope" does not exist')
      expect(long.message).toContain("1 to 63 bytes")
      expect(frozen.message).toContain("thaw it first")
      expect(stopped.message).toContain("start it first")
      expect(broken.message).toContain('unrecognized configuration parameter "nope"')
      expect(yield* primary.isRunning).toBe(false)
      const shown = [
        ...errors.flatMap((error) => [
          error.message,
          String(error),
          JSON.stringify(error),
          inspect(error, { depth: 9 })
        ]),
        ...(yield* primary.logs),
        ...(yield* replica.logs),
        inspect(postgres, { depth: 9 }),
        JSON.stringify(postgres)
      ]
      expect(shown.filter((text) => text.includes(password))).toEqual([])
      expect((yield* primary.logs).some((line) => line.includes("SELECT '<redacted>'"))).toBe(true)
    })
  )

  it.scopedLive("an error names the fixed port that is taken, and no folder is left", () =>
    Effect.gen(function* () {
      const directory = yield* emptyFolder
      const port = yield* holdPort
      const error = yield* Effect.flip(make({ port, directory, replicas: 1 }))
      expect(error).toBeInstanceOf(EmbeddedPostgresError)
      expect(error.message).toContain(`port ${port} is in use`)
      expect(fs.readdirSync(directory)).toEqual([])
    })
  )

  it.scopedLive("a port that is taken at the last moment is replaced by the next free one", () =>
    Effect.gen(function* () {
      const port = yield* holdPort
      const ports = [port, port, port]
      yield* pretendFree(ports)
      const { primary, replicas } = yield* make({ replicas: 1 })
      expect(ports).toEqual([])
      expect([primary, ...replicas].map((server) => server.port)).not.toContain(port)
      expect((yield* primary.logs).some((line) => line.includes("Address already in use"))).toBe(true)
    })
  )

  it.scopedLive("an error names the port that a stopped server lost to another program", () =>
    Effect.gen(function* () {
      const port = yield* Effect.scoped(holdPort)
      const { primary } = yield* make({ port })
      yield* primary.stop
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Effect.acquireRelease(
            Effect.async<net.Server>((resume) => {
              const server = net.createServer()
              server.listen(port, "127.0.0.1", () => resume(Effect.succeed(server)))
            }),
            (server) => Effect.async<void>((resume) => void server.close(() => resume(Effect.void)))
          )
          expect((yield* Effect.flip(primary.start)).message).toContain(`port ${port} is in use`)
        })
      )
      yield* primary.start
      expect(primary.port).toBe(port)
    })
  )

  it.scopedLive("an error has the last log lines of a server that cannot start, and no folder is left", () =>
    Effect.gen(function* () {
      const directory = yield* emptyFolder
      const error = yield* Effect.flip(make({ directory, settings: { shared_preload_libraries: "no_such_library" } }))
      expect(error.operation).toBe("start")
      expect(error.logs.join()).toContain("no_such_library")
      expect(fs.readdirSync(directory)).toEqual([])
    })
  )

  it.scopedLive("a server that is not ready in time fails after startTimeout, and leaves no folder", () =>
    Effect.gen(function* () {
      const directory = yield* emptyFolder
      const error = yield* Effect.flip(make({ directory, startTimeout: "1 millis" }))
      expect(error.message).toContain("within 1ms")
      expect(fs.readdirSync(directory)).toEqual([])
    })
  )

  it.effect("wrong options are refused before anything starts", () =>
    Effect.gen(function* () {
      const message = (options: EmbeddedPostgres.Options) =>
        Effect.map(Effect.flip(Effect.scoped(make(options))), (error) => error.message)
      expect(yield* message({ replicas: -1 })).toContain("replicas is -1")
      expect(yield* message({ port: 70_000 })).toContain("port is 70000")
      // a program without types may pass anything
      const untyped = (options: unknown) =>
        Effect.map(
          Effect.flip(Effect.scoped(Embedded.make(options as EmbeddedPostgres.Options))),
          (error) => error.message
        )
      expect(yield* untyped({ replica: 1 })).toContain("replica is not an option: the options are replicas, databases")
      expect(yield* untyped({ replicas: "1" })).toContain('replicas is "1": expected a whole number from 0')
      expect(yield* untyped({ databases: "app" })).toContain('databases is "app": expected an array of names')
      expect(yield* untyped({ databases: [null] })).toContain("expected an array of names")
      expect(yield* untyped({ settings: { fsync: null } })).toContain("expected strings, numbers and booleans by name")
      expect(yield* untyped({ startTimeout: "abc" })).toContain('startTimeout is "abc": expected a finite duration')
      expect(yield* untyped({ startTimeout: Number.POSITIVE_INFINITY })).toContain("startTimeout is Infinity")
      expect(yield* untyped({ directory: 5 })).toContain("directory is 5: expected the path of a folder")
      expect(yield* untyped(null)).toContain("the options are not an object")
      expect(yield* message({ databases: [""] })).toContain("is not a valid database name")
      expect(yield* message({ settings: { "a = 1\nb": 1 } })).toContain("is not a valid setting")
      expect(yield* message({ directory: "/no/such/folder" })).toContain("/no/such/folder")
    })
  )

  it("settings are rendered with escapes, and a zero byte is refused", () => {
    expect(Settings.render({ a: true, b: 1.5, "c.d": "x'y\\z" })).toMatchObject({
      right: "a = on\nb = '1.5'\nc.d = 'x''y\\\\z'\n"
    })
    expect(Settings.render({ a: "\0" })).toMatchObject({ left: "a" })
  })
})
