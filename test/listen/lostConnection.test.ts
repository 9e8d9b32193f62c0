/** The loss of the listening connection: gaps, heartbeats, outages, and views that are read anew. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Stream from "effect/Stream"
import { DatabaseError, EmbeddedPostgres, type Observation, RetryPolicy } from "effect-db"
import { describe } from "vitest"
import { Audit, Db, fresh, Place } from "../support/databases.js"
import { eventually, turn, until } from "../support/eventually.js"
import { behind, count, hear, killListening, listening, say, says } from "../support/listening.js"
import { type Message, makeProxy, sends } from "../support/proxy.js"
import { randoms } from "../support/random.js"
import { freshDatabase, query } from "../support/server.js"

/** Checks if a message of a listening connection is a heartbeat: a Sync on its own. */
const isHeartbeat = ({ from, type }: Message) => from === "client" && type === "S"

describe("Notification", () => {
  describe("a lost connection of listeners", () => {
    it.scopedLive("a lost connection is replaced, and a gap stands for the messages that were sent meanwhile", () =>
      Effect.gen(function* () {
        const { context, proxy, writer } = yield* behind()
        const listener = yield* hear(Stream.provideContext(Db.listen("news"), context))
        yield* count(listener, 1)
        yield* say(writer, "news", "before")
        yield* count(listener, 2)
        yield* proxy.refuse
        yield* proxy.cut
        yield* say(writer, "news", "missed")
        yield* proxy.accept
        yield* count(listener, 3)
        yield* say(writer, "news", "after")
        yield* count(listener, 4)
        assert.deepStrictEqual(says(listener.heard), ["listening", "before", "gap: disconnected", "after"])
      })
    )

    it.scopedLive("each of 20 losses of the connection is a gap for each listener, and none for a new one", () =>
      Effect.gen(function* () {
        const { name, writer } = yield* Place
        const channels = ["a", "b", "b", "c"]
        const listeners = yield* Effect.forEach(channels, (channel) => hear(Db.listen(channel)))
        for (const listener of listeners) yield* count(listener, 1)
        for (let i = 1; i <= 20; i++) {
          yield* killListening(name, writer)
          const newcomer = yield* hear(Db.listen("c"))
          yield* count(newcomer, 1)
          for (const listener of listeners) yield* count(listener, 2 * i)
          yield* say(writer, "a", `${i}`)
          yield* say(writer, "b", `${i}`)
          yield* say(writer, "c", `${i}`)
          for (const listener of listeners) yield* count(listener, 2 * i + 1)
          yield* count(newcomer, 2)
          assert.deepStrictEqual(says(newcomer.heard), ["listening", `${i}`])
          yield* Fiber.interrupt(newcomer.fiber)
        }
        const expected = Array.from({ length: 20 }, (_, i) => ["gap: disconnected", `${i + 1}`]).flat()
        for (const { heard } of listeners) assert.deepStrictEqual(says(heard), ["listening", ...expected])
        for (const [i, { heard }] of listeners.entries()) {
          assert.isTrue(heard.every(({ channel }) => channel === channels[i]))
        }
        assert.lengthOf(yield* listening(name, writer), 1)
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("no listener receives its gap before every channel is listened to again", () =>
      Effect.gen(function* () {
        const { context, proxy, writer } = yield* behind()
        const listen = (channel: string) => hear(Stream.provideContext(Db.listen(channel), context))
        const listeners = [yield* listen("a"), yield* listen("b"), yield* listen("c")]
        for (const listener of listeners) yield* count(listener, 1)
        const last = yield* proxy.when(sends('LISTEN "c"'), "freeze")
        yield* proxy.cut
        yield* last
        for (const { heard } of listeners) assert.deepStrictEqual(says(heard), ["listening"])
        yield* proxy.thaw
        for (const listener of listeners) yield* count(listener, 2)
        for (const channel of ["a", "b", "c"]) yield* say(writer, channel, channel)
        for (const [i, listener] of listeners.entries()) {
          yield* count(listener, 3)
          assert.deepStrictEqual(says(listener.heard), ["listening", "gap: disconnected", ["a", "b", "c"][i]])
        }
      })
    )

    it.scopedLive("a half-open connection is detected by a heartbeat without an answer", () =>
      Effect.gen(function* () {
        const { context, proxy, writer } = yield* behind({ listenHeartbeat: "50 millis" })
        const listener = yield* hear(Stream.provideContext(Db.listen("news"), context))
        yield* count(listener, 1)
        const silent = yield* proxy.when(isHeartbeat, "freeze")
        yield* silent
        yield* say(writer, "news", "missed")
        yield* count(listener, 2)
        yield* say(writer, "news", "after")
        yield* count(listener, 3)
        assert.deepStrictEqual(says(listener.heard), ["listening", "gap: disconnected", "after"])
        const gap = listener.heard[1]
        assert.include(gap?._tag === "Gap" ? gap.message : "", "no answer to a heartbeat within 1000 ms")
      })
    )

    it.scopedLive("a connection that answers its heartbeats stays open", () =>
      Effect.gen(function* () {
        const { context, proxy, writer } = yield* behind({ listenHeartbeat: "2 millis" })
        const listener = yield* hear(Stream.provideContext(Db.listen("news"), context))
        yield* count(listener, 1)
        const before = proxy.roundTrips
        yield* until(() => proxy.roundTrips > before + 20)
        yield* say(writer, "news", "still here")
        yield* count(listener, 2)
        assert.deepStrictEqual(says(listener.heard), ["listening", "still here"])
        assert.strictEqual(proxy.accepted, 1)
      })
    )

    it.scopedLive("a connection stays open although the program was too busy to read the answer of a heartbeat", () =>
      Effect.gen(function* () {
        const { context, proxy, writer } = yield* behind({ listenHeartbeat: "20 millis" })
        const listener = yield* hear(Stream.provideContext(Db.listen("news"), context))
        yield* count(listener, 1)
        let isSent = false
        const busy = yield* proxy.when((message) => {
          if (isHeartbeat(message)) isSent = true
          if (!isSent || message.from !== "server") return false
          // the answer has arrived, and the program is too busy to read it
          const since = performance.now()
          while (performance.now() - since < 1200);
          return true
        }, "pass")
        yield* busy
        yield* say(writer, "news", "still here")
        yield* count(listener, 2)
        assert.deepStrictEqual(says(listener.heard), ["listening", "still here"])
        assert.strictEqual(proxy.accepted, 1)
      })
    )

    it.scopedLive("a server that was frozen is listened to again after it is thawed", () =>
      Effect.gen(function* () {
        const { primary } = yield* EmbeddedPostgres.EmbeddedPostgres
        const writer = primary.url("app")
        const options = { writer, listenHeartbeat: "50 millis", connectTimeout: "500 millis" } as const
        yield* Effect.gen(function* () {
          const observed = yield* hear(Db.observations)
          const listener = yield* hear(Db.listen("news"))
          yield* count(listener, 1)
          yield* primary.freeze
          const tags = () => observed.heard.map(({ _tag }) => _tag)
          yield* until(() => tags().includes("ListenLost"))
          yield* primary.thaw
          yield* count(listener, 2)
          yield* say(writer, "news", "after")
          yield* count(listener, 3)
          assert.deepStrictEqual(says(listener.heard), ["listening", "gap: disconnected", "after"])
        }).pipe(Effect.provide(Db.layer(options)))
      }).pipe(Effect.provide(EmbeddedPostgres.EmbeddedPostgres.layer({ databases: ["app"] })))
    )

    it.scopedLive("the observations report the loss, each attempt with its pause, and the end of the outage", () =>
      Effect.gen(function* () {
        const { context, proxy } = yield* behind()
        yield* Effect.gen(function* () {
          const observed = yield* hear(
            Stream.filter(
              Db.observations,
              (_): _ is Extract<Observation.Observation, { readonly _tag: `Listen${string}` }> =>
                _._tag.startsWith("Listen")
            )
          )
          const listener = yield* hear(Db.listen("news"))
          yield* count(listener, 1)
          yield* proxy.refuse
          yield* proxy.cut
          yield* count(observed, 4)
          yield* proxy.accept
          yield* count(listener, 2)
          const [lost, ...rest] = observed.heard
          const restored = rest.pop()
          assert.strictEqual(lost?._tag === "ListenLost" && lost.database, "app")
          assert.isAtLeast(rest.length, 3)
          const pauses = rest.map((one, i) => {
            assert.strictEqual(one._tag === "ListenRetried" && one.attempt, i + 1)
            const pause = one._tag === "ListenRetried" ? one.pauseMillis : 0
            // exponential, with a jitter that takes off up to half
            assert.isAtLeast(pause, 25 * 2 ** i)
            assert.isAtMost(pause, 50 * 2 ** i)
            return pause
          })
          assert.isNotEmpty(pauses)
          assert.strictEqual(restored?._tag === "ListenRestored" && restored.attempts, rest.length)
        }).pipe(Effect.provide(context))
      })
    )

    it.scopedLive("a listener that joins during an outage fails by its own retry policy, or joins without a gap", () =>
      Effect.gen(function* () {
        const { context, proxy, writer } = yield* behind()
        const listen = (channel: string) => Stream.provideContext(Db.listen(channel), context)
        const first = yield* hear(listen("first"))
        yield* count(first, 1)
        yield* proxy.refuse
        yield* proxy.cut
        const refused = yield* Stream.runDrain(listen("second")).pipe(
          RetryPolicy.with({ acquire: Schedule.recurs(2) }),
          Effect.flip
        )
        assert.strictEqual(refused._tag === "ConnectFailed" && refused.reason, "unreachable")
        yield* proxy.accept
        const second = yield* hear(listen("second"))
        yield* count(second, 1)
        yield* say(writer, "second", "x")
        yield* count(second, 2)
        yield* count(first, 2)
        assert.deepStrictEqual(says(second.heard), ["listening", "x"])
        assert.deepStrictEqual(says(first.heard), ["listening", "gap: disconnected"])
      })
    )

    it.scopedLive("a retry policy that ends fails the listeners", () =>
      Effect.gen(function* () {
        const { name, writer } = yield* freshDatabase
        yield* Effect.gen(function* () {
          const ended = yield* Effect.fork(Effect.flip(Stream.runDrain(Db.listen("news"))))
          yield* eventually(listening(name, writer), (pids) => pids.length === 1)
          yield* killListening(name, writer)
          const error = yield* Fiber.join(ended)
          assert.strictEqual(error._tag === "ListenFailed" && error.reason, "disconnected")
          assert.instanceOf(error.cause, DatabaseError.Disconnected)
        }).pipe(Effect.provide(Layer.provide(Db.layer({ writer }), RetryPolicy.layer(RetryPolicy.never))))
      })
    )

    it.scopedLive("a permanent connect error fails all listeners", () =>
      Effect.gen(function* () {
        const { name, writer } = yield* freshDatabase
        yield* query(writer, `CREATE ROLE ${name} LOGIN PASSWORD 'first'`)
        yield* Effect.addFinalizer(() => query(writer, `DROP ROLE ${name}`))
        const url = new URL(Redacted.value(writer))
        url.username = name
        url.password = "first"
        yield* Effect.gen(function* () {
          const listener = yield* hear(Db.listen("news"))
          yield* count(listener, 1)
          yield* query(writer, `ALTER ROLE ${name} PASSWORD 'second'`)
          yield* killListening(name, writer)
          const error = yield* Effect.flip(Effect.flatten(Fiber.join(listener.fiber)))
          assert.strictEqual(error._tag === "ListenFailed" && error.reason, "disconnected")
          const { cause } = error
          assert.strictEqual(cause instanceof DatabaseError.ConnectFailed && cause.reason, "authentication")
        }).pipe(Effect.provide(Db.layer({ writer: Redacted.make(url.href) })))
      })
    )
  })

  describe("views that are refreshed at each gap", () => {
    /**
     * Changes rows over a good network, while a slow fiber keeps a view of them by a listener over a
     * bad one. Checks that the view equals the table in the end.
     */
    const follow = (seed: number) =>
      Effect.gen(function* () {
        const { name, writer } = yield* freshDatabase
        yield* query(writer, "CREATE TABLE row (id int PRIMARY KEY, version int)")
        const proxy = yield* makeProxy(writer)
        const random = randoms(seed)
        const below = (n: number) => Math.floor(random() * n)
        const work = Effect.gen(function* () {
          const sql = yield* Audit.writer
          const view = new Map<number, number>()
          const gaps = { disconnected: 0, overflow: 0 }
          const readAll = Effect.flatMap(sql<{ id: number; version: number }>`SELECT id, version FROM row`, (rows) =>
            Effect.sync(() => {
              view.clear()
              for (const { id, version } of rows) view.set(id, version)
            })
          )
          yield* Effect.forkScoped(
            Stream.runForEach(Db.listen("row", { bufferSize: 8 }), (heard) =>
              Effect.gen(function* () {
                for (let i = below(4); i > 0; i--) yield* turn
                if (heard._tag === "Message") {
                  const [id, version] = heard.payload.split(":").map(Number)
                  view.set(id ?? 0, version ?? 0)
                } else {
                  if (heard._tag === "Gap") gaps[heard.reason]++
                  yield* readAll
                }
              })
            )
          )
          let version = 0
          const change = (id: number) =>
            Effect.suspend(() => {
              version++
              return Audit.withTransaction(
                Effect.zipRight(
                  sql`INSERT INTO row VALUES (${id}, ${version}) ON CONFLICT (id) DO UPDATE SET version = EXCLUDED.version`,
                  Audit.notify("row", `${id}:${version}`)
                )
              )
            })
          const someChanges = Effect.suspend(() =>
            Effect.forEach(
              Array.from({ length: below(12) }, () => 1 + below(50)),
              change,
              { discard: true }
            )
          )
          const lost = Effect.fork(
            Db.observations.pipe(
              Stream.filter(({ _tag }) => _tag === "ListenLost" || _tag === "ListenRetried"),
              Stream.take(1),
              Stream.runDrain
            )
          )
          const all = () => gaps.disconnected + gaps.overflow
          yield* change(0)
          yield* until(() => view.get(0) === version)
          let longFreezes = 1
          for (let round = 0; round < 40; round++) {
            yield* someChanges
            const before = all()
            const fault = below(7)
            switch (fault) {
              case 0:
                yield* proxy.cut
                break
              case 1:
                yield* proxy.refuse
                yield* proxy.cut
                yield* someChanges
                yield* proxy.accept
                break
              case 2:
                yield* proxy.freeze
                yield* someChanges
                yield* proxy.thaw
                break
              case 3: {
                yield* proxy.freeze
                if (longFreezes-- > 0) {
                  const noticed = yield* lost
                  yield* someChanges
                  yield* Fiber.join(noticed)
                }
                yield* proxy.cut
                yield* someChanges
                yield* proxy.thaw
                break
              }
              case 4:
                yield* sql`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ${name} AND query ~ '^(UN)?(LISTEN|NOTIFY)'`
                break
              case 5:
                // one statement, because messages of several are received one by one, without an overflow
                yield* sql`SELECT pg_notify('row', '0:' || n) FROM generate_series(1, 20) AS n`
                break
              case 6:
                yield* Db.invalidate()
                yield* someChanges
                break
            }
            // the next fault occurs after the recovery, or in the middle of it
            if (fault !== 2 && fault !== 6 && below(2) === 0) {
              yield* until(() => all() > before)
            }
          }
          const catchUp = Effect.suspend(() =>
            Effect.zipRight(
              change(0),
              until(() => view.get(0) === version)
            )
          )
          yield* catchUp
          // the messages of the rounds may all have come during outages, without an overflow
          yield* sql`SELECT pg_notify('row', '0:' || n) FROM generate_series(1, 20) AS n`
          yield* until(() => gaps.overflow > 0)
          yield* catchUp
          const rows = yield* query<{ id: number; version: number }>(writer, "SELECT id, version FROM row")
          assert.deepStrictEqual(view, new Map(rows.map(({ id, version }) => [id, version])))
          assert.isAbove(gaps.disconnected, 3)
          assert.isAbove(gaps.overflow, 0)
        })
        const databases = Layer.merge(
          Audit.layer({ writer }),
          Layer.provide(
            Db.layer({
              writer: proxy.url,
              startup: "lazy",
              listenHeartbeat: "20 millis",
              connectTimeout: "300 millis"
            }),
            RetryPolicy.layer({ ...RetryPolicy.defaultPolicy, listen: Schedule.spaced("3 millis") })
          )
        )
        yield* Effect.provide(work, databases)
      })

    for (const seed of [1, 2, 3, 4, 5])
      it.scopedLive(`a view that is read at each gap equals its table in the end (seed ${seed})`, () => follow(seed))
  })
})
