import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { signal } from "./childProcess.js"
import type { Cluster } from "./dataDirectory.js"
import { EmbeddedPostgresError, type Operation } from "./error.js"
import * as Ports from "./freePort.js"
import * as Settings from "./postgresqlConf.js"
import * as Postmaster from "./postmaster.js"
import * as Family from "./processGroup.js"
import { withinRealTime } from "./realClock.js"

export interface Options {
  readonly cluster: Cluster
  readonly name: string
  readonly data: string
  readonly port?: number | undefined
  readonly startTimeout: Duration.DurationInput
}

const keptLines = 200
const reportedLines = 20

/** One server's process: there is at most one at a time, and none after the scope. */
export const make = Effect.fnUntraced(function* (options: Options) {
  const { cluster, data, name } = options
  const lines: Array<string> = []
  let current: Postmaster.Postmaster | undefined
  let portTaken = false
  let released = false

  /** The call was wrong: its reason says it all. */
  const refuse = (operation: Operation, reason: string, cause?: unknown) =>
    new EmbeddedPostgresError({ operation, server: name, reason, logs: [], cause })

  /** The server did not do it: what it wrote may say why. */
  const fail = (operation: Operation, reason: string, cause?: unknown) =>
    new EmbeddedPostgresError({ operation, server: name, reason, logs: lines.slice(-reportedLines), cause })

  const hear = (line: string) => {
    lines.push(line.replaceAll(cluster.password, "<redacted>"))
    if (lines.length > keptLines) lines.shift()
    if (/could not bind .*Address already in use/.test(line)) portTaken = true
  }

  const spawn = (port: number): Effect.Effect<Postmaster.Postmaster, EmbeddedPostgresError> =>
    Effect.suspend(() => {
      if (released) return Effect.fail(refuse("start", "the cluster has been released"))
      portTaken = false
      const args = ["-D", data, ...Settings.fixed(port, Family.mark(data))]
      return Postmaster.start(cluster.binaries.postgres, args, { cwd: data, user: cluster.user }, hear).pipe(
        Effect.mapBoth({
          onFailure: (failed) => fail("start", failed.reason, failed.cause),
          onSuccess: (postmaster) => {
            current = postmaster
            return postmaster
          }
        })
      )
    }).pipe(Effect.uninterruptible)

  const reach = (port: number, step: Deferred.Deferred<void, typeof Postmaster.Ended>) =>
    Deferred.await(step).pipe(
      Effect.mapError(() =>
        fail(
          "start",
          portTaken
            ? `port ${port} is taken by another program`
            : "it ended before it was ready; its last lines say why"
        )
      ),
      Effect.timeoutFail({
        duration: options.startTimeout,
        onTimeout: () => fail("start", `it was not ready within ${Duration.format(options.startTimeout)}`)
      })
    )

  const destroy = Effect.suspend(() =>
    current === undefined
      ? Effect.void
      : Effect.zipRight(Family.kill(current.pid, data), withinRealTime(current.ended, "5 seconds"))
  )

  /** Ends it without a checkpoint, by force after a bound. What was committed is there after a later start. */
  const halt = Effect.suspend(() => {
    if (current === undefined) return Effect.void
    const postmaster = current
    if (postmaster.alive()) signal(postmaster.pid, "SIGQUIT")
    return Family.thaw(postmaster.pid, data).pipe(
      Effect.zipRight(withinRealTime(postmaster.ended, "3 seconds")),
      Effect.flatMap((ended) => (ended ? Effect.void : destroy))
    )
  })

  const freePort = Effect.mapError(Ports.freePort, (cause) => refuse("start", `no free port: ${cause.message}`, cause))

  const claim = (port: number, more: number): Effect.Effect<number, EmbeddedPostgresError> =>
    Effect.flatMap(spawn(port), (postmaster) => Effect.as(reach(port, postmaster.listening), port)).pipe(
      // looked free, and was taken by somebody else meanwhile
      Effect.catchIf(
        () => portTaken && more > 0,
        () => Effect.flatMap(freePort, (next) => claim(next, more - 1))
      )
    )

  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => {
      released = true
      return halt
    })
  )
  const port = yield* options.port === undefined
    ? Effect.flatMap(freePort, (first) => claim(first, 10))
    : claim(options.port, 0)

  const ready = Effect.suspend(() =>
    current === undefined ? Effect.fail(refuse("start", "it is not running")) : reach(port, current.ready)
  )

  return {
    port,
    refuse,
    fail,
    logs: Effect.sync(() => [...lines]),
    /** The process, while it runs. */
    running: () => (current?.alive() === true ? current : undefined),
    ready,
    // the children of a postmaster that died by itself may still be there
    start: destroy.pipe(
      Effect.zipRight(spawn(port)),
      Effect.zipRight(ready),
      Effect.onError(() => halt)
    ),
    halt,
    destroy
  }
})
