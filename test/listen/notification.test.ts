import { execFile } from "node:child_process"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { DatabaseError, EmbeddedPostgres, type Notification, type Observation, RetryPolicy } from "effect-db"
import { describe } from "vitest"
import { behindBouncer, hasBouncer, makeBouncer } from "../support/bouncer.js"
import { Audit, Db, fresh, insert, Place, soon, stored } from "../support/databases.js"
import { turn } from "../support/eventually.js"
import { type Message, makeProxy, sends } from "../support/proxy.js"
import { randoms } from "../support/random.js"
import { anonymous, freshRole, Provider } from "../support/roles.js"
import { freshDatabase, query } from "../support/server.js"

/** Reads a stream in the background, for as long as the scope lasts. */
const hear = <A, E, R>(stream: Stream.Stream<A, E, R>) =>
  Effect.gen(function* () {
    const heard: Array<A> = []
    const fiber = yield* Effect.forkScoped(
      Stream.runForEach(stream, (one) => Effect.sync(() => void heard.push(one))).pipe(Effect.exit)
    )
    return { heard, fiber }
  })

/** Waits until that many values have arrived; ends early if the stream did. */
const count = <A, E>(
  { fiber, heard }: { readonly heard: ReadonlyArray<A>; readonly fiber: Fiber.Fiber<Exit.Exit<void, E>> },
  n: number
) =>
  Effect.repeat(Fiber.poll(fiber), {
    schedule: soon,
    until: (ended) => heard.length >= n || ended._tag === "Some"
  }).pipe(Effect.as(heard))

/** Returns a value in short: its text. */
const short = (one: Notification.Notification): string =>
  one._tag === "Message" ? one.payload : one._tag === "Gap" ? `gap: ${one.reason}` : "listening"

const says = (heard: ReadonlyArray<Notification.Notification>) => heard.map(short)

type Url = Redacted.Redacted<string>

/** Sends payloads by a session that is neither the database's nor behind its proxy. */
const say = (writer: Url, channel: string, ...payloads: ReadonlyArray<string>) =>
  Effect.forEach(payloads, (payload) => query(writer, "SELECT pg_notify($1, $2)", [channel, payload]), {
    discard: true
  })

/** Returns the processes of sessions that listen, or have listened. */
const listening = (name: string, writer: Url) =>
  Effect.map(
    query<{ pid: number }>(
      writer,
      "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND query ~ '^(UN)?LISTEN' ORDER BY pid",
      [name]
    ),
    (rows) => rows.map(({ pid }) => pid)
  )

/** Ends the one session that listens, and waits until it is gone. */
const killListening = (name: string, writer: Url) =>
  Effect.flatMap(listening(name, writer), (pids) => {
    assert.lengthOf(pids, 1)
    return query(writer, "SELECT pg_terminate_backend($1, 10000)", [pids[0]])
  })

/** Checks if a message is nothing but a probe: a Sync on its own. */
const asksForLife = ({ from, type }: Message) => from === "client" && type === "S"

/** Opens a database behind a proxy, with no connection but those that listen. */
const behind = (options: Partial<Parameters<typeof Db.layer>[0]> = {}) =>
  Effect.gen(function* () {
    const { name, writer } = yield* freshDatabase
    const proxy = yield* makeProxy(writer)
    const context = yield* Layer.build(Db.layer({ writer: proxy.url, startup: "lazy", ...options }))
    return { name, writer, proxy, context }
  })

/** Interrupts a fiber and returns the duration in ms. */
const interruption = <A, E>(fiber: Fiber.Fiber<A, E>) =>
  Effect.map(Effect.timed(Fiber.interrupt(fiber)), ([took]) => Duration.toMillis(took))

describe("Notification", () => {
  describe("messages", () => {
    it.scopedLive("a listener receives first that it listens, then every message, in order", () =>
      Effect.gen(function* () {
        const { writer } = yield* Place
        const one = yield* hear(Db.listen("news"))
        const two = yield* hear(Db.listen("news"))
        yield* count(one, 1)
        yield* count(two, 1)
        yield* say(writer, "news", "a", "", "b")
        yield* Db.notify("news")
        for (const listener of [one, two]) {
          yield* count(listener, 5)
          assert.deepStrictEqual(says(listener.heard), ["listening", "a", "", "b", ""])
        }
        const processes = one.heard.flatMap((_) => (_._tag === "Message" ? [_.processId] : []))
        assert.deepStrictEqual([...new Set(processes)].length, 4)
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("no message is missed between the tables' contents at the start and the first message", () =>
      Effect.gen(function* () {
        const { writer } = yield* Place
        yield* query(writer, "CREATE TABLE counter AS SELECT 0 AS n")
        const count = Effect.flatMap(Audit.writer, (sql) =>
          Audit.withTransaction(
            Effect.gen(function* () {
              const [row] = yield* sql<{ n: number }>`UPDATE counter SET n = n + 1 RETURNING n`
              yield* Audit.notify("counter", `${row?.n}`)
            })
          )
        )
        yield* Effect.gen(function* () {
          yield* Effect.forkScoped(Effect.forever(count))
          const sql = yield* Db.writer
          for (let i = 0; i < 20; i++) {
            // the one before was the last, so each of them connects, and listens, anew
            const heard = yield* Db.listen("counter").pipe(
              Stream.mapEffect((one) =>
                one._tag === "Message"
                  ? Effect.succeed(Number(one.payload))
                  : Effect.map(sql<{ n: number }>`SELECT n FROM counter`, ([row]) => row?.n ?? 0)
              ),
              Stream.take(6),
              Stream.runCollect
            )
            const [stored = 0, ...messages] = heard
            const [first = 0] = messages
            assert.isAtMost(first, stored + 1)
            assert.deepStrictEqual(
              messages,
              [0, 1, 2, 3, 4].map((n) => first + n)
            )
          }
        }).pipe(Effect.provide(Audit.layer({ writer })))
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("a message sent in a transaction arrives on its commit, and not at all if it is rolled back", () =>
      Effect.gen(function* () {
        const { writer } = yield* Place
        const sql = yield* Db.writer
        const listener = yield* hear(Db.listen("news"))
        yield* count(listener, 1)
        yield* Effect.ignore(Db.withTransaction(Effect.zipRight(Db.notify("news", "undone"), Effect.fail("no"))))
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* Db.notify("news", "kept")
            yield* Effect.ignore(Db.withTransaction(Effect.zipRight(Db.notify("news", "nested"), Effect.fail("no"))))
            yield* sql.notify("news", "it's also kept")
            yield* say(writer, "news", "before the commit")
            yield* count(listener, 2)
          })
        )
        yield* count(listener, 4)
        assert.deepStrictEqual(says(listener.heard), ["listening", "before the commit", "kept", "it's also kept"])
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("channels of any name that the server accepts are separate", () =>
      Effect.gen(function* () {
        const names = ["news", "News", 'a "b"; c', "it's", "ü".repeat(31), "x".repeat(63)]
        const listeners = yield* Effect.forEach(names, (name) => hear(Db.listen(name)))
        for (const listener of listeners) yield* count(listener, 1)
        for (const name of names) yield* Db.notify(name, `to ${name}`)
        for (const [i, listener] of listeners.entries()) {
          yield* count(listener, 2)
          assert.deepStrictEqual(says(listener.heard), ["listening", `to ${names[i]}`])
        }
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("a channel that no server accepts is refused before it is sent, and harms no transaction", () =>
      Effect.gen(function* () {
        for (const name of ["", "a\0b", "x".repeat(64), "ü".repeat(32), "\ud800"]) {
          const errors = [
            yield* Effect.flip(Stream.runDrain(Db.listen(name))),
            yield* Effect.flip(Db.notify(name, "x")),
            yield* (yield* Db.writer).listen(name).pipe(Stream.runDrain, DatabaseError.refine, Effect.flip)
          ]
          for (const error of errors) assert.strictEqual(error._tag === "NotificationInvalid" && error.part, "channel")
        }
        yield* Db.withTransaction(
          Effect.gen(function* () {
            yield* insert("kept")
            for (const payload of ["x".repeat(8000), "ü".repeat(4000), "a\0b"]) {
              const error = yield* Effect.flip(Db.notify("news", payload))
              assert.strictEqual(error._tag === "NotificationInvalid" && error.part, "payload")
            }
            yield* Db.notify("news", "x".repeat(7999))
          })
        )
        assert.deepStrictEqual(yield* stored, ["kept"])
      }).pipe(Effect.provide(fresh()))
    )
  })

  describe("a lost connection of listeners", () => {
    it.scopedLive("a lost connection is replaced, and what was sent meanwhile is a gap before the next message", () =>
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

    it.scopedLive("a connection may be lost 20 times in a row, with several listeners, one of them always new", () =>
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

    it.scopedLive("no message is delivered before every channel is listened to again", () =>
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

    it.scopedLive("a half-open connection is detected by its silence", () =>
      Effect.gen(function* () {
        const { context, proxy, writer } = yield* behind({ listenHeartbeat: "50 millis" })
        const listener = yield* hear(Stream.provideContext(Db.listen("news"), context))
        yield* count(listener, 1)
        const silent = yield* proxy.when(asksForLife, "freeze")
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

    it.scopedLive("a connection that answers stays open, however often it is probed", () =>
      Effect.gen(function* () {
        const { context, proxy, writer } = yield* behind({ listenHeartbeat: "2 millis" })
        const listener = yield* hear(Stream.provideContext(Db.listen("news"), context))
        yield* count(listener, 1)
        const before = proxy.roundTrips
        yield* Effect.repeat(Effect.void, { schedule: soon, until: () => proxy.roundTrips > before + 20 })
        yield* say(writer, "news", "still here")
        yield* count(listener, 2)
        assert.deepStrictEqual(says(listener.heard), ["listening", "still here"])
        assert.strictEqual(proxy.accepted, 1)
      })
    )

    it.scopedLive("a connection stays open although the program was too busy to read the answer", () =>
      Effect.gen(function* () {
        const { context, proxy, writer } = yield* behind({ listenHeartbeat: "20 millis" })
        const listener = yield* hear(Stream.provideContext(Db.listen("news"), context))
        yield* count(listener, 1)
        let asked = false
        const busy = yield* proxy.when((message) => {
          if (asksForLife(message)) asked = true
          if (!asked || message.from !== "server") return false
          // the answer is here, and the program is too busy to read it
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

    it.scopedLive("a server that is stopped, in the middle of everything, is listened to again when it goes on", () =>
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
          yield* Effect.repeat(Effect.void, { schedule: soon, until: () => tags().includes("ListenLost") })
          yield* primary.thaw
          yield* count(listener, 2)
          yield* say(writer, "news", "after")
          yield* count(listener, 3)
          assert.deepStrictEqual(says(listener.heard), ["listening", "gap: disconnected", "after"])
        }).pipe(Effect.provide(Db.layer(options)))
      }).pipe(Effect.provide(EmbeddedPostgres.EmbeddedPostgres.layer({ databases: ["app"] })))
    )

    it.scopedLive("the loss is reported, and each attempt with its pause, and the end of the outage", () =>
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
          const longest = rest.map((one, i) => {
            assert.strictEqual(one._tag === "ListenRetried" && one.attempt, i + 1)
            const pause = one._tag === "ListenRetried" ? one.pauseMillis : 0
            // exponential, with up to half of it less
            assert.isAtLeast(pause, 25 * 2 ** i)
            assert.isAtMost(pause, 50 * 2 ** i)
            return pause
          })
          assert.isNotEmpty(longest)
          assert.strictEqual(restored?._tag === "ListenRestored" && restored.attempts, rest.length)
        }).pipe(Effect.provide(context))
      })
    )

    it.scopedLive("a listener that joins during the outage does not wait for others' pauses, nor gets a gap", () =>
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
          yield* Effect.repeat(listening(name, writer), { schedule: soon, until: (pids) => pids.length === 1 })
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

  describe("the first LISTEN", () => {
    it.scopedLive("the first LISTEN fails as a statement does if it cannot succeed", () =>
      Effect.gen(function* () {
        const { reader, writer } = yield* freshDatabase
        const proxy = yield* makeProxy(writer)
        yield* proxy.refuse
        const changed = (change: (url: URL) => void) => {
          const url = new URL(Redacted.value(writer))
          change(url)
          return Redacted.make(url.href)
        }
        const cases = [
          [
            changed((url) => {
              url.password = "wrong"
            }),
            "authentication",
            0
          ],
          [
            changed((url) => {
              url.pathname = "/not_there"
            }),
            "noSuchDatabase",
            0
          ],
          [proxy.url, "unreachable", 2],
          [reader, "wrongRole", 2]
        ] as const
        for (const [url, reason, retries] of cases) {
          yield* Effect.gen(function* () {
            const observed = yield* hear(Stream.filter(Db.observations, ({ _tag }) => _tag === "Retried"))
            yield* Effect.yieldNow()
            const error = yield* Stream.runDrain(Db.listen("news")).pipe(
              RetryPolicy.with({ acquire: Schedule.recurs(2) }),
              Effect.flip
            )
            assert.strictEqual(error._tag === "ConnectFailed" && error.reason, reason)
            yield* count(observed, retries)
            assert.lengthOf(observed.heard, retries)
          }).pipe(Effect.provide(Db.layer({ writer: url, startup: "lazy" })), Effect.scoped)
        }
      })
    )

    it.scopedLive("the first LISTEN has the time of a checkout in all", () =>
      Effect.gen(function* () {
        const { context, proxy } = yield* behind({ acquireTimeout: "300 millis" })
        yield* proxy.freeze
        const [took, error] = yield* Stream.runDrain(Db.listen("news")).pipe(
          Effect.flip,
          Effect.provide(context),
          Effect.timed
        )
        assert.strictEqual(error._tag === "ConnectFailed" && error.reason, "unresponsive")
        assert.isBelow(Duration.toMillis(took), 1300)
      })
    )

    it.scopedLive("the first LISTEN is retried if the connection is lost meanwhile", () =>
      Effect.gen(function* () {
        const { context, proxy, writer } = yield* behind()
        yield* proxy.when(sends("LISTEN"), "cut", 2)
        const listener = yield* hear(Stream.provideContext(Db.listen("news"), context))
        yield* count(listener, 1)
        yield* say(writer, "news", "x")
        yield* count(listener, 2)
        assert.deepStrictEqual(says(listener.heard), ["listening", "x"])
        assert.strictEqual(proxy.accepted, 3)
      })
    )
  })

  describe.skipIf(!hasBouncer)(behindBouncer, () => {
    // a pooler can only ignore the parameters that a session receives at login
    const told = { ignore_startup_parameters: "options,extra_float_digits" }
    it.scopedLive("a listener in transaction mode fails, because no notification can arrive there", () =>
      Effect.gen(function* () {
        const { writer } = yield* freshDatabase
        const { url: pooled } = yield* makeBouncer(writer, told)
        yield* Effect.gen(function* () {
          const error = yield* Effect.flip(Stream.runDrain(Db.listen("news")))
          assert.strictEqual(error._tag === "ConfigInvalid" && error.setting, "writer")
          const again = yield* (yield* Db.writer)
            .listen("news")
            .pipe(Stream.runDrain, DatabaseError.refine, Effect.flip)
          assert.strictEqual(again._tag, "ConfigInvalid")
        }).pipe(Effect.provide(Db.layer({ writer: pooled, startup: "lazy", connectTimeout: "1 second" })))
      })
    )

    it.scopedLive("a listener in session mode receives messages, also after a loss", () =>
      Effect.gen(function* () {
        const { name, writer } = yield* freshDatabase
        const { url: pooled } = yield* makeBouncer(writer, { ...told, pool_mode: "session" })
        yield* Effect.gen(function* () {
          const listener = yield* hear(Db.listen("news"))
          yield* count(listener, 1)
          yield* say(writer, "news", "before")
          yield* count(listener, 2)
          // the channel of the probe is not listened to any more
          yield* Effect.repeat(
            query(writer, "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND query LIKE 'UNLISTEN%'", [name]),
            { schedule: soon, until: (rows) => rows.length === 1 }
          )
          yield* killListening(name, writer)
          yield* count(listener, 3)
          yield* say(writer, "news", "after")
          yield* count(listener, 4)
          assert.deepStrictEqual(says(listener.heard), ["listening", "before", "gap: disconnected", "after"])
        }).pipe(Effect.provide(Db.layer({ writer: pooled, startup: "lazy", listenHeartbeat: "20 millis" })))
      })
    )
  })

  describe("the independence of listeners", () => {
    it.scopedLive("a slow listener loses what does not fit, receives a gap, and does not affect the others", () =>
      Effect.gen(function* () {
        const { writer } = yield* Place
        const observed = yield* hear(Stream.filter(Db.observations, ({ _tag }) => _tag === "ListenOverflowed"))
        const goOn = yield* Deferred.make<void>()
        const slow = yield* hear(Stream.tap(Db.listen("news", { bufferSize: 3 }), () => Deferred.await(goOn)))
        const quick = yield* hear(Db.listen("news", { bufferSize: 5000 }))
        yield* count(quick, 1)
        yield* query(writer, "SELECT pg_notify('news', n::text) FROM generate_series(1, 5000) AS n")
        yield* count(quick, 5001)
        yield* say(writer, "news", "5001")
        yield* count(quick, 5002)
        assert.deepStrictEqual(
          says(quick.heard),
          ["listening"].concat(Array.from({ length: 5001 }, (_, i) => `${i + 1}`))
        )
        yield* Deferred.succeed(goOn, undefined)
        yield* count(slow, 5)
        yield* say(writer, "news", "after")
        yield* count(slow, 6)
        assert.deepStrictEqual(says(slow.heard), ["listening", "1", "2", "3", "gap: overflow", "after"])
        yield* count(observed, 1)
        assert.lengthOf(observed.heard, 1)
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("a slow listener receives a gap where messages are missing, and adjacent gaps as one", () =>
      Effect.gen(function* () {
        const { name, writer } = yield* Place
        const goOn = yield* Deferred.make<void>()
        const held = (bufferSize: number) =>
          hear(Stream.tap(Db.listen("news", { bufferSize }), () => Deferred.await(goOn)))
        const [slow, full] = [yield* held(10), yield* held(1)]
        const quick = yield* hear(Db.listen("news"))
        yield* count(quick, 1)
        yield* say(writer, "news", "1", "2")
        yield* count(quick, 3)
        yield* killListening(name, writer)
        yield* count(quick, 4)
        yield* killListening(name, writer)
        yield* count(quick, 5)
        yield* say(writer, "news", "3")
        yield* count(quick, 6)
        yield* killListening(name, writer)
        yield* count(quick, 7)
        yield* Deferred.succeed(goOn, undefined)
        yield* count(slow, 6)
        yield* count(full, 3)
        yield* say(writer, "news", "4")
        for (const listener of [slow, full]) yield* count(listener, listener === slow ? 7 : 4)
        yield* count(quick, 8)
        const gap = "gap: disconnected"
        assert.deepStrictEqual(says(quick.heard), ["listening", "1", "2", gap, gap, "3", gap, "4"])
        assert.deepStrictEqual(says(slow.heard), ["listening", "1", "2", gap, "3", gap, "4"])
        assert.deepStrictEqual(says(full.heard), ["listening", "1", "gap: overflow", "4"])
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("a channel is unlistened by its last listener, and the connection is closed by the last of all", () =>
      Effect.gen(function* () {
        const { context, name, proxy, writer } = yield* behind({ startup: "lazy" })
        const listen = (channel: string) => hear(Stream.provideContext(Db.listen(channel), context))
        const [one, two, other] = yield* Effect.all([listen("shared"), listen("shared"), listen("other")])
        for (const listener of [one, two, other]) yield* count(listener, 1)
        const seen: Array<string> = []
        const unlisten = yield* proxy.when((message) => {
          if (sends("UNLISTEN")(message)) seen.push(message.bytes.toString("latin1", 5, message.bytes.length - 1))
          return sends('UNLISTEN "shared"')(message)
        }, "pass")
        yield* Fiber.interrupt(one.fiber)
        yield* say(writer, "shared", "x")
        yield* count(two, 2)
        assert.deepStrictEqual(seen, [])
        yield* Fiber.interrupt(two.fiber)
        yield* unlisten
        yield* say(writer, "other", "x")
        yield* count(other, 2)
        // it can be listened to again
        const again = yield* listen("shared")
        yield* count(again, 1)
        yield* say(writer, "shared", "y")
        yield* count(again, 2)
        assert.deepStrictEqual(says(again.heard), ["listening", "y"])
        assert.strictEqual(proxy.accepted, 1)
        yield* Fiber.interrupt(again.fiber)
        yield* Fiber.interrupt(other.fiber)
        yield* Effect.repeat(listening(name, writer), { schedule: soon, until: (pids) => pids.length === 0 })
        yield* Effect.repeat(Effect.void, { schedule: soon, until: () => proxy.connections === 0 })
      })
    )

    it.scopedLive("a listener that is interrupted while it joins takes nothing from the others", () =>
      Effect.gen(function* () {
        const { context, proxy, writer } = yield* behind()
        const listen = (channel: string) => Stream.provideContext(Db.listen(channel), context)
        const first = yield* hear(listen("first"))
        yield* count(first, 1)
        const joining = yield* proxy.when(sends('LISTEN "second"'), "freeze")
        const second = yield* Effect.fork(Stream.runDrain(listen("second")))
        yield* joining
        assert.isBelow(yield* interruption(second), 1000)
        yield* proxy.thaw
        yield* say(writer, "first", "still here")
        yield* count(first, 2)
        assert.deepStrictEqual(says(first.heard), ["listening", "still here"])
        assert.strictEqual(proxy.accepted, 1)
      })
    )

    it.scopedLive("a LISTEN that is not answered costs the others a gap, not their messages", () =>
      Effect.gen(function* () {
        const { context, proxy, writer } = yield* behind({ connectTimeout: "300 millis" })
        const listen = (channel: string) => Stream.provideContext(Db.listen(channel), context)
        const first = yield* hear(listen("first"))
        yield* count(first, 1)
        yield* proxy.when(sends('LISTEN "second"'), "freeze")
        const second = yield* hear(listen("second"))
        yield* count(second, 1)
        yield* count(first, 2)
        yield* say(writer, "first", "still here")
        yield* count(first, 3)
        assert.deepStrictEqual(says(first.heard), ["listening", "gap: disconnected", "still here"])
        assert.deepStrictEqual(says(second.heard), ["listening"])
      })
    )
  })

  describe("interruptions of listeners", () => {
    /**
     * Opens a database behind a proxy; after the interruption the network is well again, and so are
     * all others.
     */
    const given = Effect.gen(function* () {
      const { context, proxy, writer } = yield* behind()
      const stream = (channel: string) => Stream.provideContext(Db.listen(channel), context)
      return {
        proxy,
        /** Starts a listener that is to join. */
        join: (channel: string) => Effect.fork(Stream.runDrain(stream(channel))),
        /** Starts a listener and waits until it has joined. */
        joined: (channel: string) => Effect.tap(hear(stream(channel)), (listener) => count(listener, 1)),
        /**
         * Interrupts it; when the network is well again, `other` receives messages, or no client is
         * connected any more.
         */
        interrupt: <A, E>(
          fiber: Fiber.Fiber<A, E>,
          other?: { readonly heard: ReadonlyArray<Notification.Notification> }
        ) =>
          Effect.gen(function* () {
            assert.isBelow(yield* interruption(fiber), 1000)
            yield* proxy.thaw
            yield* other === undefined
              ? Effect.repeat(Effect.void, { schedule: soon, until: () => proxy.connections === 0 })
              : Effect.repeat(say(writer, "other", "x"), {
                  schedule: soon,
                  until: () => says(other.heard).includes("x")
                })
          })
      }
    })

    it.scopedLive("an interruption in the middle of a connect settles at once", () =>
      Effect.gen(function* () {
        const { interrupt, join, proxy } = yield* given
        const connecting = yield* proxy.when(({ type }) => type === "startup", "freeze")
        const fiber = yield* join("news")
        yield* connecting
        yield* interrupt(fiber)
      })
    )

    it.scopedLive("an interruption in the middle of the first LISTEN settles at once", () =>
      Effect.gen(function* () {
        const { interrupt, join, proxy } = yield* given
        const joining = yield* proxy.when(sends("LISTEN"), "freeze")
        const fiber = yield* join("news")
        yield* joining
        yield* interrupt(fiber)
      })
    )

    it.scopedLive("an interruption while the listener waits for messages on a half-open socket settles at once", () =>
      Effect.gen(function* () {
        const { interrupt, joined, proxy } = yield* given
        const { fiber } = yield* joined("news")
        yield* proxy.freeze
        yield* interrupt(fiber)
      })
    )

    it.scopedLive("an interruption in the middle of UNLISTEN settles at once", () =>
      Effect.gen(function* () {
        const { interrupt, joined, proxy } = yield* given
        const other = yield* joined("other")
        const one = yield* joined("one")
        const two = yield* joined("two")
        const leaving = yield* proxy.when(sends("UNLISTEN"), "freeze")
        assert.isBelow(yield* interruption(one.fiber), 1000)
        yield* leaving
        yield* interrupt(two.fiber, other)
      })
    )

    it.scopedLive("an interruption in the pause before another attempt, and in the middle of it, settles at once", () =>
      Effect.gen(function* () {
        const { interrupt, joined, proxy } = yield* given
        const other = yield* joined("other")
        const one = yield* joined("one")
        const two = yield* joined("two")
        const connecting = yield* proxy.when(({ type }) => type === "startup", "freeze")
        yield* proxy.cut
        assert.isBelow(yield* interruption(one.fiber), 1000)
        yield* connecting
        yield* interrupt(two.fiber, other)
      })
    )

    it.scopedLive("an interruption in the middle of a repeated LISTEN settles at once", () =>
      Effect.gen(function* () {
        const { interrupt, joined, proxy } = yield* given
        const other = yield* joined("other")
        const one = yield* joined("one")
        const again = yield* proxy.when(sends("LISTEN"), "freeze")
        yield* proxy.cut
        yield* again
        yield* interrupt(one.fiber, other)
      })
    )
  })

  describe("views that are refreshed at each gap", () => {
    /**
     * Changes rows through a good network; the fiber that follows them has a bad one, and takes its
     * time.
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
          yield* Effect.repeat(Effect.void, { schedule: soon, until: () => view.get(0) === version })
          let long = 1
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
                if (long-- > 0) {
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
                // consecutive rounds would be received one by one
                yield* sql`SELECT pg_notify('row', '0:' || n) FROM generate_series(1, 20) AS n`
                break
              case 6:
                yield* Db.invalidate()
                yield* someChanges
                break
            }
            // the next disaster hits it when it is well, or while it recovers
            if (fault !== 2 && fault !== 6 && below(2) === 0) {
              yield* Effect.repeat(Effect.void, { schedule: soon, until: () => all() > before })
            }
          }
          const isHeard = Effect.suspend(() =>
            Effect.zipRight(
              change(0),
              Effect.repeat(Effect.void, { schedule: soon, until: () => view.get(0) === version })
            )
          )
          yield* isHeard
          // the messages of the rounds may all have come while it recovered
          yield* sql`SELECT pg_notify('row', '0:' || n) FROM generate_series(1, 20) AS n`
          yield* Effect.repeat(Effect.void, { schedule: soon, until: () => gaps.overflow > 0 })
          yield* isHeard
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
      it.scopedLive(`a view that is read anew at each gap is never stale for good (seed ${seed})`, () => follow(seed))
  })

  describe("the replacement of the listening connection", () => {
    /**
     * Delays the mark so that it arrives on the other connection than the one that it was sent on.
     */
    const marks = () => {
      let sender = 0
      return (message: Message) => {
        if (sends('NOTIFY "effect_db_')(message)) sender = message.connection
        return message.type === "A" && message.bytes.includes("effect_db_") && message.connection !== sender
      }
    }

    /**
     * Opens a database behind a proxy, with a user that changes, two listeners, and a sender that
     * counts all the time.
     */
    const given = (options: Partial<Parameters<typeof Db.layer>[0]> = {}) =>
      Effect.gen(function* () {
        const { name, writer } = yield* freshDatabase
        const [a, b] = [yield* freshRole(writer), yield* freshRole(writer)]
        const provider = new Provider(a)
        const proxy = yield* makeProxy(anonymous(writer))
        const { credentials } = provider
        const context = yield* Layer.build(
          Db.layer({ writer: proxy.url, startup: "lazy", connectTimeout: "1 second", credentials, ...options })
        )
        const listen = (channel: string) => hear(Stream.provideContext(Db.listen(channel), context))
        const counter = Effect.gen(function* () {
          let n = 0
          let isOver = false
          const next = Effect.suspend(() => Effect.zipRight(say(writer, "news", `${++n}`), say(writer, "more", `${n}`)))
          const counting = yield* Effect.forkScoped(Effect.repeat(next, { until: () => isOver }))
          /**
           * Waits until all messages have arrived, and checks that they came in order, from the
           * first one on, once.
           */
          return (...listeners: ReadonlyArray<{ readonly heard: ReadonlyArray<Notification.Notification> }>) =>
            Effect.gen(function* () {
              isOver = true
              yield* Fiber.join(counting)
              for (const { heard } of listeners) {
                yield* Effect.repeat(Effect.void, { schedule: soon, until: () => says(heard).includes(`${n}`) })
                const [first, ...rest] = says(heard)
                assert.strictEqual(first, "listening")
                assert.isAbove(rest.length, 2)
                assert.deepStrictEqual(
                  rest,
                  rest.map((_, i) => `${n - rest.length + 1 + i}`)
                )
              }
            })
        })
        /** The users of the sessions that listen. */
        const users = Effect.map(
          query<{ user: string }>(
            writer,
            "SELECT usename AS user FROM pg_stat_activity WHERE datname = $1 AND query ~ '^(UN)?(LISTEN|NOTIFY)'",
            [name]
          ),
          (rows) => rows.map(({ user }) => user)
        )
        /** Changes the credentials; the database receives them with its next connection. */
        const rotate = Effect.gen(function* () {
          provider.use(b)
          yield* Effect.provide(
            Effect.flatMap(Db.writer, (sql) => sql`SELECT 1`),
            context
          )
        })
        const invalidate = (mode: "soft" | "hard") => Effect.provide(Db.invalidate({ mode }), context)
        const until = (user: string) =>
          Effect.repeat(users, { schedule: soon, until: (all) => all.length === 1 && all[0] === user })
        return { a, b, context, counter, invalidate, listen, name, provider, proxy, rotate, until, writer }
      })

    for (const heartbeat of ["1 minute", "2 millis"] as const) {
      it.scopedLive(
        `a replacement after a change of credentials misses nothing and delivers nothing twice, checked every ${heartbeat}`,
        () =>
          Effect.gen(function* () {
            const { b, counter, listen, rotate, until } = yield* given({ listenHeartbeat: heartbeat })
            const news = yield* listen("news")
            const more = yield* listen("more")
            const all = yield* counter
            yield* count(news, 5)
            yield* count(more, 5)
            yield* rotate
            yield* until(b.name)
            const before = news.heard.length
            yield* count(news, before + 5)
            yield* all(news, more)
          })
      )
    }

    it.scopedLive("a replacement at a soft invalidation works repeatedly", () =>
      Effect.gen(function* () {
        const { counter, invalidate, listen, name, writer } = yield* given({ connectTimeout: "100 millis" })
        const news = yield* listen("news")
        const more = yield* listen("more")
        const all = yield* counter
        yield* count(news, 5)
        yield* count(more, 5)
        for (let i = 0; i < 5; i++) {
          const before = yield* listening(name, writer)
          assert.strictEqual(yield* invalidate("soft"), 1)
          yield* Effect.repeat(listening(name, writer), {
            schedule: soon,
            until: (pids) => pids.length === 1 && pids[0] !== before[0]
          })
        }
        yield* all(news, more)
      })
    )

    it.scopedLive("a replacement at a hard invalidation is a gap", () =>
      Effect.gen(function* () {
        const { invalidate, listen, writer } = yield* given()
        const news = yield* listen("news")
        yield* count(news, 1)
        assert.strictEqual(yield* invalidate("hard"), 1)
        yield* count(news, 2)
        yield* say(writer, "news", "after")
        yield* count(news, 3)
        assert.deepStrictEqual(says(news.heard), ["listening", "gap: disconnected", "after"])
      })
    )

    it.scopedLive("a new connection that was made with credentials that changed meanwhile is replaced again", () =>
      Effect.gen(function* () {
        const { b, listen, proxy, rotate, until } = yield* given()
        const loggedIn = yield* proxy.when(({ from, type }) => from === "server" && type === "Z", "freeze")
        const news = yield* listen("news")
        yield* loggedIn
        yield* rotate
        yield* proxy.thaw
        yield* count(news, 1)
        yield* until(b.name)
        assert.deepStrictEqual(says(news.heard), ["listening"])
      })
    )

    it.scopedLive("a replacement that cannot be made is delayed, and the old connection goes on until then", () =>
      Effect.gen(function* () {
        const { b, counter, invalidate, listen, proxy, provider, until } = yield* given()
        const news = yield* listen("news")
        const all = yield* counter
        yield* count(news, 5)
        const asked = provider.asked
        provider.answer = Effect.fail("no")
        yield* invalidate("soft")
        yield* Effect.repeat(Effect.void, { schedule: soon, until: () => provider.asked > asked })
        const before = news.heard.length
        yield* count(news, before + 5)
        provider.use(b)
        yield* until(b.name)
        yield* all(news)
        assert.strictEqual(proxy.connections, 1)
      })
    )

    it.scopedLive("a replacement includes the listeners that join and leave meanwhile", () =>
      Effect.gen(function* () {
        const { b, counter, listen, proxy, rotate, until, writer } = yield* given()
        const news = yield* listen("news")
        const leaving = yield* listen("other")
        yield* count(leaving, 1)
        const all = yield* counter
        yield* count(news, 5)
        const crossing = yield* proxy.when(sends('NOTIFY "effect_db_'), "freeze")
        yield* rotate
        yield* crossing
        const more = yield* listen("more")
        const again = yield* listen("other")
        yield* Fiber.interrupt(leaving.fiber)
        yield* proxy.thaw
        yield* until(b.name)
        yield* count(more, 5)
        yield* count(again, 1)
        yield* say(writer, "other", "x")
        yield* count(again, 2)
        assert.deepStrictEqual(says(again.heard), ["listening", "x"])
        yield* all(news, more)
      })
    )

    /** The faults that occur when the mark is sent. */
    const losses: ReadonlyArray<readonly [string, (message: Message) => boolean, "cut" | "freeze"]> = [
      ["the old one is lost", sends('NOTIFY "effect_db_'), "cut"],
      ["it is silent", marks(), "freeze"],
      ["it is lost", marks(), "cut"]
    ]
    for (const [what, when, verdict] of losses) {
      it.scopedLive(`a replacement with ${what} in the middle has one gap at most, and delivers nothing twice`, () =>
        Effect.gen(function* () {
          const { b, counter, listen, proxy, rotate, until } = yield* given()
          const news = yield* listen("news")
          yield* counter
          yield* count(news, 5)
          const crossing = yield* proxy.when(when, verdict)
          yield* rotate
          yield* crossing
          yield* Effect.repeat(Effect.void, {
            schedule: soon,
            until: () => says(news.heard).includes("gap: disconnected")
          })
          yield* proxy.thaw
          yield* until(b.name)
          const before = news.heard.length
          yield* count(news, before + 5)
          const heard = says(news.heard)
          assert.lengthOf(
            heard.filter((one) => one.startsWith("gap")),
            1
          )
          assert.strictEqual(new Set(heard).size, heard.length)
        })
      )
    }
  })

  describe("the listen method of a client", () => {
    it.scopedLive("a client's listen returns payloads, and fails when some may be missing, as it has no gaps", () =>
      Effect.gen(function* () {
        const { name, writer } = yield* Place
        const sql = yield* Db.reader
        const listener = yield* hear(sql.listen("news"))
        const other = yield* hear(Db.listen("news"))
        yield* Effect.repeat(say(writer, "news", "ready"), { schedule: soon, until: () => listener.heard.length > 0 })
        yield* killListening(name, writer)
        const error = yield* Effect.flatten(Fiber.join(listener.fiber)).pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag === "ListenFailed" && error.reason, "disconnected")
        assert.include(error.message, "read the tables")
        yield* Effect.repeat(Effect.void, {
          schedule: soon,
          until: () => says(other.heard).includes("gap: disconnected")
        })
        assert.deepStrictEqual([...new Set(listener.heard)], ["ready"])
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("a client's listen that is retried listens again", () =>
      Effect.gen(function* () {
        const { name, writer } = yield* Place
        const sql = yield* Db.writer
        const listener = yield* hear(Stream.retry(sql.listen("news"), Schedule.recurs(1)))
        yield* Effect.repeat(say(writer, "news", "before"), { schedule: soon, until: () => listener.heard.length > 0 })
        yield* killListening(name, writer)
        yield* Effect.repeat(say(writer, "news", "after"), {
          schedule: soon,
          until: () => listener.heard.includes("after")
        })
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("a client's listen that is too slow fails after the messages that it has room for", () =>
      Effect.gen(function* () {
        const { writer } = yield* Place
        const sql = yield* Db.writer
        const goOn = yield* Deferred.make<void>()
        const slow = yield* hear(Stream.tap(sql.listen("news"), () => Deferred.await(goOn)))
        const quick = yield* hear(Db.listen("news", { bufferSize: Number.POSITIVE_INFINITY }))
        yield* count(quick, 1)
        yield* query(writer, "SELECT pg_notify('news', n::text) FROM generate_series(1, 20000) AS n")
        yield* count(quick, 20001)
        yield* Deferred.succeed(goOn, undefined)
        const error = yield* Effect.flatten(Fiber.join(slow.fiber)).pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag === "ListenFailed" && error.reason, "overflow")
        assert.isAtLeast(slow.heard.length, 4096)
        assert.deepStrictEqual(
          slow.heard,
          slow.heard.map((_, i) => `${i + 1}`)
        )
        assert.lengthOf(quick.heard, 20001)
      }).pipe(Effect.provide(fresh()))
    )
  })

  describe("the release of the layer with listeners", () => {
    const released = (silent: boolean) =>
      Effect.gen(function* () {
        const { name, writer } = yield* freshDatabase
        const proxy = yield* makeProxy(writer)
        const scope = yield* Scope.make()
        const layer = Db.layer({ writer: proxy.url, startup: "lazy", shutdownTimeout: "300 millis" })
        const context = yield* Layer.buildWithScope(layer, scope)
        const sql = yield* Effect.provide(Db.writer, context)
        const listener = yield* hear(Stream.provideContext(Db.listen("news"), context))
        const payloads = yield* hear(sql.listen("news"))
        yield* count(listener, 1)
        yield* Effect.repeat(say(writer, "news", "x"), { schedule: soon, until: () => payloads.heard.length > 0 })
        if (silent) yield* proxy.freeze
        const [took] = yield* Effect.timed(Scope.close(scope, Exit.void))
        assert.isBelow(Duration.toMillis(took), 1300)
        const errors = [
          yield* Effect.flip(Effect.flatten(Fiber.join(listener.fiber))),
          yield* Effect.flatten(Fiber.join(payloads.fiber)).pipe(DatabaseError.refine, Effect.flip),
          yield* Effect.flip(Stream.runDrain(Stream.provideContext(Db.listen("news"), context)))
        ]
        for (const error of errors) assert.strictEqual(error._tag, "DatabaseClosed")
        if (silent) yield* proxy.thaw
        yield* Effect.repeat(listening(name, writer), { schedule: soon, until: (pids) => pids.length === 0 })
        assert.strictEqual(proxy.connections, 0)
      })

    it.scopedLive("the release lets the process end, also in the middle of an outage", () =>
      Effect.gen(function* () {
        const { writer } = yield* freshDatabase
        const program = fileURLToPath(new URL("../support/listenOnce.ts", import.meta.url))
        const { stdout } = yield* Effect.promise(() =>
          promisify(execFile)(process.execPath, ["--import", "tsx", program], {
            env: { ...process.env, DATABASE_URL: Redacted.value(writer) },
            timeout: 20_000
          })
        )
        assert.strictEqual(stdout, "about to listen again\n")
      })
    )

    it.scopedLive("the release ends the listeners with DatabaseClosed, and closes the connection", () =>
      released(false)
    )

    it.scopedLive("the release ends in time also when the network is silent", () => released(true))
  })
})
