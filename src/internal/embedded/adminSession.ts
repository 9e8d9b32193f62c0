/**
 * A session of the superuser on an embedded server.
 */
import * as net from "node:net"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import Pg from "pg"
import { isolateDriver } from "../protocol/pgDriver.js"
import { thrownMessage } from "../protocol/thrownValue.js"
import { withRealClock } from "./realClock.js"

/** The application name of these sessions, by which `terminateBackends` spares them. */
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
    catch: (cause) => new SqlFailed({ reason: thrownMessage(cause), cause })
  })

/**
 * Runs an effect with a new session of the superuser in the database `postgres`, and closes the
 * session afterwards.
 */
export const withAdminSession = <A, E, R>(
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
      // the commits of operations wait for no standby, which may be stopped
      isolateDriver(client, { user: "postgres", options: "-c synchronous_commit=local" })
      // the running query reports the same error; without a listener, the event would end the
      // process
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
        // a frozen server does not answer the Terminate message; closing the socket ends the
        // session in any case
        Effect.ignore,
        Effect.ensuring(Effect.sync(() => socket.destroy())),
        withRealClock
      )
  )

/** Quotes a name as an identifier. */
export const quoteIdentifier = (name: string): string => `"${name.replaceAll('"', '""')}"`

/** Quotes a value without a backslash as a literal. */
export const quoteLiteral = (value: string | number): string => `'${String(value).replaceAll("'", "''")}'`
