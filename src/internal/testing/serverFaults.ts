/**
 * The faults that a server causes itself: no free connection, a replica that lags, a promotion.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { DatabaseError } from "../../DatabaseError.js"
import type { Executor } from "../client/executor.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import { rawQuery } from "../connection/statementRequest.js"
import { toDatabaseError } from "../edge/databaseError.js"
import type { Pool } from "../pool/pool.js"
import { maxTotal } from "../pool/poolDependencies.js"
import { runAutocommit } from "../statement/autocommit.js"
import type { Server } from "../topology/server.js"

const deadlineOf = ({ config }: Executor): number => clock.now() + config.pool.acquireTimeout

/** Checks out a connection of a pool until the end of a scope. */
const hold = (pool: Pool, executor: Executor): Effect.Effect<void, DatabaseError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) => {
    let held: Connection | undefined
    const checkOut = Effect.async<void, DatabaseError>((resume) => {
      const cancel = pool.checkout(deadlineOf(executor), [], (failure, connection) => {
        held = connection
        resume(failure === undefined ? Effect.void : Effect.fail(toDatabaseError(failure)))
      })
      return Effect.sync(cancel)
    })
    const checkIn = Effect.sync(() => {
      if (held !== undefined) pool.checkin(held)
    })
    return Effect.zipRight(
      Effect.addFinalizer(() => checkIn),
      restore(checkOut)
    )
  })

/** Checks out all connections of the pools of a server until the end of a scope. */
export const exhaustPools = (executor: Executor, server: Server): Effect.Effect<void, DatabaseError, Scope.Scope> =>
  Effect.forEach(
    server.pools,
    (pool) =>
      Effect.replicateEffect(hold(pool, executor), maxTotal(pool.options.pool), {
        concurrency: "unbounded",
        discard: true
      }),
    { discard: true, concurrency: "unbounded" }
  )

/** Runs a command on a server. */
const runOn = (executor: Executor, server: Server, text: string): Effect.Effect<void, DatabaseError> =>
  Effect.async((resume) => {
    const cancel = runAutocommit(
      server.reads,
      deadlineOf(executor),
      [],
      rawQuery(text),
      "undone",
      undefined,
      undefined,
      (failure) => resume(failure === undefined ? Effect.void : Effect.fail(toDatabaseError(failure)))
    )
    return Effect.sync(cancel)
  })

/** The number of pauses in effect, by replica. */
const pauses = new Map<string, number>()

const keyOf = ({ server }: Server): string => server.name

/** The command that waits until the replay has stopped: `pg_wal_replay_pause` only requests that. */
const awaitPause = `DO $effect_db$ BEGIN
  WHILE pg_catalog.pg_get_wal_replay_pause_state() <> 'paused' LOOP PERFORM pg_catalog.pg_sleep(0.005); END LOOP;
END $effect_db$`

/** Stops the replay on a replica until the end of a scope, or of the last scope that has stopped it. */
export const pauseReplay = (executor: Executor, server: Server): Effect.Effect<void, DatabaseError, Scope.Scope> =>
  Effect.suspend(() => {
    const key = keyOf(server)
    let isCounted = false
    const pause = Effect.suspend(() => {
      isCounted = true
      pauses.set(key, (pauses.get(key) ?? 0) + 1)
      return Effect.zipRight(
        runOn(executor, server, "SELECT pg_catalog.pg_wal_replay_pause()"),
        runOn(executor, server, awaitPause)
      )
    })
    const resume = Effect.suspend(() => {
      // interrupted before the pause
      if (!isCounted) return Effect.void
      const left = (pauses.get(key) ?? 1) - 1
      pauses.set(key, left)
      if (left > 0) return Effect.void
      pauses.delete(key)
      return Effect.ignoreLogged(runOn(executor, server, "SELECT pg_catalog.pg_wal_replay_resume()"))
    })
    return Effect.zipRight(
      Effect.addFinalizer(() => resume),
      pause
    )
  })

/** Promotes a replica, and waits until it takes writes. */
export const promote = (executor: Executor, server: Server): Effect.Effect<void, DatabaseError> =>
  runOn(executor, server, "SELECT pg_catalog.pg_promote(true, 30)")
