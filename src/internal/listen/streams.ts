/**
 * What listeners of a database are given: streams.
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
import { requiresSessionMode } from "../client/requireSessionMode.js"
import * as clock from "../concurrency/clock.js"
import type { Invalidation } from "../pool/pool.js"
import { checkChannel } from "../sql/notifyLimits.js"
import { ListenManager, type Pauses } from "./manager.js"
import { Subscriber } from "./subscriber.js"

/** How many messages wait for a consumer, unless it says otherwise. */
const defaultBufferSize = 4096

/** How the channels of a database are listened to. */
export interface Listen {
  readonly notifications: (
    channel: string,
    options?: { readonly bufferSize?: number | undefined }
  ) => Stream.Stream<Notification, ListenError>
  /** Only what was said; a gap has no place in it, so it is the end, as a failure. */
  readonly payloads: (channel: string) => Stream.Stream<string, SqlError>
  /** Gives up the connection, where it is meant; gives how many it were. */
  readonly invalidate: (which: Invalidation) => number
}

const pausesOf =
  (schedule: Schedule.Schedule<unknown, DatabaseError>, runtime: Runtime.Runtime<never>) =>
  (announce: (pause: number) => void): Pauses => {
    const announced = Schedule.modifyDelay(schedule, (_, pause) => {
      announce(Duration.toMillis(pause))
      return pause
    })
    const driver = Runtime.runSync(runtime, Schedule.driver(announced))
    return {
      next: (error, go) => {
        let over = false
        // not before this call has returned; and who opens the database may not be interruptible at that moment
        const pause = Effect.interruptible(Effect.zipRight(Effect.yieldNow(), driver.next(error)))
        const cancel = Runtime.runCallback(runtime, pause, {
          onExit: (exit) => {
            if (!over) go(Exit.isSuccess(exit))
          }
        })
        return () => {
          over = true
          cancel()
        }
      }
    }
  }

/** Joins, again by the policy where that may help, within the time that a statement has for its connection. */
const join = (engine: Executor, channels: ListenManager, listener: Subscriber): Effect.Effect<void, ListenError> =>
  Effect.suspend(() => {
    const { name: database, pool, writer } = engine.config
    const deadline = engine.deadline()
    const attempt = Effect.async<void, ListenError>((resume) => {
      const impatient = clock.timer(deadline - clock.now(), () => {
        channels.leave(listener)
        const cause = new Error(`nothing can be heard after ${pool.acquireTimeout} ms`)
        resume(Effect.fail(new ConnectFailed({ database, server: writer.name, reason: "unresponsive", cause })))
      })
      listener.onJoined = (error) => {
        clock.clear(impatient)
        resume(error === undefined ? Effect.void : Effect.fail(error))
      }
      channels.join(listener)
      return Effect.sync(() => {
        clock.clear(impatient)
        channels.leave(listener)
      })
    })
    return engine.again(attempt, deadline)
  })

const hear = (
  engine: Executor,
  channels: ListenManager,
  listener: Subscriber
): Stream.Stream<Notification, ListenError> => {
  const pull: Effect.Effect<Chunk.Chunk<Notification>, Option.Option<ListenError>> = Effect.suspend(() => {
    if (listener.state === "joining") {
      return Effect.zipRight(Effect.mapError(join(engine, channels, listener), Option.some), pull)
    }
    const heard = listener.take()
    if (heard.length > 0) return Effect.succeed(Chunk.unsafeFromArray(heard))
    if (listener.failure !== undefined) return Effect.fail(Option.some(listener.failure))
    return Effect.zipRight(listener.heard, pull)
  })
  return Stream.unwrapScoped(
    Effect.as(
      Effect.addFinalizer(() => Effect.sync(() => channels.leave(listener))),
      Stream.repeatEffectChunkOption(pull)
    )
  )
}

/** The listening connection of a database, for as long as the scope lasts. */
export const makeListen = (engine: Executor): Effect.Effect<Listen, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { config, observer } = engine
    const runtime = yield* Effect.runtime()
    const policy = yield* RetryPolicy
    const channels = yield* Effect.acquireRelease(
      Effect.sync(
        () => new ListenManager(config, engine.topology.writer.credentials, observer, pausesOf(policy.listen, runtime))
      ),
      (channels) => Effect.async<void>((resume) => channels.close(config.shutdownTimeout, () => resume(Effect.void)))
    )
    const listen = (channel: string, bufferSize: number, toleratesGaps: boolean) =>
      Stream.suspend(() => {
        if (config.session.mode !== "session") return Stream.fail(requiresSessionMode(config.name, "listen"))
        const invalid = checkChannel(channel)
        if (invalid !== undefined) return Stream.fail(new NotificationInvalid({ database: config.name, ...invalid }))
        return hear(engine, channels, new Subscriber(channel, bufferSize, toleratesGaps))
      })
    return {
      invalidate: (which) => channels.invalidate(which),
      notifications: (channel, { bufferSize = defaultBufferSize } = {}) =>
        listen(channel, Math.max(1, bufferSize), true),
      payloads: (channel) =>
        listen(channel, defaultBufferSize, false).pipe(
          Stream.filterMap((heard) => (heard._tag === "Message" ? Option.some(heard.payload) : Option.none())),
          Stream.mapError(toSqlError)
        )
    }
  })
