/**
 * The replicas of a run. A database that was created on the primary can be opened on a replica only
 * after its replay there.
 */
import type * as Reactivity from "@effect/experimental/Reactivity"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { Client } from "../../Copy.js"
import type { DatabaseConfig } from "../../DatabaseConfig.js"
import { type DatabaseError, NoReplicaCaughtUp, type StartupError } from "../../DatabaseError.js"
import type { NamedClass } from "../client/databaseNames.js"
import { openConfigured } from "../client/openDatabase.js"
import { makeListen } from "../listen/streams.js"
import { quoteLiteral } from "../sql/quote.js"
import { replicaSettings } from "./adminSettings.js"

/** The pause between two queries of a replica, in ms. It does not report its replay. */
const pollInterval = 3

/** Opens the replicas of a database, each alone. */
export const openReplicas = (
  owner: NamedClass,
  config: DatabaseConfig
): Effect.Effect<ReadonlyArray<Client>, StartupError, Reactivity.Reactivity | Scope.Scope> =>
  Effect.forEach(config.readers, (replica) =>
    Effect.map(openConfigured(owner, replicaSettings(config, replica), makeListen), ({ writer }) => writer)
  )

/**
 * Waits until the replicas that answer have a database. Its name is never used again, so no position
 * in the log is needed, which a replica may reach late because the primary has not sent a page yet.
 */
export const awaitReplicas = (
  { name, pool }: DatabaseConfig,
  replicas: ReadonlyArray<Client>,
  database: string
): Effect.Effect<void, DatabaseError> =>
  Effect.gen(function* () {
    if (replicas.length === 0) return
    // the "reader" may be the primary itself, or have become one
    const isReplayed = `SELECT NOT pg_is_in_recovery()
      OR EXISTS (SELECT FROM pg_database WHERE datname = ${quoteLiteral(database)}) AS done`
    const awaitReplay = (replica: Client) =>
      replica.unsafe<{ readonly done: boolean }>(isReplayed).pipe(
        Effect.repeat({ until: ([row]) => row?.done === true, schedule: Schedule.spaced(pollInterval) }),
        // reads do without a replica that does not answer
        Effect.ignore
      )
    const replayed = yield* Effect.forEach(replicas, awaitReplay, { concurrency: "unbounded", discard: true }).pipe(
      Effect.timeoutOption(pool.acquireTimeout)
    )
    if (Option.isSome(replayed)) return
    const waitedMillis = pool.acquireTimeout
    return yield* new NoReplicaCaughtUp({ database: name, reason: "position", waitedMillis, unproved: [] })
  })
