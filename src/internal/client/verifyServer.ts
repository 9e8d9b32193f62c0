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
import type { CheckoutFailure, PlainFailure } from "../connection/failure.js"
import { toDatabaseError } from "../edge/databaseError.js"
import type { Pool } from "../pool/pool.js"
import { proveRole, type RoleMismatch } from "../topology/roleProof.js"
import { outcomeTableFailure } from "../transaction/markedConnectionSource.js"
import { refusesPrepare } from "../transaction/twoPhaseEffects.js"
import type { Executor } from "./executor.js"

/**
 * Checks out a connection for a check, which ends with `end`. `onFailure` returns the result if there is
 * no connection. An interruption cancels the checkout, or the check.
 */
const checkOut = <E>(
  pool: Pool,
  deadline: number,
  onFailure: (failure: CheckoutFailure | undefined) => Effect.Effect<void, E>,
  check: (connection: Connection, end: (result: Effect.Effect<void, E>) => void) => void
): Effect.Effect<void, E> =>
  Effect.async((resume) => {
    let checkedOut: Connection | undefined
    const cancel = pool.checkout(deadline, [], (failure, connection) => {
      if (connection === undefined) return resume(onFailure(failure))
      checkedOut = connection
      check(connection, (result) => {
        pool.checkin(connection)
        resume(result)
      })
    })
    return Effect.sync(() => (checkedOut === undefined ? cancel() : checkedOut.abort("cancelled")))
  })

/** Closes a connection at a deadline, unless the returned function is called before. */
const closeAt = (deadline: number, connection: Connection): (() => void) =>
  clock.later(deadline - clock.now(), () => connection.destroy("invalid"))

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
    const location = { database: config.name, server: pool.options.server.name }
    const last = clock.now() + pool.options.pool.connectTimeout
    // later than the timeout of the connect, so that the failure of the connect, which has the
    // reason, arrives first
    const deadline = last + 500
    const unavailable = (failure: CheckoutFailure | undefined) => {
      const error = failure === undefined ? undefined : toDatabaseError(failure)
      return error?._tag === "ConnectFailed"
        ? error
        : new ConnectFailed({ ...location, reason: "unresponsive", ...(error === undefined ? {} : { cause: error }) })
    }
    const attempt = checkOut<ConnectFailed>(
      pool,
      deadline,
      (failure) => Effect.fail(unavailable(failure)),
      (connection, end) =>
        proveRole(connection, deadline, (mismatch) => {
          const report = (fault: RoleMismatch | PlainFailure<"ConnectFailed"> | undefined) =>
            end(fault === undefined ? Effect.void : Effect.fail(new ConnectFailed({ ...location, ...fault })))
          if (mismatch !== undefined || executor === undefined) return report(mismatch)
          const { markers, outcomes } = executor
          if (markers !== undefined) {
            markers.prepare(connection, deadline, (state) => report(outcomeTableFailure(location, state)))
          } else if (outcomes !== undefined) outcomes.probe(connection, deadline, () => report(undefined))
          else report(undefined)
        })
    )
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
  Effect.suspend(() => {
    if (prepared === undefined) return Effect.void
    const deadline = clock.now() + acquireTimeout
    return checkOut<StartupError>(
      pool,
      deadline,
      // the first unit that prepares a transaction reports the failure
      () => Effect.void,
      (connection, end) => {
        const stop = closeAt(deadline, connection)
        prepared.identify(connection, (result) => {
          stop()
          end("refusal" in result ? Effect.fail(refusesPrepare(name, result.refusal.message)) : Effect.void)
        })
      }
    )
  })
