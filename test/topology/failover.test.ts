/** The writer that moves to another host. */
import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type Database, DatabaseError, EmbeddedPostgres } from "effect-db"
import { Db } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually, until } from "../support/eventually.js"
import { insertNumber, makeCluster, nameOf, numbersOn, urlOf } from "../support/hostCluster.js"
import { makeProxy, sends } from "../support/proxy.js"
import { query } from "../support/server.js"
import { only, settled, watch } from "../support/suites/pooling/observations.js"
import { closedPort, listenOnPort } from "../support/tcp.js"

const cluster = Effect.map(makeCluster(1), (made) => ({
  ...made,
  replica: made.first,
  writer: urlOf(made.primary, made.all)
}))

/** Returns a host on this machine. */
const local = ({ port }: { readonly port: number }) => ({ host: "127.0.0.1", port })

/** Runs an effect on a cluster that is open as `Db`. */
const onCluster = <A, E>(
  body: (made: Effect.Effect.Success<typeof cluster>) => Effect.Effect<A, E, Db | Scope.Scope>,
  options: Partial<Database.Options> = {}
) => Effect.flatMap(cluster, (made) => Effect.provide(body(made), Db.layer({ writer: made.writer, ...options })))

describe("a writer on several hosts", () => {
  it.scopedLive("a write finds the promoted standby, and the former primary gets no write when it comes back", () =>
    onCluster(({ awaitReplicas, primary, replica }) =>
      Effect.gen(function* () {
        const seen = yield* watch
        yield* insertNumber(1)
        // an asynchronous standby may lack the last writes of its primary
        yield* awaitReplicas
        yield* primary.kill
        const waiting = yield* Effect.fork(insertNumber(2))
        const { servers } = yield* eventually(Db.status, ({ servers: [own] }) => own?.state === "down")
        assert.isFalse(servers[0]?.up)
        yield* replica.promote
        yield* Fiber.join(waiting)
        const [change] = only(seen, "WriterChanged").slice(-1)
        assert.deepInclude(change, { from: nameOf(primary), to: nameOf(replica), timeline: 2 })
        yield* primary.start
        // a lost connection begins a search, in which both servers accept writes
        const sql = yield* Db.writer
        yield* Effect.exit(sql`SELECT pg_terminate_backend(pg_backend_pid())`)
        yield* Effect.forEach([3, 4, 5], insertNumber, { concurrency: 3, discard: true })
        assert.deepStrictEqual(yield* numbersOn(replica), [1, 2, 3, 4, 5])
        assert.deepStrictEqual(yield* numbersOn(primary), [1])
      })
    )
  )

  it.scopedLive("listeners move with the writer, and receive a gap", () =>
    onCluster(({ primary, replica }) =>
      Effect.gen(function* () {
        const sql = yield* Db.writer
        const [listening, gap] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const messages = yield* Effect.fork(
          Db.listen("news").pipe(
            Stream.tap(({ _tag }) =>
              _tag === "Message" ? Effect.void : Deferred.succeed(_tag === "Gap" ? gap : listening, undefined)
            ),
            Stream.takeUntil(({ _tag }) => _tag === "Message"),
            Stream.runCollect
          )
        )
        yield* Deferred.await(listening)
        yield* primary.kill
        yield* replica.promote
        yield* Deferred.await(gap)
        yield* sql.notify("news", "hello")
        const received = yield* Fiber.join(messages)
        assert.include(
          [...received].map(({ _tag }) => _tag),
          "Gap"
        )
      })
    )
  )

  it.scopedLive(
    "a writer that is frozen is given up with its statement in flight, and gets no write after its thaw",
    () =>
      onCluster(({ awaitReplicas, primary, replica }) =>
        Effect.gen(function* () {
          const seen = yield* watch
          yield* insertNumber(1)
          yield* awaitReplicas
          yield* primary.freeze
          // without a limit of the server, only the monitor ends the wait
          const error = yield* DatabaseError.refine(insertNumber(2)).pipe(Effect.flip, Effect.timeout("20 seconds"))
          assert.strictEqual(error._tag === "Disconnected" && error.outcome, "inDoubt")
          const waiting = yield* Effect.fork(insertNumber(3))
          yield* replica.promote
          yield* Fiber.join(waiting)
          yield* primary.thaw
          yield* Effect.forEach([4, 5, 6], insertNumber, { concurrency: 3, discard: true })
          assert.deepStrictEqual(yield* numbersOn(replica), [1, 3, 4, 5, 6])
          // the frozen server had received the second one
          assert.includeMembers([1, 2], yield* numbersOn(primary))
          const [change] = only(seen, "WriterChanged").slice(-1)
          assert.deepInclude(change, { from: nameOf(primary), to: nameOf(replica) })
        })
      )
  )

  it.scopedLive("a statement in flight on a frozen writer fails while the monitor's connection is to be replaced", () =>
    Effect.gen(function* () {
      const { primary, writer } = yield* cluster
      yield* Effect.gen(function* () {
        yield* insertNumber(1)
        const since = performance.now()
        yield* until(() => performance.now() - since > 1100)
        const sql = yield* Db.writer
        const inFlight = yield* Effect.fork(DatabaseError.refine(sql`INSERT INTO item SELECT 2 FROM pg_sleep(60)`))
        const count = "SELECT count(*)::int AS count FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)'"
        yield* eventually(query<{ count: number }>(primary.url(), count), ([row]) => row?.count === 1)
        yield* primary.freeze
        const error = yield* Fiber.join(inFlight).pipe(Effect.flip, Effect.timeout("20 seconds"))
        assert.strictEqual(error._tag === "Disconnected" && error.outcome, "inDoubt")
        yield* primary.thaw
      }).pipe(Effect.provide(Db.layer({ writer, maxLifetime: "1 second", monitorInterval: "1 minute" })))
    })
  )

  it.scopedLive("a monitor whose own connection is dead harms no caller, and connects again", () =>
    Effect.gen(function* () {
      const { primary, replica } = yield* cluster
      const proxy = yield* makeProxy(primary.url())
      const writer = urlOf(primary, [local(proxy), replica])
      let probe = 0
      yield* proxy.when((message) => {
        if (sends("AS standby OFFSET 0")(message)) probe = message.connection
        return false
      }, "pass")
      yield* Effect.gen(function* () {
        const seen = yield* watch
        yield* insertNumber(0)
        yield* eventually(
          Effect.sync(() => probe),
          (connection) => connection > 0
        )
        const frozen = yield* proxy.when(({ connection, from }) => connection === probe && from === "client", "freeze")
        yield* frozen
        const accepted = proxy.accepted
        let n = 1
        const slow = yield* Effect.fork(Effect.flatMap(Db.writer, (sql) => sql`SELECT pg_sleep(1)`))
        // the check on another socket is a connection as well
        yield* eventually(
          Effect.suspend(() => Effect.map(insertNumber(n++), () => proxy.accepted - accepted)),
          (more) => more >= 2
        )
        yield* Fiber.join(slow)
        assert.lengthOf(only(seen, "Lost"), 0)
        assert.lengthOf(only(seen, "WriterChanged"), 0)
      }).pipe(Effect.provide(Db.layer({ writer, monitorInterval: "50 millis", detectionTime: "400 millis" })))
    })
  )

  it.scopedLive("the monitor finds a promoted standby while the former primary still accepts writes", () =>
    onCluster(
      ({ primary, replica }) =>
        Effect.gen(function* () {
          const seen = yield* watch
          yield* insertNumber(1)
          const sql = yield* Db.writer
          yield* replica.promote
          yield* eventually(
            Effect.sync(() => only(seen, "WriterChanged").map(({ to }) => to)),
            (to) => to.includes(nameOf(replica))
          )
          const reserved = sql<{ port: number }>`INSERT INTO item VALUES (2) RETURNING inet_server_port() AS port`
          assert.deepStrictEqual(yield* reserved, [{ port: replica.port }])
          assert.deepStrictEqual(yield* numbersOn(primary), [1])
        }),
      { monitorInterval: "50 millis" }
    )
  )

  it.scopedLive("no caller fails during a planned switch-over with pause, and each write is stored once", () =>
    onCluster(({ primary, replica, switchOver }) =>
      Effect.gen(function* () {
        const writing = yield* Effect.fork(
          Effect.forEach(
            Array.from({ length: 300 }, (_, n) => n),
            (n) => Db.withTransaction(insertNumber(n)),
            { concurrency: 5, discard: true }
          )
        )
        yield* eventually(numbersOn(primary), (stored) => stored.length > 50)
        assert.strictEqual(yield* Db.pause({ drain: "1 minute" }), 0)
        const before = yield* numbersOn(primary)
        assert.isBelow(before.length, 300)
        yield* switchOver(replica)
        yield* Db.resume
        yield* Fiber.join(writing)
        assert.deepStrictEqual(
          yield* numbersOn(replica),
          Array.from({ length: 300 }, (_, n) => n)
        )
      })
    )
  )

  const storms: Readonly<Record<string, (hosts: Redacted.Redacted<string>) => Database.Options>> = {
    "a writer on two hosts": (writer) => ({ writer }),
    "a writer on two hosts without a monitor": (writer) => ({ writer, monitor: false }),
    "a cluster of two hosts": (hosts) => ({ hosts })
  }
  for (const [name, options] of Object.entries(storms)) {
    it.scopedLive(`1,000 callers of ${name} wait for one search, which connects to each host once a pause`, () =>
      Effect.gen(function* () {
        const { primary, replica } = yield* cluster
        const hosts = [yield* makeProxy(primary.url()), yield* makeProxy(replica.url())] as const
        const [before, after] = hosts
        const given = options(urlOf(primary, hosts.map(local)))
        const probed = yield* after.when(sends("AS standby OFFSET 0"), "pass")
        yield* Effect.gen(function* () {
          yield* insertNumber(0)
          // the monitors of readers start with the first read
          yield* Effect.flatMap(Db.reader, (sql) => sql`SELECT 1`)
          // without a monitor, a standby is left after the login
          if (given.monitor !== false) yield* probed
          // the proxy counts the connects that it cuts
          yield* before.when(({ type }) => type === "startup", "cut", Number.POSITIVE_INFINITY)
          const accepted = hosts.map((host) => host.accepted)
          const connects = () => hosts.map((host, i) => host.accepted - (accepted[i] ?? 0))
          const since = performance.now()
          yield* Effect.all([before.cut, after.cut])
          yield* settled({ total: 0 })
          const waiting = yield* Effect.fork(
            Effect.forEach(
              Array.from({ length: 1000 }, (_, n) => n + 1),
              insertNumber,
              { concurrency: "unbounded", discard: true }
            )
          )
          // the monitors come to the hosts after 5 seconds
          yield* until(() => (connects()[0] ?? 0) >= (given.monitor === false ? 5 : 9))
          const counts = connects()
          // the pauses are 100, 200, 400 and 800 ms, then a second
          let rounds = 1
          for (let left = performance.now() - since, pause = 100; left >= pause; rounds++) {
            left -= pause
            pause = Math.min(pause * 2, 1000)
          }
          for (const count of counts) assert.isAtMost(count, rounds)
          // the connection to the standby stays open
          if (given.monitor !== false) assert.strictEqual(counts[1], 1)
          yield* replica.promote
          yield* Fiber.join(waiting)
          assert.lengthOf(yield* numbersOn(replica), 1001)
        }).pipe(Effect.provide(Db.layer({ ...given, queueTarget: "10 minutes" })))
      })
    )
  }

  it.scopedLive("a standby is logged in to once by the search, and not again when it is promoted", () =>
    Effect.gen(function* () {
      const { primary, replica } = yield* cluster
      const proxy = yield* makeProxy(replica.url())
      const writer = urlOf(primary, [primary, local(proxy)])
      let probes = 0
      yield* proxy.when((message) => {
        if (sends("AS standby OFFSET 0")(message)) probes++
        return false
      }, "pass")
      yield* Effect.gen(function* () {
        yield* insertNumber(1)
        yield* until(() => probes > 0)
        assert.strictEqual(proxy.accepted, 1)
        yield* primary.kill
        yield* replica.promote
        yield* insertNumber(2)
        // the other one is that of the write
        assert.strictEqual(proxy.accepted, 2)
        assert.strictEqual(probes, 1)
      }).pipe(Effect.provide(Db.layer({ writer, minConnections: 0, maxConnections: 1 })))
    })
  )

  it.scopedLive("a promoted standby whose sessions are read-only by default is not the writer until they are not", () =>
    Effect.gen(function* () {
      const { primary, replica } = yield* cluster
      const proxy = yield* makeProxy(replica.url())
      const writer = urlOf(primary, [primary, local(proxy)])
      const set = (change: string) =>
        Effect.zipRight(query(replica.url(), `ALTER SYSTEM ${change}`), query(replica.url(), "SELECT pg_reload_conf()"))
      yield* Effect.gen(function* () {
        yield* insertNumber(1)
        yield* set("SET default_transaction_read_only = on")
        yield* primary.kill
        yield* replica.promote
        const waiting = yield* Effect.fork(insertNumber(2))
        const { accepted } = proxy
        yield* until(() => proxy.accepted >= accepted + 3)
        assert.isNull(waiting.unsafePoll())
        yield* set("RESET default_transaction_read_only")
        yield* Fiber.join(waiting)
        assert.include(yield* numbersOn(replica), 2)
      }).pipe(Effect.provide(Db.layer({ writer })))
    })
  )

  it.scopedLive("a start finds the writer beside a host that refuses, a silent one and one with another password", () =>
    Effect.gen(function* () {
      const { primary, replica } = yield* cluster
      const { primary: stranger } = yield* EmbeddedPostgres.make({ directory })
      const silent = yield* listenOnPort()
      // the URL has the credentials of the replica
      const writer = urlOf(replica, [
        replica,
        stranger,
        local({ port: silent }),
        local({ port: yield* closedPort }),
        primary
      ])
      yield* Effect.gen(function* () {
        const seen = yield* watch
        yield* insertNumber(1)
        const sql = yield* Db.writer
        // another search reports the failures of the hosts again
        yield* Effect.exit(sql`SELECT pg_terminate_backend(pg_backend_pid())`)
        yield* insertNumber(2)
        yield* eventually(
          Effect.sync(() => only(seen, "ConnectFailed").map(({ reason, server }) => [server, reason])),
          (failed) => failed.some(([server, reason]) => server === nameOf(stranger) && reason === "authentication")
        )
        assert.deepStrictEqual(yield* numbersOn(primary), [1, 2])
      }).pipe(Effect.provide(Db.layer({ writer, connectTimeout: "1 minute" })), Effect.timeout("20 seconds"))
    })
  )

  it.scopedLive("a search does not wait for a connect that is stuck, if the host has answered before", () =>
    Effect.gen(function* () {
      const { primary } = yield* cluster
      const proxy = yield* makeProxy(primary.url())
      const writer = urlOf(primary, [local(proxy), local({ port: yield* closedPort })])
      yield* Effect.gen(function* () {
        yield* insertNumber(1)
        yield* proxy.freeze
        const { accepted } = proxy
        yield* Effect.exit(insertNumber(2))
        // the check on another socket, then the connect of the next probe
        yield* eventually(
          Effect.sync(() => proxy.accepted - accepted),
          (more) => more >= 2
        )
        yield* proxy.strand
        yield* insertNumber(3)
        assert.includeMembers(yield* numbersOn(primary), [1, 3])
      }).pipe(
        Effect.provide(
          Db.layer({ writer, connectTimeout: "1 minute", detectionTime: "400 millis", acquireTimeout: "50 seconds" })
        ),
        Effect.timeout("30 seconds")
      )
    })
  )
})
