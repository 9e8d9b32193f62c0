/** Listeners, what they receive, their connections, and the notifications for them. */
import { inspect } from "node:util"
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import type { Notification } from "effect-db"
import type { Db } from "./databases.js"
import { eventually } from "./eventually.js"
import { throughProxy } from "./proxied.js"
import { freshDatabase, query } from "./server.js"

/** Reads a stream in the background, for as long as the scope lasts. */
export const hear = <A, E, R>(stream: Stream.Stream<A, E, R>) =>
  Effect.gen(function* () {
    const heard: Array<A> = []
    const fiber = yield* Effect.forkScoped(
      Stream.runForEach(stream, (one) => Effect.sync(() => void heard.push(one))).pipe(Effect.exit)
    )
    return { heard, fiber }
  })

/** Waits until `n` values have arrived, and returns the values; fails the test if the stream ends before. */
export const count = <A, E>(
  { fiber, heard }: { readonly heard: ReadonlyArray<A>; readonly fiber: Fiber.Fiber<Exit.Exit<void, E>> },
  n: number
) =>
  eventually(Fiber.poll(fiber), (ended) => heard.length >= n || Option.isSome(ended)).pipe(
    Effect.tap((ended) => assert.isAtLeast(heard.length, n, `the stream has ended: ${inspect(ended)}`)),
    Effect.as(heard)
  )

/** Returns a notification as a short text. */
const short = (one: Notification.Notification): string =>
  one._tag === "Message" ? one.payload : one._tag === "Gap" ? `gap: ${one.reason}` : "listening"

export const says = (heard: ReadonlyArray<Notification.Notification>) => heard.map(short)

export type Url = Redacted.Redacted<string>

/** Sends payloads through a session of its own, which is not behind a proxy. */
export const say = (writer: Url, channel: string, ...payloads: ReadonlyArray<string>) =>
  Effect.forEach(payloads, (payload) => query(writer, "SELECT pg_notify($1, $2)", [channel, payload]), {
    discard: true
  })

/** Returns the process ids of the sessions whose last statement was LISTEN or UNLISTEN. */
export const listening = (name: string, writer: Url) =>
  Effect.map(
    query<{ pid: number }>(
      writer,
      "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND query ~ '^(UN)?LISTEN' ORDER BY pid",
      [name]
    ),
    (rows) => rows.map(({ pid }) => pid)
  )

/** Ends the session that listens, which must be the only one, and waits until it is gone. */
export const killListening = (name: string, writer: Url) =>
  Effect.flatMap(listening(name, writer), (pids) => {
    assert.lengthOf(pids, 1)
    return query(writer, "SELECT pg_terminate_backend($1, 10000)", [pids[0]])
  })

/** Opens a database behind a proxy. It is lazy, so that only listeners open connections. */
export const behind = (options: Partial<Parameters<typeof Db.layer>[0]> = {}) =>
  Effect.gen(function* () {
    const { name, writer } = yield* freshDatabase
    return { name, ...(yield* throughProxy(writer, { startup: "lazy", ...options })) }
  })
