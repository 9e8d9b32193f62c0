import * as net from "node:net"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import Pg from "pg"
import { isolateDriver } from "../protocol/pgDriver.js"
import { withRealClock } from "./realClock.js"

/** Marks our own sessions, so that `terminateBackends` spares them. */
export const applicationName = "effect-db/EmbeddedPostgres"

export class SqlFailed extends Data.TaggedError("SqlFailed")<{ readonly reason: string; readonly cause: unknown }> {}

interface Target {
  readonly port: number
  readonly password: string
}

export type Query = (
  sql: string,
  params?: ReadonlyArray<unknown>
) => Effect.Effect<ReadonlyArray<Record<string, unknown>>, SqlFailed>

const attempt = <A>(run: () => Promise<A>): Effect.Effect<A, SqlFailed> =>
  Effect.tryPromise({
    try: run,
    catch: (cause) => new SqlFailed({ reason: cause instanceof Error ? cause.message : String(cause), cause })
  })

/** Uses a short-lived session of the superuser, in database `postgres`. It is gone when this ends. */
export const adminSession = <A, E, R>(
  target: Target,
  use: (query: Query) => Effect.Effect<A, E, R>
): Effect.Effect<A, E | SqlFailed, R> =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const socket = new net.Socket()
      const client = new Pg.Client({
        host: "127.0.0.1",
        port: target.port,
        user: "postgres",
        password: target.password,
        database: "postgres",
        ssl: false,
        sslnegotiation: "postgres",
        application_name: applicationName,
        connectionTimeoutMillis: 5_000,
        stream: () => socket
      })
      isolateDriver(client, { user: "postgres", options: "" })
      // the query in flight fails with the same error; unheard, it would end the process
      client.on("error", () => {})
      return { client, socket }
    }),
    ({ client }) =>
      Effect.zipRight(
        attempt(() => client.connect()),
        use((sql, params = []) =>
          Effect.map(
            attempt(() => client.query(sql, [...params])),
            ({ rows }) => rows
          )
        )
      ),
    ({ client, socket }) =>
      attempt(() => client.end()).pipe(
        Effect.interruptible,
        Effect.timeout("1 second"),
        Effect.ignore,
        // a server that stands still never answers the goodbye
        Effect.ensuring(Effect.sync(() => socket.destroy())),
        withRealClock
      )
  )

/** A name as the server reads it back. */
export const identifier = (name: string): string => `"${name.replaceAll('"', '""')}"`
