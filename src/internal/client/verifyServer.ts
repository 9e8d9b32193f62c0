/**
 * The check of a server at the start of a database.
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as DatabaseConfig from "../../DatabaseConfig.js"
import { ConnectFailed, type StartupError } from "../../DatabaseError.js"
import type { ConnectReason } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { PlainFailure } from "../connection/plainFailure.js"
import { toDatabaseError } from "../edge/databaseError.js"
import type { Pool } from "../pool/pool.js"
import { proveRole, type RoleMismatch } from "../topology/roleProof.js"
import { outcomeTableFailure } from "../transaction/markedSource.js"
import { refusesPrepare } from "../transaction/preparation.js"
import type { Executor } from "./executor.js"

/**
 * Checks that a server accepts a connection and has the required role. Retries until
 * `connectTimeout` while `waits` accepts the reason of the failure.
 */
export const verifyServer = (
  pool: Pool,
  config: DatabaseConfig.DatabaseConfig,
  waits: (reason: ConnectReason) => boolean,
  executor?: Executor | undefined
): Effect.Effect<void, StartupError> =>
  Effect.suspend(() => {
    const last = clock.now() + pool.options.pool.connectTimeout
    // later than the timeout of the connect, so that the failure of the connect, which has the
    // reason, arrives first
    const deadline = last + 500
    const attempt = Effect.async<void, ConnectFailed>((resume) => {
      let checkedOut: Connection | undefined
      const cancel = pool.checkout(deadline, [], (failure, connection) => {
        const location = { database: config.name, server: pool.options.server.name }
        if (connection !== undefined) {
          checkedOut = connection
          return proveRole(connection, deadline, (mismatch) => {
            const end = (fault: RoleMismatch | PlainFailure<"ConnectFailed"> | undefined) => {
              pool.checkin(connection)
              resume(fault === undefined ? Effect.void : Effect.fail(new ConnectFailed({ ...location, ...fault })))
            }
            if (mismatch !== undefined || executor === undefined) return end(mismatch)
            const { markers, outcomes } = executor
            if (markers !== undefined) {
              const stop = clock.later(deadline - clock.now(), () => connection.destroy("invalid"))
              markers.prepare(connection, (state) => {
                stop()
                end(outcomeTableFailure(location, state))
              })
            } else if (outcomes !== undefined) outcomes.probe(connection, deadline, () => end(undefined))
            else end(undefined)
          })
        }
        const error = failure === undefined ? undefined : toDatabaseError(failure)
        resume(
          Effect.fail(
            error?._tag === "ConnectFailed"
              ? error
              : new ConnectFailed({
                  ...location,
                  reason: "unresponsive",
                  ...(error === undefined ? {} : { cause: error })
                })
          )
        )
      })
      return Effect.sync(() => (checkedOut === undefined ? cancel() : checkedOut.abort("cancelled")))
    })
    return Effect.retry(attempt, {
      schedule: Schedule.spaced("100 millis"),
      while: (error) => waits(error.reason) && clock.now() + 100 < last
    })
  })

/** Checks that the server of a database takes prepared transactions, if units may end in two phases. */
export const verifyPrepared = (
  pool: Pool,
  { prepared }: Executor,
  { name, pool: { acquireTimeout } }: DatabaseConfig.DatabaseConfig
): Effect.Effect<void, StartupError> =>
  prepared === undefined
    ? Effect.void
    : Effect.async((resume) => {
        const deadline = clock.now() + acquireTimeout
        let checkedOut: Connection | undefined
        const cancel = pool.checkout(deadline, [], (_, connection) => {
          // the first unit that needs it reports the failure
          if (connection === undefined) return resume(Effect.void)
          checkedOut = connection
          const stop = clock.later(deadline - clock.now(), () => connection.destroy("invalid"))
          prepared.identify(connection, (result) => {
            stop()
            pool.checkin(connection)
            resume("refusal" in result ? Effect.fail(refusesPrepare(name, result.refusal.message)) : Effect.void)
          })
        })
        return Effect.sync(() => (checkedOut === undefined ? cancel() : checkedOut.abort("cancelled")))
      })
