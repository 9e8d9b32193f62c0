import { execFile } from "node:child_process"
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
import { DatabaseError, RetryPolicy } from "effect-db"
import { describe } from "vitest"
import { behindBouncer, hasBouncer, makeBouncer } from "../support/bouncer.js"
import { compiled } from "../support/compiledTree.js"
import { Audit, Db, fresh, insert, Place, stored } from "../support/databases.js"
import { eventually, until } from "../support/eventually.js"
import { behind, count, hear, killListening, listening, say, says } from "../support/listening.js"
import { makeProxy, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"

describe("Notification", () => {
  describe("messages", () => {
    it.scopedLive("a listener first receives that it listens, and then every message in order", () =>
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

    it.scopedLive("no message is missed between the read of a table at the start and the first message", () =>
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
            // the connection is closed with its last listener, so each of these listeners opens a
            // new connection
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

    it.scopedLive("a channel or payload that no server accepts is refused, and does not fail its transaction", () =>
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

  describe("the first LISTEN", () => {
    it.scopedLive("the first LISTEN fails at once for a permanent reason, and is retried for any other", () =>
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

    it.scopedLive("the first LISTEN fails when acquireTimeout is over", () =>
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
    // PgBouncer refuses a login with `options`, unless it is set to ignore it
    const settings = { ignore_startup_parameters: "options,extra_float_digits" }
    it.scopedLive("a listener behind PgBouncer in transaction mode fails, because no notification can arrive", () =>
      Effect.gen(function* () {
        const { writer } = yield* freshDatabase
        const { url: pooled } = yield* makeBouncer(writer, settings)
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

    it.scopedLive("a listener behind PgBouncer in session mode receives messages, also after a loss", () =>
      Effect.gen(function* () {
        const { name, writer } = yield* freshDatabase
        const { url: pooled } = yield* makeBouncer(writer, { ...settings, pool_mode: "session" })
        yield* Effect.gen(function* () {
          const listener = yield* hear(Db.listen("news"))
          yield* count(listener, 1)
          yield* say(writer, "news", "before")
          yield* count(listener, 2)
          // waits until the probe of the new connection has ended its own LISTEN
          yield* eventually(
            query(writer, "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND query LIKE 'UNLISTEN%'", [name]),
            (rows) => rows.length === 1
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

  describe("the listen method of a client", () => {
    it.scopedLive("a client's listen emits payloads, and fails if some may be missing, because it has no gaps", () =>
      Effect.gen(function* () {
        const { name, writer } = yield* Place
        const sql = yield* Db.reader
        const listener = yield* hear(sql.listen("news"))
        const other = yield* hear(Db.listen("news"))
        yield* eventually(say(writer, "news", "ready"), () => listener.heard.length > 0)
        yield* killListening(name, writer)
        const error = yield* Effect.flatten(Fiber.join(listener.fiber)).pipe(DatabaseError.refine, Effect.flip)
        assert.strictEqual(error._tag === "ListenFailed" && error.reason, "disconnected")
        assert.include(error.message, "read the tables")
        yield* until(() => says(other.heard).includes("gap: disconnected"))
        assert.deepStrictEqual([...new Set(listener.heard)], ["ready"])
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("a client's listen that is retried listens again", () =>
      Effect.gen(function* () {
        const { name, writer } = yield* Place
        const sql = yield* Db.writer
        const listener = yield* hear(Stream.retry(sql.listen("news"), Schedule.recurs(1)))
        yield* eventually(say(writer, "news", "before"), () => listener.heard.length > 0)
        yield* killListening(name, writer)
        yield* eventually(say(writer, "news", "after"), () => listener.heard.includes("after"))
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive("a client's listen whose consumer is too slow fails after the messages in its buffer", () =>
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
        yield* eventually(say(writer, "news", "x"), () => payloads.heard.length > 0)
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
        yield* eventually(listening(name, writer), (pids) => pids.length === 0)
        assert.strictEqual(proxy.connections, 0)
      })

    it.scopedLive("a release during the pause before a reconnect lets the process end", () =>
      Effect.gen(function* () {
        const { writer } = yield* freshDatabase
        const { stdout } = yield* Effect.promise(() =>
          promisify(execFile)(process.execPath, compiled("test/support/listenOnce.ts"), {
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

    it.scopedLive("the release takes at most a second longer than shutdownTimeout if the network is silent", () =>
      released(true)
    )
  })
})
