/** The replacement of the listening connection while it is in use. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import type { Notification } from "effect-db"
import { describe } from "vitest"
import { Db } from "../support/databases.js"
import { eventually, until } from "../support/eventually.js"
import { count, hear, listening, say, says } from "../support/listening.js"
import { type Message, makeProxy, sends } from "../support/proxy.js"
import { anonymous, freshRole, Provider } from "../support/roles.js"
import { freshDatabase, query } from "../support/server.js"

describe("Notification", () => {
  describe("the replacement of the listening connection", () => {
    /**
     * Returns a matcher of the mark, a NOTIFY by the old connection, where it arrives on the new
     * connection.
     */
    const marks = () => {
      let sender = 0
      return (message: Message) => {
        if (sends('NOTIFY "effect_db_')(message)) sender = message.connection
        return message.type === "A" && message.bytes.includes("effect_db_") && message.connection !== sender
      }
    }

    /**
     * Opens a database behind a proxy, with credentials that can change. Returns functions that start
     * listeners, and a counter that sends consecutive numbers to them.
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
           * Stops the counter, waits until all messages have arrived, and checks that each listener
           * has received them in order and once, from its first one on.
           */
          return (...listeners: ReadonlyArray<{ readonly heard: ReadonlyArray<Notification.Notification> }>) =>
            Effect.gen(function* () {
              isOver = true
              yield* Fiber.join(counting)
              for (const { heard } of listeners) {
                yield* until(() => says(heard).includes(`${n}`))
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
        /** The users of the sessions that listen, or have listened. */
        const users = Effect.map(
          query<{ user: string }>(
            writer,
            "SELECT usename AS user FROM pg_stat_activity WHERE datname = $1 AND query ~ '^(UN)?(LISTEN|NOTIFY)'",
            [name]
          ),
          (rows) => rows.map(({ user }) => user)
        )
        /** Changes the credentials, and runs a statement whose connect requests them. */
        const rotate = Effect.gen(function* () {
          provider.use(b)
          yield* Effect.provide(
            Effect.flatMap(Db.writer, (sql) => sql`SELECT 1`),
            context
          )
        })
        const invalidate = (mode: "soft" | "hard") => Effect.provide(Db.invalidate({ mode }), context)
        const usedBy = (user: string) => eventually(users, (all) => all.length === 1 && all[0] === user)
        return { a, b, context, counter, invalidate, listen, name, provider, proxy, rotate, usedBy, writer }
      })

    for (const heartbeat of ["1 minute", "2 millis"] as const) {
      it.scopedLive(
        `a replacement for new credentials misses nothing and delivers nothing twice, heartbeat: ${heartbeat}`,
        () =>
          Effect.gen(function* () {
            const { b, counter, listen, rotate, usedBy } = yield* given({ listenHeartbeat: heartbeat })
            const news = yield* listen("news")
            const more = yield* listen("more")
            const checkReceived = yield* counter
            yield* count(news, 5)
            yield* count(more, 5)
            yield* rotate
            yield* usedBy(b.name)
            const before = news.heard.length
            yield* count(news, before + 5)
            yield* checkReceived(news, more)
          })
      )
    }

    it.scopedLive("a replacement at each of five soft invalidations misses nothing and delivers nothing twice", () =>
      Effect.gen(function* () {
        const { counter, invalidate, listen, name, writer } = yield* given({ connectTimeout: "100 millis" })
        const news = yield* listen("news")
        const more = yield* listen("more")
        const checkReceived = yield* counter
        yield* count(news, 5)
        yield* count(more, 5)
        for (let i = 0; i < 5; i++) {
          const before = yield* listening(name, writer)
          assert.strictEqual(yield* invalidate("soft"), 1)
          yield* eventually(listening(name, writer), (pids) => pids.length === 1 && pids[0] !== before[0])
        }
        yield* checkReceived(news, more)
      })
    )

    it.scopedLive("a replacement at a hard invalidation causes a gap", () =>
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

    it.scopedLive("a connection whose credentials have changed during its connect is replaced without a gap", () =>
      Effect.gen(function* () {
        const { b, listen, proxy, rotate, usedBy, writer } = yield* given()
        const loggedIn = yield* proxy.when(({ from, type }) => from === "server" && type === "Z", "freeze")
        const news = yield* listen("news")
        yield* loggedIn
        yield* rotate
        yield* proxy.thaw
        yield* count(news, 1)
        yield* usedBy(b.name)
        yield* say(writer, "news", "after")
        yield* count(news, 2)
        assert.deepStrictEqual(says(news.heard), ["listening", "after"])
      })
    )

    it.scopedLive("a replacement whose connect fails is delayed, and the old connection serves until then", () =>
      Effect.gen(function* () {
        const { b, counter, invalidate, listen, proxy, provider, usedBy } = yield* given()
        const news = yield* listen("news")
        const checkReceived = yield* counter
        yield* count(news, 5)
        const asked = provider.asked
        provider.answer = Effect.fail("no")
        yield* invalidate("soft")
        yield* until(() => provider.asked > asked)
        const before = news.heard.length
        yield* count(news, before + 5)
        provider.use(b)
        yield* usedBy(b.name)
        yield* checkReceived(news)
        assert.strictEqual(proxy.connections, 1)
      })
    )

    it.scopedLive("a replacement serves the listeners that join meanwhile, and others may leave", () =>
      Effect.gen(function* () {
        const { b, counter, listen, proxy, rotate, usedBy, writer } = yield* given()
        const news = yield* listen("news")
        const leaving = yield* listen("other")
        yield* count(leaving, 1)
        const checkReceived = yield* counter
        yield* count(news, 5)
        const crossing = yield* proxy.when(sends('NOTIFY "effect_db_'), "freeze")
        yield* rotate
        yield* crossing
        const more = yield* listen("more")
        const again = yield* listen("other")
        yield* Fiber.interrupt(leaving.fiber)
        yield* proxy.thaw
        yield* usedBy(b.name)
        yield* count(more, 5)
        yield* count(again, 1)
        yield* say(writer, "other", "x")
        yield* count(again, 2)
        assert.deepStrictEqual(says(again.heard), ["listening", "x"])
        yield* checkReceived(news, more)
      })
    )

    /** The faults of the two connections when the mark is sent, or arrives. */
    const losses: ReadonlyArray<readonly [string, (message: Message) => boolean, "cut" | "freeze"]> = [
      ["the old connection is lost", sends('NOTIFY "effect_db_'), "cut"],
      ["the new connection is silent", marks(), "freeze"],
      ["the new connection is lost", marks(), "cut"]
    ]
    for (const [what, when, verdict] of losses) {
      it.scopedLive(`a replacement in which ${what} has one gap, and delivers nothing twice`, () =>
        Effect.gen(function* () {
          const { b, counter, listen, proxy, rotate, usedBy } = yield* given()
          const news = yield* listen("news")
          yield* counter
          yield* count(news, 5)
          const crossing = yield* proxy.when(when, verdict)
          yield* rotate
          yield* crossing
          yield* until(() => says(news.heard).includes("gap: disconnected"))
          yield* proxy.thaw
          yield* usedBy(b.name)
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
})
