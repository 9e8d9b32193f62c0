/** A cluster whose roles, and hosts, are discovered. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { type Database, Discovery, EmbeddedPostgres, type ServerConfig } from "effect-db"
import { Db } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { makeDnsServer } from "../support/dnsServer.js"
import { eventually, eventuallySucceeds, until } from "../support/eventually.js"
import { insertNumber, makeCluster, nameOf, type Server, urlOf } from "../support/hostCluster.js"
import { query } from "../support/server.js"
import { only, watch } from "../support/suites/pooling/observations.js"
import { closedPort, listenOnPort } from "../support/tcp.js"

/** The time without a primary, in ms: longer than the timeout of a connect. */
const standbyTime = process.env.EFFECT_DB_CHAOS === "full" ? 20_000 : 1500

const portOf = (client: "writer" | "reader") =>
  Effect.flatMap(Db[client], (sql) =>
    Effect.map(sql<{ port: number }>`SELECT inet_server_port() AS port`, ([row]) => row?.port)
  )

/** Returns the ports of the servers that serve ten reads. */
const portsOfReads = Effect.map(Effect.all(Array.from({ length: 10 }, () => portOf("reader"))), (ports) =>
  [...new Set(ports)].sort()
)

const ports = (...servers: ReadonlyArray<Server>) => servers.map(({ port }) => port).sort()

/** Source of hosts that a test changes. */
class Source {
  asked = 0
  answer: Effect.Effect<ReadonlyArray<ServerConfig.DiscoveredHost>, unknown> = Effect.succeed([])

  constructor(...servers: ReadonlyArray<Pick<Server, "host" | "port">>) {
    this.set(...servers)
  }

  set(...servers: ReadonlyArray<Pick<Server, "host" | "port">>): void {
    this.answer = Effect.succeed(servers.map(({ host, port }) => ({ host, port })))
  }

  readonly discover = Effect.suspend(() => {
    this.asked++
    return this.answer
  })
}

const discovering = (hosts: Redacted.Redacted<string>, source: Source) => ({
  hosts,
  discover: source.discover,
  discoverInterval: "20 millis" as const,
  monitorInterval: "50 millis" as const
})

describe("a cluster of hosts", () => {
  it.scopedLive("standbys of a cluster serve reads, and a promoted one serves none until it is a standby again", () =>
    Effect.gen(function* () {
      const { all, first, primary, second } = yield* makeCluster(2)
      yield* Effect.gen(function* () {
        const seen = yield* watch
        yield* insertNumber(1)
        assert.strictEqual(yield* portOf("writer"), primary.port)
        assert.deepStrictEqual(yield* portsOfReads, ports(first, second))
        yield* primary.kill
        yield* first.promote
        yield* insertNumber(2)
        assert.strictEqual(yield* portOf("writer"), first.port)
        yield* second.follow(first)
        yield* eventually(portsOfReads, (served) => served.join() === ports(second).join())
        yield* primary.follow(first)
        yield* eventually(portsOfReads, (served) => served.join() === ports(primary, second).join())
        assert.deepStrictEqual(
          only(seen, "WriterChanged").map(({ from, to }) => [from, to]),
          [[nameOf(primary), nameOf(first)]]
        )
      }).pipe(Effect.provide(Db.layer({ hosts: urlOf(primary, all), readerRetryDelay: "50 millis" })))
    })
  )

  it.scopedLive(
    "a name that leads to another server moves writes and listeners, with a writer that still answers",
    () =>
      Effect.gen(function* () {
        const { first, primary } = yield* makeCluster(1)
        const source = new Source()
        const named = ({ host, port }: Server) => Effect.succeed([{ name: "node", host, port }])
        source.answer = named(primary)
        yield* Effect.gen(function* () {
          yield* Effect.forEach([1, 2, 3], insertNumber, { concurrency: 3 })
          const gap = yield* Effect.fork(
            Db.listen("news").pipe(
              Stream.filter(({ _tag }) => _tag === "Gap"),
              Stream.runHead
            )
          )
          yield* eventually(
            query<{ count: number }>(
              primary.url(),
              "SELECT count(*)::int AS count FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
            ),
            ([row]) => row?.count === 1
          )
          yield* first.promote
          source.answer = named(first)
          yield* eventually(portOf("writer"), (at) => at === first.port)
          yield* Effect.forEach([4, 5, 6], insertNumber, { concurrency: 3 })
          yield* Fiber.join(gap)
          const rows = yield* query<{ n: number }>(primary.url(), "SELECT n FROM item ORDER BY n")
          assert.deepStrictEqual(
            rows.map(({ n }) => n),
            [1, 2, 3]
          )
        }).pipe(Effect.provide(Db.layer(discovering(urlOf(primary, []), source))))
      })
  )

  it.scopedLive("a cluster of one server serves reads and writes with it", () =>
    Effect.gen(function* () {
      const { primary } = yield* EmbeddedPostgres.make({ directory })
      const layer = Db.layer({ hosts: primary.url(), minConnections: 1 })
      const served = yield* Effect.provide(Effect.all([portOf("writer"), portOf("reader")]), layer)
      assert.deepStrictEqual(served, [primary.port, primary.port])
    })
  )

  it.scopedLive("minConnections opens no connections for reads to the writer", () =>
    Effect.gen(function* () {
      const { all, first, primary } = yield* makeCluster(1)
      yield* Effect.gen(function* () {
        const seen = yield* watch
        const idle = Effect.map(Db.status, ({ servers }) =>
          servers.flatMap(({ name, reads, role }) => (role === "reader" ? [[name, reads.idle] as const] : []))
        )
        yield* eventually(idle, (all) => all.some(([name, count]) => name === nameOf(first) && count === 2))
        assert.deepInclude(yield* idle, [nameOf(primary), 0])
        yield* insertNumber(1)
        assert.deepStrictEqual(only(seen, "ConnectFailed"), [])
      }).pipe(Effect.provide(Db.layer({ hosts: urlOf(primary, all), minConnections: 2 })))
    })
  )

  it.scopedLive("a start is not delayed by a dead host, a silent host and a host with another password", () =>
    Effect.gen(function* () {
      const { first, primary } = yield* makeCluster(1)
      const { primary: stranger } = yield* EmbeddedPostgres.make({ directory })
      const at = (port: number) => ({ host: "127.0.0.1", port })
      const hosts = urlOf(primary, [at(yield* closedPort), stranger, at(yield* listenOnPort()), first, primary])
      yield* Effect.gen(function* () {
        yield* insertNumber(1)
        assert.strictEqual(yield* portOf("writer"), primary.port)
        // a read may try the silent host first, once
        yield* portsOfReads
        assert.deepStrictEqual(yield* portsOfReads, ports(first))
      }).pipe(
        Effect.provide(Db.layer({ hosts, connectTimeout: "2 seconds", readerRetryDelay: "1 minute" })),
        Effect.timeout("40 seconds")
      )
    })
  )

  it.scopedLive("while all hosts are standbys, reads go on, and a write waits for the promotion", () =>
    Effect.gen(function* () {
      const { all, first, primary, second } = yield* makeCluster(2)
      yield* Effect.gen(function* () {
        yield* insertNumber(1)
        yield* primary.kill
        const waiting = yield* Effect.fork(insertNumber(2))
        const until = performance.now() + standbyTime
        yield* eventually(portsOfReads, (served) => {
          assert.deepStrictEqual(served, ports(first, second))
          return performance.now() > until
        })
        assert.isNull(waiting.unsafePoll())
        yield* first.promote
        yield* Fiber.join(waiting)
        assert.strictEqual(yield* portOf("writer"), first.port)
      }).pipe(Effect.provide(Db.layer({ hosts: urlOf(primary, all), connectTimeout: "1 second" })))
    })
  )
})

describe("discovered hosts", () => {
  it.scopedLive("the hosts of the first answer are used at the start, without a host in the settings", () =>
    Effect.gen(function* () {
      const { all, first, primary } = yield* makeCluster(1)
      for (const startup of ["verify", "lazy"] as const) {
        const source = new Source(...all)
        const used = Effect.gen(function* () {
          assert.strictEqual(source.asked, startup === "lazy" ? 0 : 1)
          assert.strictEqual(yield* portOf("writer"), primary.port)
          assert.deepStrictEqual(yield* portsOfReads, ports(first))
        })
        const options = { hosts: urlOf(primary, []), discover: source.discover, startup }
        yield* Effect.provide(used, Db.layer(options))
      }
    })
  )

  it.scopedLive("a start without an answer about the hosts fails with the reason, and a later answer is used", () =>
    Effect.gen(function* () {
      const { primary } = yield* EmbeddedPostgres.make({ directory })
      const source = new Source(primary)
      source.answer = Effect.fail(new Error("the registry is down"))
      const layer = Db.layer({ ...discovering(urlOf(primary, []), source), connectTimeout: "2 seconds" })
      const error = yield* Effect.flip(Effect.scoped(Layer.build(layer)))
      assert.strictEqual(error._tag, "ConnectFailed")
      assert.include(error.message, "the registry is down")
      const starting = yield* Effect.fork(Effect.provide(portOf("writer"), layer))
      const { asked } = source
      yield* until(() => source.asked > asked)
      source.set(primary)
      assert.strictEqual(yield* Fiber.join(starting), primary.port)
    })
  )

  it.scopedLive("an added host serves reads, and the connections of a removed one end after their use", () =>
    Effect.gen(function* () {
      const { first, primary, second } = yield* makeCluster(2)
      const source = new Source(primary, first)
      yield* Effect.gen(function* () {
        const seen = yield* watch
        assert.deepStrictEqual(yield* portsOfReads, ports(first))
        source.set(primary, first, second)
        yield* eventually(portsOfReads, (served) => served.join() === ports(first, second).join())
        source.set(primary, first)
        yield* eventually(portsOfReads, (served) => served.join() === ports(first).join())
        const sql = yield* Db.reader
        const served = yield* sql.withTransaction(
          Effect.gen(function* () {
            const before = yield* portOf("reader")
            source.set(primary, second)
            yield* eventually(
              Effect.sync(() => only(seen, "HostsChanged").at(-1)),
              (change) => change?.removed.includes(nameOf(first)) === true
            )
            return [before, yield* portOf("reader")]
          })
        )
        assert.deepStrictEqual(served, [first.port, first.port])
        yield* eventually(portsOfReads, (served) => served.join() === ports(second).join())
        yield* eventually(
          query(primary.url(), "SELECT 1"),
          () =>
            only(seen, "Connected").filter(({ server }) => server === nameOf(first)).length ===
            only(seen, "Closed").filter(({ server }) => server === nameOf(first)).length
        )
        assert.deepStrictEqual(
          only(seen, "HostsChanged").map(({ added, removed }) => [added, removed]),
          [
            [[nameOf(second)], []],
            [[], [nameOf(second)]],
            [[nameOf(second)], [nameOf(first)]]
          ]
        )
        const { servers } = yield* Db.status
        assert.deepStrictEqual(
          servers.filter(({ role }) => role === "reader").map(({ name }) => name),
          [nameOf(primary), nameOf(second)]
        )
      }).pipe(Effect.provide(Db.layer(discovering(urlOf(primary, []), source))))
    })
  )

  it.scopedLive("callers that wait for a removed host are served by another one", () =>
    Effect.gen(function* () {
      const { first, primary, second } = yield* makeCluster(2)
      const source = new Source(primary, first)
      yield* Effect.gen(function* () {
        const sql = yield* Db.reader
        const [held, end] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const holding = Effect.zipRight(Deferred.succeed(held, undefined), Deferred.await(end))
        const holder = yield* Effect.fork(sql.withTransaction(Effect.zipRight(portOf("reader"), holding)))
        yield* Deferred.await(held)
        // the only connection is in use
        const waiting = yield* Effect.fork(portOf("reader"))
        yield* eventually(Db.status, ({ servers }) => servers.some(({ reads }) => reads.waiting === 1))
        source.set(primary, second)
        assert.strictEqual(yield* Fiber.join(waiting), second.port)
        yield* Deferred.succeed(end, undefined)
        yield* Fiber.join(holder)
      }).pipe(Effect.provide(Db.layer({ ...discovering(urlOf(primary, []), source), maxConnections: 1 })))
    })
  )

  it.scopedLive("a removed writer stays until it is lost", () =>
    Effect.gen(function* () {
      const { all, first, primary } = yield* makeCluster(1)
      const source = new Source(...all)
      yield* Effect.gen(function* () {
        const seen = yield* watch
        yield* insertNumber(1)
        source.set(first)
        yield* until(() => only(seen, "HostsChanged").length > 0)
        const { asked } = source
        yield* until(() => source.asked > asked + 2)
        yield* insertNumber(2)
        assert.strictEqual(yield* portOf("writer"), primary.port)
        yield* first.promote
        // a statement in flight may be lost with the former writer
        yield* eventually(
          Effect.orElseSucceed(portOf("writer"), () => undefined),
          (port) => port === first.port
        )
        yield* insertNumber(3)
        assert.deepInclude(only(seen, "WriterChanged").at(-1), { from: nameOf(primary), to: nameOf(first) })
      }).pipe(Effect.provide(Db.layer(discovering(urlOf(primary, []), source))))
    })
  )

  it.scopedLive("a writer that returns under another name moves, and its connections in use end first", () =>
    Effect.gen(function* () {
      const { primary } = yield* makeCluster(1)
      const source = new Source(primary)
      const renamed = { host: "localhost", port: primary.port }
      yield* Effect.gen(function* () {
        const seen = yield* watch
        yield* insertNumber(1)
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* insertNumber(2)
            source.set(renamed)
            yield* until(() => only(seen, "WriterChanged").some(({ to }) => to === nameOf(renamed)))
            yield* insertNumber(3)
          })
        )
        yield* insertNumber(4)
        assert.lengthOf(yield* query(primary.url(), "SELECT n FROM item"), 4)
      }).pipe(Effect.provide(Db.layer(discovering(urlOf(primary, []), source))))
    })
  )

  it.scopedLive("an answer that fails, is empty, invalid or late is reported, and the known hosts stay", () =>
    Effect.gen(function* () {
      const { all, first, primary } = yield* makeCluster(1)
      const source = new Source(...all)
      const options = { ...discovering(urlOf(primary, []), source), connectTimeout: "300 millis" as const }
      yield* Effect.gen(function* () {
        const seen = yield* watch
        const answers: ReadonlyArray<readonly [answer: Effect.Effect<unknown, unknown>, message: string]> = [
          [Effect.fail(new Error("no route")), "no route"],
          [Effect.die(new Error("a defect")), "a defect"],
          [Effect.succeed([]), "no host"],
          [Effect.succeed("localhost"), "no list"],
          [Effect.succeed([{ host: "a", port: 0 }]), "port"],
          [Effect.succeed([{ host: "a\0" }]), "NUL"],
          [Effect.succeed([{ host: "a", address: "b" }]), "address"],
          [Effect.succeed([{ host: "a" }, { host: "a" }]), "twice"],
          [Effect.succeed([null]), "no object"],
          [Effect.succeed(Array.from({ length: 101 }, (_, port) => ({ host: "a", port: port + 1 }))), "101 hosts"],
          [Effect.never, "no answer within 300 ms"]
        ]
        for (const [answer, message] of answers) {
          // a program without types may return anything
          source.answer = answer as Source["answer"]
          yield* until(() => only(seen, "DiscoveryFailed").some((failure) => failure.message.includes(message)))
        }
        assert.lengthOf(only(seen, "HostsChanged"), 0)
        yield* insertNumber(1)
        assert.deepStrictEqual(yield* portsOfReads, ports(first))
      }).pipe(Effect.provide(Db.layer(options)))
    })
  )

  it.scopedLive("after the loss of the writer the hosts are asked for at once, and a new writer is found", () =>
    Effect.gen(function* () {
      const { first, primary } = yield* makeCluster(1)
      const source = new Source(primary)
      const options: Database.Options = {
        hosts: urlOf(primary, []),
        discover: source.discover,
        discoverInterval: "10 minutes"
      }
      yield* Effect.gen(function* () {
        yield* insertNumber(1)
        // once more if the search for the first writer takes a second
        assert.isAtMost(source.asked, 2)
        yield* primary.kill
        yield* first.promote
        source.set(first)
        yield* eventuallySucceeds(insertNumber(2))
        assert.strictEqual(yield* portOf("writer"), first.port)
        assert.isAtLeast(source.asked, 2)
      }).pipe(Effect.provide(Db.layer(options)))
    })
  )

  it.scopedLive("DNS that leads only to a standby delays writes until it leads to the primary", () =>
    Effect.gen(function* () {
      const { first, primary } = yield* makeCluster(1)
      const dns = yield* makeDnsServer
      const name = "_postgresql._tcp.test"
      const leadTo = (...servers: ReadonlyArray<Server>) =>
        dns.records.set(
          name,
          servers.map(({ port }) => ({ type: "SRV", target: "localhost", port, priority: 0, weight: 0 }))
        )
      leadTo(first)
      const discover = Discovery.srv(name, { servers: [dns.address] })
      const options: Database.Options = {
        hosts: urlOf(primary, []),
        discover,
        discoverInterval: "20 millis",
        monitorInterval: "50 millis",
        startup: "lazy"
      }
      yield* Effect.gen(function* () {
        const seen = yield* watch
        const waiting = yield* Effect.fork(insertNumber(1))
        yield* until(() => only(seen, "HostsChanged").length > 0)
        assert.strictEqual(yield* portOf("reader"), first.port)
        assert.isNull(waiting.unsafePoll())
        leadTo(first, primary)
        yield* Fiber.join(waiting)
        assert.strictEqual(yield* portOf("writer"), primary.port)
        // the host that was added while no writer was known is monitored
        yield* eventually(Db.status, ({ servers }) =>
          servers.some(
            ({ latencyMillis, name, role }) =>
              role === "reader" && name === `localhost:${primary.port}` && latencyMillis !== undefined
          )
        )
        // the answer of DNS leads elsewhere, but the writer still answers as the writer
        leadTo(first)
        yield* until(() => only(seen, "HostsChanged").length > 2)
        yield* insertNumber(2)
        assert.strictEqual(yield* portOf("writer"), primary.port)
      }).pipe(Effect.provide(Db.layer(options)))
    })
  )
})
