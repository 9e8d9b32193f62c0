/**
 * Streams of the notifications and payloads of a channel.
 */

import type { SqlError } from "@effect/sql/SqlError"
import * as Chunk from "effect/Chunk"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Runtime from "effect/Runtime"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import {
  ConnectFailed,
  type DatabaseError,
  type ListenError,
  NotificationInvalid,
  toSqlError
} from "../../DatabaseError.js"
import type { Notification } from "../../Notification.js"
import { RetryPolicy } from "../../RetryPolicy.js"
import type { Executor } from "../client/executor.js"
import { sessionModeRequired } from "../client/sessionModeRequired.js"
import * as clock from "../concurrency/clock.js"
import type { ErrorLocation } from "../connection/statementFailure.js"
import type { Invalidation } from "../pool/invalidation.js"
import { checkChannel } from "../sql/notifyLimits.js"
import { BufferedListener } from "./bufferedListener.js"
import type { ListenerFailure } from "./failure.js"
import { ListenManager } from "./manager.js"
import type { ListenEdge, RetryPauses } from "./outage.js"
import { toConnectionError, toListenError } from "./toListenError.js"

/** The default number of messages that may wait for a consumer. */
const defaultBufferSize = 4096

/** Streams over the listening connection of a database. */
export interface Listen {
  readonly notifications: (
    channel: string,
    options?: { readonly bufferSize?: number | undefined }
  ) => Stream.Stream<Notification, ListenError>
  /** The payloads alone. A text cannot stand for a gap, so a gap fails the stream. */
  readonly payloads: (channel: string) => Stream.Stream<string, SqlError>
  /** Evicts the connections that an invalidation matches; returns their number. */
  readonly invalidate: (which: Invalidation) => number
}

/** Registry that the listeners of the streams are added to. */
export interface ListenerRegistry {
  readonly add: (listener: BufferedListener) => void
  readonly remove: (listener: BufferedListener) => void
}

/** Makes the pauses of outages by a schedule, whose input is the error of the last failure. */
const pausesOf =
  (schedule: Schedule.Schedule<unknown, DatabaseError>, location: ErrorLocation, runtime: Runtime.Runtime<never>) =>
  (onPause: (pause: number) => void): RetryPauses => {
    const observed = Schedule.modifyDelay(schedule, (_, pause) => {
      onPause(Duration.toMillis(pause))
      return pause
    })
    const driver = Runtime.runSync(runtime, Schedule.driver(observed))
    return {
      next: (failure, callback) => {
        let isCancelled = false
        const error = toConnectionError(location, failure)
        // yields, so that `callback` is called after `next` has returned; is interruptible, because
        // the runtime may come from an uninterruptible fiber that opened the database
        const pause = Effect.interruptible(Effect.zipRight(Effect.yieldNow(), driver.next(error)))
        const cancel = Runtime.runCallback(runtime, pause, {
          onExit: (exit) => {
            if (!isCancelled) callback(Exit.isSuccess(exit))
          }
        })
        return () => {
          isCancelled = true
          cancel()
        }
      }
    }
  }

/** Adds a listener, and retries by the policy for up to `acquireTimeout`, as for a statement. */
const join = (
  executor: Executor,
  registry: ListenerRegistry,
  listener: BufferedListener
): Effect.Effect<void, ListenError> =>
  Effect.suspend(() => {
    const { name: database, pool, writer } = executor.config
    const deadline = executor.retry.deadline()
    const attempt = Effect.async<void, ListenError>((resume) => {
      const timer = clock.timer(deadline - clock.now(), () => {
        registry.remove(listener)
        const cause = new Error(`the connection could not listen within ${pool.acquireTimeout} ms`)
        resume(Effect.fail(new ConnectFailed({ database, server: writer.name, reason: "unresponsive", cause })))
      })
      listener.onJoined = (error) => {
        clock.clear(timer)
        resume(error === undefined ? Effect.void : Effect.fail(error))
      }
      registry.add(listener)
      return Effect.sync(() => {
        clock.clear(timer)
        registry.remove(listener)
      })
    })
    return executor.retry.attemptCheckout(attempt, deadline)
  })

const notificationsOf = (
  executor: Executor,
  registry: ListenerRegistry,
  listener: BufferedListener
): Stream.Stream<Notification, ListenError> => {
  const pull: Effect.Effect<Chunk.Chunk<Notification>, Option.Option<ListenError>> = Effect.suspend(() => {
    if (listener.state === "joining") {
      return Effect.zipRight(Effect.mapError(join(executor, registry, listener), Option.some), pull)
    }
    const drained = listener.drain()
    if (drained.length > 0) return Effect.succeed(Chunk.unsafeFromArray(drained))
    if (listener.failure !== undefined) return Effect.fail(Option.some(listener.failure))
    return Effect.zipRight(listener.awaitChange, pull)
  })
  return Stream.unwrapScoped(
    Effect.as(
      Effect.addFinalizer(() => Effect.sync(() => registry.remove(listener))),
      Stream.repeatEffectChunkOption(pull)
    )
  )
}

/** Creates the streams over the listeners of a registry. */
export const makeStreams = (
  executor: Executor,
  registry: ListenerRegistry
): Pick<Listen, "notifications" | "payloads"> => {
  const { config } = executor
  const location: ErrorLocation = { database: config.name, server: config.writer.name }
  const listen = (channel: string, bufferSize: number, toleratesGaps: boolean) =>
    Stream.suspend(() => {
      if (config.session.mode !== "session") return Stream.fail(sessionModeRequired(config.name, "listen"))
      const invalid = checkChannel(channel)
      if (invalid !== undefined) return Stream.fail(new NotificationInvalid({ database: config.name, ...invalid }))
      const toError = (failure: ListenerFailure) => toListenError(location, channel, failure)
      return notificationsOf(executor, registry, new BufferedListener(channel, bufferSize, toleratesGaps, toError))
    })
  return {
    notifications: (channel, { bufferSize = defaultBufferSize } = {}) => listen(channel, Math.max(1, bufferSize), true),
    payloads: (channel) =>
      listen(channel, defaultBufferSize, false).pipe(
        Stream.filterMap((notification) =>
          notification._tag === "Message" ? Option.some(notification.payload) : Option.none()
        ),
        Stream.mapError(toSqlError)
      )
  }
}

/**
 * Creates the streams over the listening connection of a database. The first listener opens the
 * connection; the end of the scope closes it.
 */
export const makeListen = (executor: Executor): Effect.Effect<Listen, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { config, observer } = executor
    const runtime = yield* Effect.runtime()
    const policy = yield* RetryPolicy
    const location: ErrorLocation = { database: config.name, server: config.writer.name }
    const edge: ListenEdge = {
      pauses: pausesOf(policy.listen, location, runtime),
      messageOf: (failure) => toConnectionError(location, failure).message
    }
    const manager = yield* Effect.acquireRelease(
      Effect.sync(() => {
        const { writer, writerSearch } = executor.topology
        return new ListenManager(config, writer.credentials, writerSearch, observer, edge)
      }),
      (manager) => Effect.async<void>((resume) => manager.close(config.shutdownTimeout, () => resume(Effect.void)))
    )
    return { ...makeStreams(executor, manager), invalidate: (which) => manager.invalidate(which) }
  })
