/** The observations that a pool makes of its connections. */
import { SqlClient } from "@effect/sql/SqlClient"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import type { Database, Observation } from "effect-db"
import { Db, insert, pid } from "../../databases.js"
import { taggedFailure } from "../../failures.js"
import { sends } from "../../proxy.js"
import { hold, kill, warmUp } from "./connections.js"
import { only, settled, told, watch } from "./observations.js"
import { halfOpen, Network, once, open, openOverNetwork, type Way } from "./way.js"

/**
 * Returns effects that make a pool with `maxConnections: 1` close a connection, by the reason of
 * the close. The other reasons have tests of their own.
 */
const ends = (
  way: Way
): Partial<
  Record<
    Observation.CloseReason,
    { readonly options?: Partial<Database.Options>; readonly act: Effect.Effect<unknown, unknown, Db | Network> }
  >
> => {
  let refuses = false
  return {
    aged: { options: { maxLifetime: "50 millis" }, act: pid },
    idle: { options: { idleTimeout: "30 millis" }, act: pid },
    cancelled: {
      act: Effect.gen(function* () {
        const sql = yield* Db.writer
        // a cancel that the server has confirmed would be no reason to close
        const network = yield* Network
        yield* network.when(({ type }) => type === "cancel", "freeze", 2)
        const sent = yield* network.when(sends("pg_sleep"), "pass")
        const fiber = yield* Effect.fork(sql`SELECT pg_sleep(1000)`)
        yield* sent
        yield* Fiber.interrupt(fiber)
      })
    },
    dirty: {
      act: Effect.gen(function* () {
        const sql = yield* Db.writer
        yield* sql`BEGIN`
      })
    },
    ...(way.strategy === "pooled"
      ? { excess: { options: { maxConnections: 1, maxOverflow: 1 }, act: warmUp(2) } as const }
      : {}),
    invalid: { options: { validateAfterIdle: 0 }, act: Effect.zipRight(pid, Effect.zipRight(halfOpen, pid)) },
    invalidated: { act: Effect.zipRight(pid, Db.invalidate({ mode: "hard" })) },
    vetoed: {
      options: { onCheckout: Effect.suspend(() => (refuses ? Effect.fail("no") : Effect.void)) },
      act: Effect.gen(function* () {
        yield* pid
        refuses = true
        yield* Effect.ignore(pid)
      })
    },
    writable: {
      act: Effect.gen(function* () {
        const reader = yield* Db.reader
        yield* reader`SELECT set_config('default_transaction_read_only', 'off', false)`
      })
    }
  }
}

export const events = (way: Way): void => {
  const one = { maxConnections: 1, startup: "lazy" } as const

  it.scopedLive(
    "a connection's life is reported: connect, first connect, checkout, reset, checkin, invalidate, close",
    () =>
      Effect.gen(function* () {
        const facts = yield* watch
        const first = yield* pid
        yield* told(facts, "Reset")
        yield* Db.invalidate()
        const second = yield* pid
        yield* told(facts, "Reset", 2)
        yield* Db.invalidate({ mode: "hard" })
        yield* told(facts, "Closed", 2)
        const words = facts.map((fact) => {
          switch (fact._tag) {
            case "Connected":
              return `connect ${fact.processId}${fact.isFirst ? " first" : ""}`
            case "CheckedOut":
              return `checkout ${fact.processId}`
            case "CheckedIn":
              return `checkin ${fact.processId}`
            case "Reset":
              return `reset ${fact.processId}`
            case "Invalidated":
              return `invalidate ${fact.mode} ${fact.connections}`
            case "Closed":
              return `close ${fact.processId} ${fact.reason}`
            default:
              return fact._tag
          }
        })
        const life = (process: number, kind: string) => [
          `connect ${process}${kind}`,
          `checkout ${process}`,
          `checkin ${process}`,
          `reset ${process}`
        ]
        // a close is reported when it is complete, which may be at any later time
        const isEnd = (word: string) => word.startsWith("close")
        assert.deepStrictEqual(
          words.filter((word) => !isEnd(word)),
          [...life(first, " first"), "invalidate soft 1", ...life(second, ""), "invalidate hard 1"]
        )
        assert.deepStrictEqual(
          words.filter(isEnd).sort(),
          [`close ${first} invalidated`, `close ${second} invalidated`].sort()
        )
      }).pipe(Effect.provide(open(way, { ...one, resetOnReturn: Effect.asVoid(SqlClient) })))
  )

  it.scopedLive("the durations of a connect, of a wait and of a checkout are reported", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const holder = yield* hold
      const waiter = yield* Effect.fork(pid)
      yield* settled({ waiting: 1 })
      yield* holder.release
      yield* Fiber.join(waiter)
      const back = yield* told(facts, "CheckedIn", 2)
      const [connected] = only(facts, "Connected")
      assert.isAbove(connected?.tookMillis ?? 0, 0)
      const waited = only(facts, "CheckedOut").map((fact) => fact.waitedMillis)
      // the first caller waited for the connect
      assert.isAtLeast(waited[0] ?? 0, connected?.tookMillis ?? 0)
      assert.isAbove(waited[1] ?? 0, 0)
      for (const { usedMillis } of back) assert.isAbove(usedMillis, 0)
    }).pipe(Effect.provide(open(way, one)))
  )

  it.scopedLive("a loss is reported before the close that it leads to", () =>
    Effect.gen(function* () {
      const facts = yield* watch
      const first = yield* pid
      yield* kill(first)
      yield* told(facts, "Closed")
      const [lost] = only(facts, "Lost")
      assert.strictEqual(lost?.processId, first)
      assert.include(lost?.message, "terminat")
      assert.deepStrictEqual(
        facts.slice(-2).map((fact) => fact._tag),
        ["Lost", "Closed"]
      )
      assert.strictEqual(only(facts, "Closed")[0]?.reason, "broken")
    }).pipe(Effect.provide(open(way, one)))
  )

  it.scopedLive("a failure to connect and a failed checkout are reported", () =>
    Effect.gen(function* () {
      const network = yield* Network
      const facts = yield* watch
      yield* network.refuse
      yield* taggedFailure("ConnectFailed", insert("a"))
      const [failed] = yield* told(facts, "ConnectFailed")
      assert.strictEqual(failed?.reason, "unreachable")
      yield* network.accept
      const holder = yield* hold
      yield* taggedFailure("PoolExhausted", insert("b"))
      const [exhausted] = yield* told(facts, "Exhausted")
      assert.strictEqual(exhausted?.reason, "timeout")
      assert.isAtLeast(exhausted?.waitedMillis ?? 0, 300)
      yield* holder.release
    }).pipe(Effect.provide([openOverNetwork(way, { ...one, acquireTimeout: "300 millis" }), once]))
  )

  for (const [reason, { act, options }] of Object.entries(ends(way))) {
    it.scopedLive(`the close of a connection is reported with its reason: ${reason}`, () =>
      Effect.gen(function* () {
        const facts = yield* watch
        yield* act
        const [closed] = yield* told(facts, "Closed")
        assert.strictEqual(closed?.reason, reason)
      }).pipe(Effect.provide([openOverNetwork(way, { ...one, ...options }), once]))
    )
  }

  it.scopedLive("the close of a connection is reported with its reason: shutdown", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(open(way, one), scope)
      const facts = yield* Effect.provide(watch, context)
      yield* Effect.provide(pid, context)
      yield* told(facts, "CheckedIn")
      yield* Scope.close(scope, Exit.void)
      const [closed] = yield* told(facts, "Closed")
      assert.strictEqual(closed?.reason, "shutdown")
    })
  )
}
