/** Servers with several hosts, and sessions with the options of their connection string. */
import { execFile, execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { type Database, DatabaseError } from "effect-db"
import { describe } from "vitest"
import { Db } from "../support/databases.js"
import { emptyFolder } from "../support/directory.js"
import { freshDatabase } from "../support/server.js"
import { closedPort, listenOnPort } from "../support/tcp.js"

const partsOf = (url: Redacted.Redacted<string>) => {
  const { host, password, pathname, username } = new URL(Redacted.value(url))
  return { host, credentials: `${username}:${password}`, database: pathname }
}

/** A new database, its addresses on the primary and the replica, and URLs with several hosts. */
const servers = Effect.map(freshDatabase, ({ reader, writer }) => {
  const { credentials, database, host: primary } = partsOf(writer)
  return {
    primary,
    replica: partsOf(reader).host,
    at: (hosts: ReadonlyArray<string>, parameters = "", user = credentials) =>
      Redacted.make(`postgres://${user}@${hosts.join(",")}${database}?${parameters}`),
    writer
  }
})

const endpoint = (port: number) => `127.0.0.1:${port}`

/** An endpoint on which nothing listens. */
const closed = Effect.map(closedPort, endpoint)

/** An endpoint that accepts and never answers. */
const silent = Effect.map(
  Effect.suspend(() => listenOnPort()),
  endpoint
)

/** An endpoint on which an HTTP server answers. */
const httpServer = Effect.map(
  Effect.suspend(() =>
    listenOnPort((socket) => void socket.once("data", () => socket.end("HTTP/1.1 400 Bad Request\r\n\r\n")))
  ),
  endpoint
)

const question = "SELECT host(inet_server_addr()) || ':' || inet_server_port() AS host, pg_is_in_recovery() AS standby"

interface Row {
  readonly host: string
  readonly standby: boolean
}

const ask = (client: "writer" | "reader", options: Database.Options) =>
  Effect.provide(
    Effect.flatMap(Db[client], (sql) => Effect.map(sql.unsafe<Row>(question), ([row]) => row)),
    Db.layer(options)
  )

const failure = (options: Database.Options) => Effect.flip(Effect.scoped(Layer.build(Db.layer(options))))

describe("a server with several hosts", () => {
  it.scopedLive("a server is reached at the next host if the first refuses connections", () =>
    Effect.gen(function* () {
      const { at, primary } = yield* servers
      assert.strictEqual((yield* ask("writer", { writer: at([yield* closed, primary]) }))?.host, primary)
    })
  )

  it.scopedLive("a server is reached at the next host, within connectTimeout, if the first never answers", () =>
    Effect.gen(function* () {
      const { at, primary } = yield* servers
      const writer = at([yield* silent, primary])
      assert.strictEqual((yield* ask("writer", { writer, connectTimeout: "1 second" }))?.host, primary)
    })
  )

  for (const client of ["writer", "reader"] as const) {
    it.scopedLive(`a ${client} waits for a silent host for connect_timeout, however fast other hosts fail`, () =>
      Effect.gen(function* () {
        const { at, primary, writer } = yield* servers
        const refusing = yield* Effect.replicateEffect(closed, 4)
        const hosts = [...refusing, yield* silent, primary]
        const several = at(hosts, "connect_timeout=2&target_session_attrs=any")
        const options =
          client === "writer"
            ? ({ writer: several, startup: "lazy" } as const)
            : ({ writer, readers: [several], startup: "lazy" } as const)
        const since = performance.now()
        assert.strictEqual((yield* ask(client, options))?.host, primary)
        assert.isBelow(performance.now() - since, 5000)
      })
    )
  }

  it.scopedLive("a writer is connected to the host that accepts writes", () =>
    Effect.gen(function* () {
      const { at, primary, replica } = yield* servers
      for (const attributes of ["", "target_session_attrs=primary", "target_session_attrs=read-write"]) {
        const row = yield* ask("writer", { writer: at([replica, primary], attributes) })
        assert.deepStrictEqual(row, { host: primary, standby: false }, attributes)
      }
    })
  )

  it.scopedLive("a reader prefers a standby, unless target_session_attrs requires another role", () =>
    Effect.gen(function* () {
      const { at, primary, replica, writer } = yield* servers
      const read = (hosts: ReadonlyArray<string>, attributes: string) =>
        ask("reader", { writer, readers: [at(hosts, attributes)] })
      assert.deepStrictEqual(yield* read([primary, replica], ""), { host: replica, standby: true })
      assert.deepStrictEqual(yield* read([yield* closed, primary], ""), { host: primary, standby: false })
      assert.strictEqual((yield* read([primary, replica], "target_session_attrs=standby"))?.host, replica)
      assert.strictEqual((yield* read([replica, primary], "target_session_attrs=primary"))?.host, primary)
      assert.strictEqual((yield* read([primary, replica], "target_session_attrs=any"))?.host, primary)
      assert.strictEqual((yield* read([primary, replica], "target_session_attrs=read-only"))?.host, primary)
    })
  )

  it.scopedLive("a host of another protocol is skipped, and the connect fails at once if all hosts are such", () =>
    Effect.gen(function* () {
      const { at, primary } = yield* servers
      const strange = yield* httpServer
      assert.strictEqual((yield* ask("writer", { writer: at([strange, primary]) }))?.host, primary)
      const reasonOf = (hosts: ReadonlyArray<string>, acquireTimeout: Database.Options["acquireTimeout"]) =>
        ask("writer", { writer: at(hosts), startup: "lazy", acquireTimeout }).pipe(
          Effect.timeout("5 seconds"),
          DatabaseError.refine,
          Effect.flip,
          Effect.map((error) => (error._tag === "ConnectFailed" ? error.reason : error._tag))
        )
      assert.strictEqual(yield* reasonOf([strange], "20 seconds"), "protocol")
      assert.strictEqual(yield* reasonOf([strange, strange], "20 seconds"), "protocol")
      // a host that is down may come back, so the connect is retried until the timeout of the test
      assert.strictEqual(yield* reasonOf([yield* closed, strange], "20 seconds"), "TimeoutException")
    })
  )

  it.scopedLive("a connect fails with wrongRole and names each host if none has the role", () =>
    Effect.gen(function* () {
      const { at, replica } = yield* servers
      const other = replica.replace("127.0.0.1", "localhost")
      const error = yield* failure({ writer: at([replica, other]), connectTimeout: "2 seconds" })
      assert.strictEqual(error._tag === "ConnectFailed" && error.reason, "wrongRole")
      for (const host of [replica, other]) assert.include(error.message, `${host}: it is a standby`)
    })
  )

  it.scopedLive("a connect fails with the reason of a host that is down rather than with that of a standby", () =>
    Effect.gen(function* () {
      const { at, replica } = yield* servers
      const error = yield* failure({ writer: at([yield* closed, replica]), connectTimeout: "2 seconds" })
      assert.strictEqual(error._tag === "ConnectFailed" && error.reason, "unreachable")
    })
  )

  it.scopedLive("a wrong password fails the start at once, although a host that is away might accept it", () =>
    Effect.gen(function* () {
      const { at, primary } = yield* servers
      const writer = at([primary, yield* closed], "", "postgres:wrong")
      // the search would end with the timeout of the test
      const error = yield* failure({ writer, connectTimeout: "10 minutes" })
      assert.strictEqual(error._tag === "ConnectFailed" && error.reason, "authentication")
      assert.include(error.message, `${primary}: password authentication failed`)
    })
  )

  it.scopedLive("hosts are tried in random order with load_balance_hosts=random", () =>
    Effect.gen(function* () {
      const { at, primary, replica, writer } = yield* servers
      const reader = at([primary, replica], "target_session_attrs=any&load_balance_hosts=random")
      const rows = yield* Effect.provide(
        Effect.flatMap(Db.reader, (sql) => Effect.replicateEffect(sql.unsafe<Row>(question), 40)),
        Db.layer({ writer, readers: [reader], strategy: "none" })
      )
      assert.deepStrictEqual(new Set(rows.flat().map(({ host }) => host)), new Set([primary, replica]))
    })
  )

  it.scopedLive("a writer whose only host is a standby fails with wrongRole", () =>
    Effect.gen(function* () {
      const { at, replica } = yield* servers
      const error = yield* failure({ writer: at([replica]), connectTimeout: "1 second" })
      assert.strictEqual(error._tag === "ConnectFailed" && error.reason, "wrongRole")
    })
  )

  const program = fileURLToPath(new URL("../support/twoAddresses.ts", import.meta.url))
  const canMount = (() => {
    try {
      execFileSync("unshare", ["--mount", "true"], { stdio: "ignore" })
      return process.getuid?.() === 0
    } catch {
      return false
    }
  })()

  // the name `pair` has its addresses from an /etc/hosts that only the child process sees
  it.scopedLive.skipIf(!canMount)("a server with the role is searched at each address of a host name", () =>
    Effect.gen(function* () {
      const { primary, replica, writer } = yield* servers
      const folder = yield* emptyFolder
      const file = path.join(folder, "hosts")
      fs.writeFileSync(file, "127.0.0.1 localhost\n127.0.0.2 pair\n127.0.0.3 pair\n")
      const command = `mount --bind ${file} /etc/hosts && exec node --import tsx ${program}`
      const { credentials, database } = partsOf(writer)
      const { stdout } = yield* Effect.promise(() =>
        promisify(execFile)("unshare", ["--mount", "sh", "-c", command], {
          env: { ...process.env, PRIMARY: primary, REPLICA: replica, CREDENTIALS: credentials, DATABASE: database }
        })
      )
      assert.deepStrictEqual(JSON.parse(stdout), {
        writer: false,
        searched: false,
        reader: true,
        standbyOnly: "wrongRole"
      })
    })
  )
})

describe("the session options of a connection string", () => {
  it.scopedLive("a session has the options of its connection string, unless options of the layer override them", () =>
    Effect.gen(function* () {
      const { at, primary } = yield* servers
      const shown = (parameters: string, options: Partial<Database.Options> = {}) =>
        Effect.provide(
          Effect.flatMap(
            Db.writer,
            (sql) =>
              sql<{ path: string; name: string; idle: string }>`
                SELECT current_setting('search_path') AS path, current_setting('application_name') AS name,
                  current_setting('idle_in_transaction_session_timeout') AS idle`
          ),
          Db.layer({ writer: at([primary], parameters), ...options })
        )
      const parameters =
        "options=-c%20search_path%3Dx%20-c%20idle_in_transaction_session_timeout%3D7s&application_name=url"
      assert.deepStrictEqual(yield* shown(parameters), [{ path: "x", name: "url", idle: "7s" }])
      assert.deepStrictEqual(
        yield* shown(parameters, { applicationName: "option", idleInTransactionTimeout: "9 seconds" }),
        [{ path: "x", name: "option", idle: "9s" }]
      )
      assert.deepStrictEqual(yield* shown("options=-csearch_path%3Dy"), [
        { path: "y", name: "effect-db", idle: "1min" }
      ])
    })
  )

  it.scopedLive("a reader's session has the application name of the reader's own connection string", () =>
    Effect.gen(function* () {
      const { at, primary, writer } = yield* servers
      const rows = yield* Effect.provide(
        Effect.flatMap(Db.reader, (sql) => sql`SELECT current_setting('application_name') AS name`),
        Db.layer({ writer, readers: [at([primary], "application_name=mine")] })
      )
      assert.deepStrictEqual(rows, [{ name: "mine" }])
    })
  )

  it.scopedLive("a reader's session refuses writes whatever the options of its connection string are", () =>
    Effect.gen(function* () {
      const { at, primary, writer } = yield* servers
      const reader = at([primary], "options=-c%20default_transaction_read_only%3Doff")
      const rows = yield* Effect.provide(
        Effect.flatMap(Db.reader, (sql) => sql`SELECT current_setting('default_transaction_read_only') AS it`),
        Db.layer({ writer, readers: [reader] })
      )
      assert.deepStrictEqual(rows, [{ it: "on" }])
    })
  )

  it.scopedLive("a session is opened at the address in hostaddr, even if the host name does not resolve", () =>
    Effect.gen(function* () {
      const { primary, writer } = yield* servers
      const { credentials, database } = partsOf(writer)
      const [user, password] = credentials.split(":")
      const [address, port] = primary.split(":")
      const text = `host=no-such-host.invalid hostaddr=${address} port=${port} dbname=${database.slice(1)} user=${user} password=${password} sslmode=disable`
      assert.strictEqual((yield* ask("writer", { writer: Redacted.make(text) }))?.host, primary)
    })
  )
})
