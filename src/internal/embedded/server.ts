/**
 * An embedded server and its operations. Start, stop and the like run one at a time.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Sql from "./adminSession.js"
import { signal } from "./childProcess.js"
import * as Processes from "./markedProcesses.js"
import type { Operation, OperationFailed } from "./operationFailed.js"
import { withinRealTime, withRealClock } from "./realClock.js"
import * as Instance from "./serverProcess.js"

/** Embedded server. */
export type Server = Effect.Effect.Success<ReturnType<typeof open>>

/**
 * Starts a server, and returns it when it listens on its port. It accepts connections when the
 * effect `ready` has succeeded.
 */
export const open = Effect.fnUntraced(function* (options: Instance.Options) {
  const { cluster, data, name } = options
  const instance = yield* Instance.make(options)
  const { fail, port, refuse } = instance
  const lock = yield* Effect.makeSemaphore(1)
  let isFrozen = false

  const url = (database = "postgres") =>
    Redacted.make(`postgres://postgres:${cluster.password}@127.0.0.1:${port}/${encodeURIComponent(database)}`)

  const exclusive = <A, E>(self: Effect.Effect<A, E>) => withRealClock(lock.withPermits(1)(self))

  const running = (operation: Operation) =>
    Effect.suspend(() => {
      const process = instance.running()
      return process === undefined
        ? Effect.fail(refuse(operation, "the server is not running: start it first"))
        : Effect.succeed(process)
    })

  /** Runs queries within the limit for an answer. `answer` completes "the server did not ..." in the failure. */
  const session = <A>(
    operation: Operation,
    use: (query: Sql.Query) => Effect.Effect<A, Sql.SqlFailed | OperationFailed>,
    answer = "answer"
  ): Effect.Effect<A, OperationFailed> =>
    running(operation).pipe(
      Effect.filterOrFail(
        () => !isFrozen,
        () => refuse(operation, "the server is frozen: thaw it first")
      ),
      Effect.zipRight(Sql.withAdminSession({ port, password: cluster.password }, use)),
      Effect.catchTag("SqlFailed", (failed) => Effect.fail(fail(operation, failed.reason, failed.cause))),
      Effect.timeoutFail({
        duration: options.startTimeout,
        onTimeout: () => fail(operation, `the server did not ${answer} within ${Duration.format(options.startTimeout)}`)
      }),
      withRealClock
    )

  const start = Effect.suspend(() => {
    if (instance.running() !== undefined) return Effect.void
    isFrozen = false
    return instance.start
  })

  const thaw = Effect.suspend(() => {
    const process = instance.running()
    isFrozen = false
    return process === undefined ? Effect.void : Processes.thaw(process.pid, data)
  })

  const stop = Effect.suspend(() => {
    const process = instance.running()
    if (process === undefined) return Effect.void
    signal(process.pid, "SIGINT")
    return thaw.pipe(
      Effect.zipRight(withinRealTime(process.ended, "10 seconds")),
      // a primary does not end before its standbys have received all of its WAL, and a standby may
      // be frozen
      Effect.flatMap((ended) => (ended ? Effect.void : instance.halt)),
      Effect.filterOrFail(
        () => instance.running() === undefined,
        () => fail("stop", "the processes of the server could not be stopped")
      ),
      Effect.asVoid
    )
  })

  const kill = Effect.suspend(() => {
    isFrozen = false
    return instance.destroy.pipe(
      Effect.filterOrFail(
        () => instance.running() === undefined,
        () => fail("kill", "the processes of the server could not be killed")
      ),
      Effect.asVoid
    )
  })

  const freeze = running("freeze").pipe(
    Effect.tap(() =>
      Effect.sync(() => {
        isFrozen = true
      })
    ),
    Effect.flatMap((process) => Processes.freeze(process.pid, data)),
    Effect.filterOrFail(
      (areSuspended) => areSuspended,
      () => fail("freeze", "some processes of the server could not be suspended")
    ),
    Effect.asVoid
  )

  const promote = session("promote", (query) =>
    Effect.gen(function* () {
      const [standby] = yield* query("SELECT pg_is_in_recovery() AS yes")
      if (standby?.yes !== true) return yield* refuse("promote", "the server is a primary already: promote a replica")
      const [promoted] = yield* query("SELECT pg_promote() AS done")
      if (promoted?.done !== true) return yield* fail("promote", "the server did not leave recovery in time")
    })
  )

  /** Repeats a query until its column `done` is true. */
  const until = (operation: Operation, sql: string, params: ReadonlyArray<unknown>, answer?: string) =>
    session(
      operation,
      (query) =>
        query(sql, params).pipe(
          Effect.repeat({ until: ([row]) => row?.done === true, schedule: Schedule.spaced("3 millis") })
        ),
      answer
    ).pipe(Effect.asVoid)

  const operations = { start, stop: Effect.uninterruptible(stop), kill: Effect.uninterruptible(kill) }

  return {
    name,
    data,
    refuse,
    fail,
    until,
    /** Runs an effect that takes the place of an operation. Its own start and stop are the given ones. */
    exclusively: <A, E>(use: (unlocked: typeof operations) => Effect.Effect<A, E>): Effect.Effect<A, E> =>
      exclusive(Effect.suspend(() => use(operations))),
    host: "127.0.0.1",
    port,
    url,
    ready: instance.ready,
    session,
    logs: instance.logs,
    isRunning: Effect.sync(() => instance.running() !== undefined),
    start: exclusive(operations.start),
    stop: exclusive(operations.stop),
    kill: exclusive(operations.kill),
    freeze: exclusive(Effect.uninterruptible(freeze)),
    thaw: exclusive(Effect.uninterruptible(thaw)),
    promote: exclusive(promote)
  }
})
