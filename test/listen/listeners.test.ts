/** Several listeners on one connection: their independence, and their interruptions. */
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import type { Notification } from "effect-db"
import { describe } from "vitest"
import { Db, fresh, Place } from "../support/databases.js"
import { eventually, until } from "../support/eventually.js"
import { behind, count, hear, killListening, listening, say, says } from "../support/listening.js"
import { sends } from "../support/proxy.js"
import { query } from "../support/server.js"

/** Interrupts a fiber and returns the duration in ms. */
const interruption = <A, E>(fiber: Fiber.Fiber<A, E>) =>
  Effect.map(Effect.timed(Fiber.interrupt(fiber)), ([took]) => Duration.toMillis(took))

describe("Notification", () => {
  describe("the independence of listeners", () => {
    it.scopedLive("a slow listener loses what its buffer cannot hold, receives a gap, and affects no other", () =>
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

    it.scopedLive("the last listener of a channel ends its LISTEN, and the last of all closes the connection", () =>
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
        // the same channel can have a listener again
        const again = yield* listen("shared")
        yield* count(again, 1)
        yield* say(writer, "shared", "y")
        yield* count(again, 2)
        assert.deepStrictEqual(says(again.heard), ["listening", "y"])
        assert.strictEqual(proxy.accepted, 1)
        yield* Fiber.interrupt(again.fiber)
        yield* Fiber.interrupt(other.fiber)
        yield* eventually(listening(name, writer), (pids) => pids.length === 0)
        yield* until(() => proxy.connections === 0)
      })
    )

    it.scopedLive("a listener that is interrupted while it joins causes no loss of messages for the others", () =>
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

    it.scopedLive("a LISTEN without an answer causes a gap for other listeners, and their next messages arrive", () =>
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
    /** Opens a database behind a proxy, and returns functions to start and interrupt listeners. */
    const given = Effect.gen(function* () {
      const { context, proxy, writer } = yield* behind()
      const stream = (channel: string) => Stream.provideContext(Db.listen(channel), context)
      return {
        proxy,
        /** Starts a listener without waiting until it has joined. */
        join: (channel: string) => Effect.fork(Stream.runDrain(stream(channel))),
        /** Starts a listener and waits until it has joined. */
        joined: (channel: string) => Effect.tap(hear(stream(channel)), (listener) => count(listener, 1)),
        /**
         * Interrupts a listener and thaws the proxy. Then waits until the listener `other` receives
         * a message or, without `other`, until no connection is open.
         */
        interrupt: <A, E>(
          fiber: Fiber.Fiber<A, E>,
          other?: { readonly heard: ReadonlyArray<Notification.Notification> }
        ) =>
          Effect.gen(function* () {
            assert.isBelow(yield* interruption(fiber), 1000)
            yield* proxy.thaw
            yield* other === undefined
              ? until(() => proxy.connections === 0)
              : eventually(say(writer, "other", "x"), () => says(other.heard).includes("x"))
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

    it.scopedLive("an interruption in the pause before a reconnect, and during the reconnect, settles at once", () =>
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
})
