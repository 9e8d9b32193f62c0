/** The connections of a pool: their processes on the server, and their holders. */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { Db, Place, pid } from "../../databases.js"
import { query } from "../../server.js"

/** The process ids of the client sessions on the database, without that of this query. */
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

/** Terminates a backend, and waits until it is gone. */
export const kill = (process: number) =>
  Effect.flatMap(Place, ({ writer }) => query(writer, "SELECT pg_terminate_backend($1, 10000)", [process]))

/** A holder of a connection. */
export interface Holder {
  readonly pid: number
  /** Ends the transaction, and returns its exit when the connection is checked in. */
  readonly release: Effect.Effect<Exit.Exit<unknown, unknown>>
}

/** Begins a transaction, which holds a connection until `release`. */
export const hold: Effect.Effect<Holder, never, Db> = Effect.gen(function* () {
  const held = yield* Deferred.make<number>()
  const letGo = yield* Deferred.make<void>()
  const fiber = yield* pid.pipe(
    Effect.tap((process) => Deferred.succeed(held, process)),
    Effect.zipRight(Deferred.await(letGo)),
    // another statement, which fails if the connection is lost
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

/** Holds `count` connections at the same time. */
export const holdAll = (count: number) => Effect.all(Array.from({ length: count }, () => hold))

/**
 * Opens `count` connections and leaves them idle; returns their process ids in the order of the
 * check-ins.
 */
export const warmUp = (count: number) =>
  Effect.gen(function* () {
    const holders = yield* holdAll(count)
    for (const { release } of holders) yield* release
    return holders.map((holder) => holder.pid)
  })
