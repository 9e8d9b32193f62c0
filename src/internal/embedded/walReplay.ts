/**
 * Operations on a standby: delay and pause of the replay, and the end of its stream.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import { alterSystem } from "./alterSystem.js"
import { signal } from "./childProcess.js"
import type { Operation, OperationFailed } from "./operationFailed.js"
import type { Server } from "./server.js"

/** Fails if the server is not running or not a standby. */
export const requireStandby = (operation: Operation, server: Server): Effect.Effect<void, OperationFailed> =>
  server
    .session(operation, (query) => query("SELECT pg_is_in_recovery() AS yes"))
    .pipe(
      Effect.filterOrFail(
        ([row]) => row?.yes === true,
        () => server.refuse(operation, "the server is a primary: choose a standby")
      ),
      Effect.asVoid
    )

const maxDelay = 2 ** 31 - 1

/** Sets the time that commits wait on a standby before their replay. */
export const delayReplay = (server: Server, delay: Duration.DurationInput) =>
  Effect.gen(function* () {
    const millis = Option.match(Duration.decodeUnknown(delay), {
      onNone: () => Number.NaN,
      onSome: (duration) => Math.ceil(Duration.toMillis(duration))
    })
    // a negative number and NaN are durations of 0
    if (!(millis >= 0 && millis <= maxDelay) || (typeof delay === "number" && !(delay >= 0))) {
      const given = typeof delay === "string" ? JSON.stringify(delay) : String(delay)
      return yield* server.refuse("delayReplay", `the delay is ${given}: expected a duration from 0 to 24 days`)
    }
    yield* server.exclusively(() =>
      Effect.zipRight(
        requireStandby("delayReplay", server),
        alterSystem("delayReplay", server, { recovery_min_apply_delay: millis })
      )
    )
  })

/** Stops the replay on a standby, which goes on to receive WAL. */
export const pauseReplay = (server: Server) =>
  server.exclusively(() =>
    requireStandby("pauseReplay", server).pipe(
      Effect.zipRight(server.session("pauseReplay", (query) => query("SELECT pg_wal_replay_pause()"))),
      // a standby that delays its replay pauses after the delay, and replays nothing before
      Effect.zipRight(
        server.until(
          "pauseReplay",
          `SELECT pg_get_wal_replay_pause_state() = 'paused' OR current_setting('recovery_min_apply_delay') <> '0' AS done`,
          [],
          "pause its replay"
        )
      )
    )
  )

/** Ends a pause of the replay. */
export const resumeReplay = (server: Server) =>
  server.exclusively(() =>
    requireStandby("resumeReplay", server).pipe(
      Effect.zipRight(server.session("resumeReplay", (query) => query("SELECT pg_wal_replay_resume()"))),
      Effect.asVoid
    )
  )

/** Ends the stream of a standby, which keeps what it has received. */
export const endStream = (operation: Operation, server: Server) =>
  Effect.zipRight(
    // without a connection string, a standby does not look for a primary
    alterSystem(operation, server, { primary_conninfo: "" }),
    server.session(
      operation,
      (query) =>
        query("SELECT pid FROM pg_stat_wal_receiver").pipe(
          // a standby does not end its WAL receiver while it delays its replay
          Effect.tap(([receiver]) =>
            Effect.sync(() => typeof receiver?.pid === "number" && signal(receiver.pid, "SIGTERM"))
          ),
          Effect.repeat({ until: (rows) => rows.length === 0, schedule: Schedule.spaced("3 millis") })
        ),
      "end its WAL receiver"
    )
  )
