/**
 * The process of an embedded server: start, port, log and end.
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { signal } from "./childProcess.js"
import type { Cluster } from "./dataDirectory.js"
import * as Ports from "./freePort.js"
import * as Postmaster from "./launchPostmaster.js"
import * as Processes from "./markedProcesses.js"
import { type Operation, OperationFailed } from "./operationFailed.js"
import * as Settings from "./postgresqlConf.js"
import { withinRealTime } from "./realClock.js"

/** Options of a server. */
export interface Options {
  readonly cluster: Cluster
  readonly name: string
  readonly data: string
  readonly port?: number | undefined
  readonly startTimeout: Duration.DurationInput
}

/** The number of lines of the server's output that are kept. */
const keptLines = 200
/** The number of lines that an error shows. */
const reportedLines = 20

/**
 * Starts the process of a server, and returns operations to stop and restart it. At most one
 * process runs at a time. When the scope is closed, the process is ended and cannot be restarted.
 */
export const make = Effect.fnUntraced(function* (options: Options) {
  const { cluster, data, name } = options
  const lines: Array<string> = []
  let current: Postmaster.Postmaster | undefined
  let isPortTaken = false
  let isReleased = false

  /** Creates the error of an invalid call, without lines of the log. */
  const refuse = (operation: Operation, reason: string, cause?: unknown) =>
    new OperationFailed({ operation, server: name, reason, logs: [], cause })

  /** Creates the error of a failed server, with the last lines of its log. */
  const fail = (operation: Operation, reason: string, cause?: unknown) =>
    new OperationFailed({ operation, server: name, reason, logs: lines.slice(-reportedLines), cause })

  const onLine = (line: string) => {
    lines.push(line.replaceAll(cluster.password, "<redacted>"))
    if (lines.length > keptLines) lines.shift()
    if (/could not bind .*Address already in use/.test(line)) isPortTaken = true
  }

  const spawn = (port: number): Effect.Effect<Postmaster.Postmaster, OperationFailed> =>
    Effect.suspend(() => {
      if (isReleased) return Effect.fail(refuse("start", "the cluster has been released"))
      isPortTaken = false
      const args = ["-D", data, ...Settings.fixed(port, Processes.mark(data))]
      return Postmaster.start(cluster.binaries.postgres, args, { cwd: data, user: cluster.user }, onLine).pipe(
        Effect.mapBoth({
          onFailure: (failed) => fail("start", failed.reason, failed.cause),
          onSuccess: (postmaster) => {
            current = postmaster
            return postmaster
          }
        })
      )
    }).pipe(Effect.uninterruptible)

  const awaitStep = (port: number, step: Deferred.Deferred<void, typeof Postmaster.Ended>) =>
    Deferred.await(step).pipe(
      Effect.mapError(() =>
        fail(
          "start",
          isPortTaken
            ? `port ${port} is in use by another program: choose another port`
            : "the server ended before it was ready: the last lines of its log show the reason"
        )
      ),
      Effect.timeoutFail({
        duration: options.startTimeout,
        onTimeout: () => fail("start", `the server was not ready within ${Duration.format(options.startTimeout)}`)
      })
    )

  const destroy = Effect.suspend(() =>
    current === undefined
      ? Effect.void
      : Effect.zipRight(Processes.kill(current.pid, data), withinRealTime(current.ended, "5 seconds"))
  )

  /**
   * Ends the process without a checkpoint, and kills it after 3 seconds. A later start recovers the
   * commits from the WAL.
   */
  const halt = Effect.suspend(() => {
    if (current === undefined) return Effect.void
    const postmaster = current
    if (postmaster.isAlive()) signal(postmaster.pid, "SIGQUIT")
    return Processes.thaw(postmaster.pid, data).pipe(
      Effect.zipRight(withinRealTime(postmaster.ended, "3 seconds")),
      Effect.flatMap((ended) => (ended ? Effect.void : destroy))
    )
  })

  const freePort = Effect.mapError(Ports.freePort, (cause) => refuse("start", `no free port: ${cause.message}`, cause))

  const startOn = (port: number, retries: number): Effect.Effect<number, OperationFailed> =>
    Effect.flatMap(spawn(port), (postmaster) => Effect.as(awaitStep(port, postmaster.listening), port)).pipe(
      // another program has taken the port after the search for a free one
      Effect.catchIf(
        () => isPortTaken && retries > 0,
        () => Effect.flatMap(freePort, (next) => startOn(next, retries - 1))
      )
    )

  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => {
      isReleased = true
      return halt
    })
  )
  const port = yield* options.port === undefined
    ? Effect.flatMap(freePort, (first) => startOn(first, 10))
    : startOn(options.port, 0)

  const ready = Effect.suspend(() =>
    current === undefined ? Effect.fail(refuse("start", "the server is not running")) : awaitStep(port, current.ready)
  )

  return {
    port,
    refuse,
    fail,
    logs: Effect.sync(() => [...lines]),
    /** Returns the process if it is running. */
    running: () => (current?.isAlive() === true ? current : undefined),
    ready,
    // `destroy` first, because children of a postmaster that has crashed may still run
    start: destroy.pipe(
      Effect.zipRight(spawn(port)),
      Effect.zipRight(ready),
      Effect.onError(() => halt)
    ),
    halt,
    destroy
  }
})
