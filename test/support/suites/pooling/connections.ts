/** The connections of a pool: their processes on the server, and their holders. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { Db, Place, pid } from "../../databases.js"
import { query } from "../../server.js"

/** The processes that the server has for the database, without that of this query. */
export const processes = Effect.flatMap(Place, ({ name, writer }) =>
  Effect.map(
    query<{ pid: number }>(
      writer,
      `SELECT pid FROM pg_stat_activity
       WHERE datname = $1 AND backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY pid`,
      [name]
    ),
    (rows) => rows.map((row) => row.pid)
  )
)

/** Ends a process of the server, and waits until it is gone. */
export const kill = (process: number) =>
  Effect.flatMap(Place, ({ writer }) => query(writer, "SELECT pg_terminate_backend($1, 10000)", [process]))

/** A holder of a connection. */
export interface Holder {
  readonly pid: number
  /** Returns the connection to the pool, and waits until it is there. */
  readonly release: Effect.Effect<Exit.Exit<unknown, unknown>>
}

/** Holds a connection in a transaction until it is released. */
export const hold: Effect.Effect<Holder, never, Db> = Effect.gen(function* () {
  const held = yield* Deferred.make<number>()
  const letGo = yield* Deferred.make<void>()
  const fiber = yield* pid.pipe(
    Effect.tap((process) => Deferred.succeed(held, process)),
    Effect.zipRight(Deferred.await(letGo)),
    // another statement, so that it is noticed if the connection is no more
    Effect.zipRight(pid),
    Db.withTransaction(),
    Effect.tapErrorCause((cause) => Deferred.die(held, cause)),
    Effect.forkDaemon
  )
  return {
    pid: yield* Deferred.await(held),
    release: Effect.zipRight(Deferred.succeed(letGo, undefined), Fiber.await(fiber))
  }
})

/** Holds so many connections at once, so that there are as many. */
export const holdAll = (count: number) => Effect.all(Array.from({ length: count }, () => hold))

/**
 * Opens so many connections and leaves them idle; returns their processes in the order of their
 * check-in.
 */
export const warmUp = (count: number) =>
  Effect.gen(function* () {
    const holders = yield* holdAll(count)
    for (const { release } of holders) yield* release
    return holders.map((holder) => holder.pid)
  })
