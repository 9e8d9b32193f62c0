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

/** Stops the replay on a replica until the end of a scope. */
export const pauseReplay = (executor: Executor, server: Server): Effect.Effect<void, DatabaseError, Scope.Scope> =>
  Effect.acquireRelease(runOn(executor, server, "SELECT pg_catalog.pg_wal_replay_pause()"), () =>
    Effect.ignoreLogged(runOn(executor, server, "SELECT pg_catalog.pg_wal_replay_resume()"))
  )

/** Promotes a replica, and waits until it takes writes. */
export const promote = (executor: Executor, server: Server): Effect.Effect<void, DatabaseError> =>
  runOn(executor, server, "SELECT pg_catalog.pg_promote(true, 30)")
