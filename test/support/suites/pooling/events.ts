/** The observations of a pool. */
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
import { halfOpen, once, open, openOverWire, type Way, Wire } from "./way.js"

/**
 * Closes a connection for each reason, in a pool of at most one idle connection; the other ends are
 * tested there.
 */
const ends = (
  way: Way
): Partial<
  Record<
    Observation.CloseReason,
    { readonly options?: Partial<Database.Options>; readonly act: Effect.Effect<unknown, unknown, Db | Wire> }
  >
> => {
  let refuses = false
  return {
    aged: { options: { maxLifetime: "50 millis" }, act: pid },
    idle: { options: { idleTimeout: "30 millis" }, act: pid },
    cancelled: {
      act: Effect.gen(function* () {
        const sql = yield* Db.writer
        // one that the server has confirmed is no reason to close
        const wire = yield* Wire
        yield* wire.when(({ type }) => type === "cancel", "freeze", 2)
        const sent = yield* wire.when(sends("pg_sleep"), "pass")
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
        // the duration of the server's close is its own affair
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

  it.scopedLive("durations are reported: of a connect, of a wait and of a checkout", () =>
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
      const wire = yield* Wire
      const facts = yield* watch
      yield* wire.refuse
      yield* taggedFailure("ConnectFailed", insert("a"))
      const [failed] = yield* told(facts, "ConnectFailed")
      assert.strictEqual(failed?.reason, "unreachable")
      yield* wire.accept
      const holder = yield* hold
      yield* taggedFailure("PoolExhausted", insert("b"))
      const [exhausted] = yield* told(facts, "Exhausted")
      assert.strictEqual(exhausted?.reason, "timeout")
      assert.isAtLeast(exhausted?.waitedMillis ?? 0, 300)
      yield* holder.release
    }).pipe(Effect.provide([openOverWire(way, { ...one, acquireTimeout: "300 millis" }), once]))
  )

  for (const [reason, { act, options }] of Object.entries(ends(way))) {
    it.scopedLive(`a connection is closed and the reason reported: ${reason}`, () =>
      Effect.gen(function* () {
        const facts = yield* watch
        yield* act
        const [closed] = yield* told(facts, "Closed")
        assert.strictEqual(closed?.reason, reason)
      }).pipe(Effect.provide([openOverWire(way, { ...one, ...options }), once]))
    )
  }

  it.scopedLive("a connection is closed and the reason reported: shutdown", () =>
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
