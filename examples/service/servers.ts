import { Context, Data, Effect, Layer, Redacted, Schedule } from "effect"
import { Database, type EmbeddedPostgres, RetryPolicy } from "effect-db"

export const applicationName = "effect-db-example"

/** One server of one database, for direct connections beside the pools of the databases. */
export interface Server {
  readonly database: "app" | "audit"
  readonly role: "primary" | "replica"
  readonly url: Redacted.Redacted<string>
}

export class ServersFailed extends Data.TaggedError("ServersFailed")<{ readonly message: string }> {}

/** The servers of the databases: to query each of them, and to end connections. */
export class Servers extends Context.Tag("example/Servers")<
  Servers,
  {
    readonly embedded: boolean
    /** The servers that are running, with the roles that they have now. */
    readonly all: Effect.Effect<ReadonlyArray<Server>, ServersFailed>
    /** Ends every connection that this program has, and returns their number. */
    readonly killBackends: Effect.Effect<number, ServersFailed>
    /** Waits, for ten seconds at most, until the replicas have the data that the primary has now. Returns false after a timeout. */
    readonly caughtUp: Effect.Effect<boolean>
  }
>() {}

class Direct extends Database.Service<Direct>()("check of the server") {}

/** Runs statements on one server of any role, outside of every unit of work. They may run twice, because they only read or end connections. */
export const on = <A, E>(server: Server, use: Effect.Effect<A, E, Direct>) =>
  Effect.provide(
    Direct.independent(RetryPolicy.idempotent(use)),
    Direct.layer({
      // a standby fits, too, because nothing is written
      writer: { url: server.url, targetSessionAttrs: "any" },
      applicationName: `${applicationName}-check`,
      maxConnections: 1,
      startup: "lazy"
    })
  )

export const direct = Direct.writer

/** Returns the URL of a server without its password and its query, to be printed. */
export const shown = (server: Server): string =>
  Redacted.value(server.url)
    .replace(/^(\w+:\/\/[^:/@]*):.*@/s, "$1@")
    .replace(/\?.*$/s, "")

/** Makes the failure of an operation on the servers. */
export const failed = (cause: { readonly message: string }) => new ServersFailed({ message: cause.message })

const bounded = <E>(wait: Effect.Effect<unknown, E>): Effect.Effect<boolean> =>
  wait.pipe(
    Effect.as(true),
    Effect.retry(Schedule.spaced("100 millis")),
    Effect.timeoutTo({ duration: "10 seconds", onSuccess: (done) => done, onTimeout: () => false }),
    Effect.orElseSucceed(() => false)
  )

export const embedded = (postgres: EmbeddedPostgres.EmbeddedPostgres.Service) =>
  Layer.succeed(Servers, {
    embedded: true,
    all: Effect.gen(function* () {
      const primary = yield* postgres.currentPrimary
      const running = yield* Effect.filter([postgres.primary, ...postgres.replicas], (server) => server.isRunning)
      const replicas = running.filter((server) => server !== primary)
      const all: ReadonlyArray<Server> = [
        { database: "app", role: "primary", url: primary.url("app") },
        ...replicas.map((replica): Server => ({ database: "app", role: "replica", url: replica.url("app") })),
        { database: "audit", role: "primary", url: primary.url("audit") }
      ]
      return all
    }).pipe(Effect.mapError(failed)),
    killBackends: Effect.mapError(postgres.terminateBackends(), failed),
    caughtUp: bounded(postgres.awaitReplicas)
  })

const terminate = Effect.flatMap(
  direct,
  // MATERIALIZED, because the planner could otherwise call pg_terminate_backend for every process of the server
  (sql) => sql`
    WITH chosen AS MATERIALIZED (
      SELECT pid FROM pg_stat_activity
      WHERE datname = current_database() AND application_name = ${applicationName} AND pid <> pg_backend_pid()
    ) SELECT pid FROM chosen WHERE pg_terminate_backend(pid)`
)

/** Ends the connections of this program to one database of a server, and returns their number. */
export const killOn = (server: Server) =>
  on(server, terminate).pipe(
    Effect.map((killed) => killed.length),
    Effect.mapError(failed)
  )

const position = Effect.map(
  Effect.flatMap(direct, (sql) => sql<{ lsn: string }>`SELECT pg_current_wal_lsn()::text AS lsn`),
  ([row]) => row?.lsn ?? "0/0"
)

const hasReplayed = (lsn: string) =>
  Effect.flatMap(
    direct,
    (sql) => sql<{ done: boolean }>`
      SELECT NOT pg_is_in_recovery() OR coalesce(pg_last_wal_replay_lsn() >= ${lsn}::pg_lsn, false) AS done`
  ).pipe(Effect.repeat({ until: ([row]) => row?.done === true, schedule: Schedule.spaced("20 millis") }))

export const real = (urls: {
  readonly writer: Redacted.Redacted<string>
  readonly readers: ReadonlyArray<Redacted.Redacted<string>>
  readonly audit: Redacted.Redacted<string>
}) => {
  const primary: Server = { database: "app", role: "primary", url: urls.writer }
  const replicas = urls.readers.map((url): Server => ({ database: "app", role: "replica", url }))
  const all: ReadonlyArray<Server> = [
    ...[primary],
    ...replicas,
    { database: "audit", role: "primary", url: urls.audit }
  ]
  return Layer.succeed(Servers, {
    embedded: false,
    all: Effect.succeed(all),
    killBackends: Effect.map(Effect.forEach(all, killOn, { concurrency: "unbounded" }), (counts) =>
      counts.reduce((sum, count) => sum + count, 0)
    ),
    caughtUp: bounded(
      Effect.flatMap(on(primary, position), (lsn) =>
        Effect.forEach(replicas, (replica) => on(replica, hasReplayed(lsn)), { concurrency: "unbounded" })
      )
    )
  })
}
