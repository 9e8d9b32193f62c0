/**
 * The settings of a database, as a program gives them.
 *
 * The module `DatabaseConfig` checks them, and exports these types as well.
 *
 * @since 0.3.0
 */
import type { SqlClient } from "@effect/sql/SqlClient"
import type { PgClientConfig } from "@effect/sql-pg/PgClient"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as LogLevel from "effect/LogLevel"
import type * as Redacted from "effect/Redacted"
import type { DiscoveredHost, ServerInput, Ssl } from "./ServerConfig.js"

/**
 * Kind of a server: `"session"`, a server that has a session for each connection, or
 * `"transactionPooler"`, a pooler such as PgBouncer in transaction mode, which runs each transaction
 * in any free session.
 *
 * With a transaction pooler, sessions get no settings at login, no statement is prepared under a
 * name, and limits are set in each transaction. Each statement of a reader runs in a read-only
 * transaction of its own, in the same round trip. If `statementTimeout` or `lockTimeout` is set,
 * each autocommit statement runs in a transaction as well, so commands that refuse to run in one
 * (`VACUUM`, `CREATE INDEX CONCURRENTLY`) fail. `listen` and `reserve` need a session and fail with
 * `ConfigInvalid`. Advisory locks of a session, `SET` without `LOCAL` and temporary tables are not
 * detected: they remain in the session, and another client gets that session with them.
 *
 * @see {@link DatabaseOptions} for the option `mode`
 * @since 0.1.0
 * @category models
 */
export type Mode = "session" | "transactionPooler"

/**
 * Parsers of columns, by the names of types. A parser receives the text that the server has sent.
 *
 * A name is `mood`, or `app.mood` for the type of one schema only. A parser reads columns of the
 * type, and the elements of columns of its arrays. The name of a type is looked up on each server
 * when a column of the type first arrives.
 *
 * @see {@link Types} for parsers by the numbers of types
 * @since 0.2.0
 * @category models
 */
export type TypesByName = Readonly<Record<string, (text: string) => unknown>>

/**
 * Parsers of columns: by the numbers of types, as in node-postgres, or {@link TypesByName}.
 *
 * @see {@link DatabaseOptions} for the option `types`
 * @since 0.2.0
 * @category models
 */
export type Types = NonNullable<PgClientConfig["types"]> | TypesByName

/**
 * User and password, as a provider returns them.
 *
 * @see {@link DatabaseOptions} for the option `credentials`
 * @since 0.1.0
 * @category models
 */
export interface Credentials {
  /** The name of the user. */
  readonly username: string
  /** The password; `undefined` for a user who needs none. */
  readonly password: Redacted.Redacted<string> | undefined
  /**
   * A value that identifies these credentials: connections made with the same version are not
   * replaced. A provider that makes a new token each time sets a constant value, such as the user.
   *
   * @default the user and the password themselves
   */
  readonly version?: string | number | undefined
}

/**
 * Work on one session of a pool.
 *
 * Its `SqlClient` runs every statement on the physical connection of the session. The timeout of the
 * work is `connectTimeout`.
 *
 * @see {@link PoolOptions} for the options `onConnect`, `onCheckout` and `resetOnReturn`
 * @since 0.1.0
 * @category models
 */
export type SessionEffect = Effect.Effect<unknown, unknown, SqlClient>

/**
 * Options of a pool.
 *
 * There is one pool for writes on the primary, and one for reads on each server. A duration is
 * anything that Effect's `Duration` accepts; a plain number is in milliseconds.
 *
 * @see {@link DatabaseOptions} for all options of a database
 * @see `DatabaseConfig.PoolConfig` for the same with the defaults
 * @since 0.1.0
 * @category models
 */
export interface PoolOptions {
  /**
   * The largest number of physical connections of one pool, from 1.
   *
   * @default 10, and 1 with the strategies `"single"` and `"assertSingle"`
   */
  readonly maxConnections?: number | undefined
  /**
   * The number of connections that stay open while they are idle: at most `maxConnections`, and 0
   * with the strategy `"none"`.
   *
   * @default 0
   */
  readonly minConnections?: number | undefined
  /**
   * True if the process may end while connections of the pool are idle: only a statement or a
   * transaction keeps the process alive. The option is for scripts that do not close their databases;
   * the server then reports these connections as lost. With `socket`, the streams need a method
   * `unref`.
   *
   * @default false
   */
  readonly idleExit?: boolean | undefined
  /**
   * The number of further connections that may be open beyond `maxConnections`. They are closed when
   * no caller waits for them.
   *
   * @default 0
   */
  readonly maxOverflow?: number | undefined
  /**
   * The time that a caller waits for a connection, retries included; it must be finite. After it
   * the caller fails with `PoolExhausted`, or with `ConnectFailed` if the server is unavailable.
   *
   * @default "30 seconds"
   */
  readonly acquireTimeout?: Duration.DurationInput | undefined
  /**
   * The number of callers of the database that may wait for an unavailable server, each until
   * `acquireTimeout` or its own timeout. Further callers fail at once with `PoolExhausted`, for the
   * reason `outage`. The limit also holds while the database is paused (reason `paused`).
   *
   * @default 1000
   */
  readonly maxOutageWaiters?: number | undefined
  /**
   * The timeout of one attempt to connect to a server, all its hosts together; finite and above 0.
   * It takes precedence over `connect_timeout` of a connection string, which is for each host.
   *
   * @default `connect_timeout` of the connection string for each host, else "5 seconds"
   */
  readonly connectTimeout?: Duration.DurationInput | undefined
  /**
   * The time after which an idle connection beyond `minConnections` is closed; infinity means never.
   *
   * @default "5 minutes"
   */
  readonly idleTimeout?: Duration.DurationInput | undefined
  /**
   * The age from which a connection is closed when it is not in use, above 0; it is up to 2.5 %
   * less, at random. Infinity means never.
   *
   * @default "30 minutes"
   */
  readonly maxLifetime?: Duration.DurationInput | undefined
  /**
   * The idle time after which a connection is validated before its checkout.
   *
   * @default "1 second"
   */
  readonly validateAfterIdle?: Duration.DurationInput | undefined
  /**
   * The choice among idle connections: the connection that was used last (`"lifo"`), or the
   * connection that has been idle for longest (`"fifo"`).
   *
   * @default "lifo"
   */
  readonly order?: "lifo" | "fifo" | undefined
  /**
   * The way in which connections are reused and shared.
   *
   * - `"pooled"`: connections stay open and are used again.
   * - `"none"`: a connection per checkout, closed after it, with up to `maxConnections` at a time.
   * - `"single"`: one connection, which all callers use in turn.
   * - `"assertSingle"`: one connection; a second checkout at the same time fails with the location
   *   of the first. For tests.
   *
   * @default "pooled"
   */
  readonly strategy?: "pooled" | "none" | "single" | "assertSingle" | undefined
  /**
   * The time within which callers should be served while the pool is overloaded: clearly more
   * callers arrive than can be served. Then a caller that finds a queue that is too long for this
   * time fails at once with `PoolExhausted`, and a queued caller fails after twice this time, so
   * that the other callers are served fast. A burst that drains is no overload, and neither is a
   * fixed number of fibers. The time must be above 0; infinity turns load shedding off.
   *
   * @default "50 millis"
   */
  readonly queueTarget?: Duration.DurationInput | undefined
  /**
   * The work at each checkin. A connection that is busy or in a transaction is closed instead.
   * `"discardAll"` drops the settings, prepared statements, locks, listeners and
   * temporary tables of the session, and runs `onConnect` again. If the work fails, the connection
   * is closed. Behind a transaction pooler `"discardAll"` is refused.
   *
   * @default "none"
   */
  readonly resetOnReturn?: "none" | "discardAll" | SessionEffect | undefined
  /**
   * The work on each new connection before it is used. If it fails, the connect fails with the
   * reason `setup`.
   *
   * @default undefined (no work)
   */
  readonly onConnect?: SessionEffect | undefined
  /**
   * The work on a connection before each checkout. If it fails, the connection is closed and
   * another one is tried.
   *
   * @default undefined (no work)
   */
  readonly onCheckout?: SessionEffect | undefined
  /**
   * The time after which a connection in use is reported as a leak, with the fiber that holds it
   * and the location in the program. Recording the two costs some microseconds per statement.
   *
   * @default Duration.infinity (nothing is reported)
   */
  readonly leakThreshold?: Duration.DurationInput | undefined
}

/**
 * Limits that the server enforces for every session, and the name of the session.
 *
 * A duration is anything that Effect's `Duration` accepts; a plain number is in milliseconds. The
 * server gets whole milliseconds, rounded up. Zero and infinity mean no limit.
 *
 * @see {@link DatabaseOptions} for all options of a database
 * @see `DatabaseConfig.SessionConfig` for the same with the defaults
 * @since 0.1.0
 * @category models
 */
export interface SessionOptions {
  /**
   * The limit of a statement; after it the statement fails with `StatementTimeout`.
   *
   * If it is set, it also limits the time without an answer, except behind a transaction pooler. If
   * an exchange, COMMIT included, has no answer after the limit, the server is checked through
   * another socket. If the server does not answer there either, the connection is closed a second
   * after the limit, and the statement fails with `Disconnected`. If the server answers, but the
   * backend process of the statement waits for the client, the connection is closed a little later.
   * While the process is working, the statement continues to wait.
   *
   * @default the server's `statement_timeout`
   */
  readonly statementTimeout?: Duration.DurationInput | undefined
  /**
   * The limit of the wait for a lock; after it the statement fails with `LockTimeout`.
   *
   * @default the server's `lock_timeout`
   */
  readonly lockTimeout?: Duration.DurationInput | undefined
  /**
   * The limit of an idle transaction, which holds locks and keeps tables from being vacuumed. After
   * it the server ends the session, and the next statement fails with `IdleTransactionTimeout`.
   *
   * @default the limit in `options` of the connection string, else "1 minute"
   */
  readonly idleInTransactionTimeout?: Duration.DurationInput | undefined
  /**
   * The name that `pg_stat_activity` shows.
   *
   * @default `application_name` of the connection string, else "effect-db"
   */
  readonly applicationName?: string | undefined
}

/**
 * Database whose servers have given roles.
 *
 * @see {@link CommonOptions} for the option `readers`
 * @see {@link HostsOption} for servers whose roles are discovered
 * @since 0.3.0
 * @category models
 */
export interface WriterOption {
  /**
   * The primary. With several hosts, it is the host that accepts writes: all of them are probed at
   * once, and again when a connection is lost. A former primary, which is on an older timeline, is
   * not used. The first connect of a process therefore waits for the answers of all hosts, for 0.3
   * seconds at most after one has accepted writes.
   */
  readonly writer: ServerInput
}

/**
 * Database whose servers are one cluster, with roles that are discovered.
 *
 * @see {@link CommonOptions} for the option `discover`
 * @see {@link WriterOption} for servers with given roles
 * @since 0.3.0
 * @category models
 */
export interface HostsOption {
  /**
   * All servers of one cluster, whose roles are discovered: one server in any form, with several
   * hosts, which share the database, the user, the password and the settings of TLS. It is refused
   * beside `writer` and `readers`.
   *
   * The host that accepts writes is the writer, as with `writer` and several hosts. Each other host
   * serves reads if it is a standby; the writer leaves reading, and returns after it has become a
   * standby. Without a standby that answers, readers use the writer, read-only. Each host needs a
   * name of its own. `targetSessionAttrs` may be `"read-write"` or `"primary"`.
   */
  readonly hosts: ServerInput
}

/**
 * Settings of one named database, without its servers.
 *
 * A duration is anything that Effect's `Duration` accepts; a plain number is in milliseconds.
 *
 * @see {@link DatabaseOptions}, which has the servers as well
 * @since 0.3.0
 * @category models
 */
export interface CommonOptions extends PoolOptions, SessionOptions {
  /**
   * The replicas. Without one, readers use the primary, read-only.
   *
   * @default []
   */
  readonly readers?: ReadonlyArray<ServerInput> | undefined
  /**
   * The hosts of the cluster, beside `hosts` or in place of the hosts in it. The effect is run at the
   * start, every `discoverInterval`, and when the writer is lost: at once, then every second until
   * there is a writer. The timeout of one run is `connectTimeout`. With `startup: "lazy"` the first
   * run is at the first connect.
   *
   * An answer replaces all known hosts. A new host is probed, and serves reads if it is a standby.
   * A host that is missing gets no further connection, and its connections are closed when they are
   * not in use; but the writer stays until it does not answer as the writer, or another host does,
   * so that an incomplete answer stops no writes. If the effect fails, has no answer in time, or
   * returns no host or an invalid one, the known hosts stay, and `Observation.DiscoveryFailed` has
   * the message of its failure, which must contain no secret. It needs `hosts`, and is refused behind
   * a transaction pooler.
   *
   * @see `Discovery` for DNS, Patroni and a static list
   * @default undefined (the hosts in `hosts`)
   */
  readonly discover?: Effect.Effect<ReadonlyArray<DiscoveredHost>, unknown> | undefined
  /**
   * The interval of `discover`, above 0; infinity means only at the start and after the loss of the
   * writer.
   *
   * @default "30 seconds"
   */
  readonly discoverInterval?: Duration.DurationInput | undefined
  /**
   * User and password in place of those in `writer`, `readers` and `hosts`, requested for each physical
   * connection. After a change, connections with the old credentials are replaced gradually, each
   * when it is not in use. If a server refuses the credentials, they are requested once more. If
   * the effect fails, the connect fails with the reason `credentials`.
   *
   * @default undefined (those of each server)
   */
  readonly credentials?: Effect.Effect<Credentials, unknown> | undefined
  /**
   * A file with the password for every server without one; it is read again for each new physical
   * connection. It is refused beside `credentials`.
   *
   * @default undefined (no file)
   */
  readonly passwordFile?: string | undefined
  /**
   * TLS for every server without an `ssl` of its own; it takes precedence over the URL.
   *
   * @default as the URL says, else a verified certificate, but no TLS for a loopback address or a
   * socket
   */
  readonly ssl?: Ssl | undefined
  /**
   * The kind of all servers of the database; `"transactionPooler"` also works without a pooler.
   *
   * @default "transactionPooler" if a URL of the database has `pgbouncer=true`, else "session"
   */
  readonly mode?: Mode | undefined
  /**
   * The time of the first connect. With `"verify"` the writer must answer when the layer is built;
   * with `"lazy"` no connection is opened before the first statement.
   *
   * @default "verify"
   */
  readonly startup?: "verify" | "lazy" | undefined
  /**
   * The time that statements and transactions have to end when the layer is released; it must be
   * finite.
   *
   * @default "5 seconds"
   */
  readonly shutdownTimeout?: Duration.DurationInput | undefined
  /**
   * The idle time after which TCP sends probes, on every connection. They detect a dead network some
   * seconds later, and prevent that a firewall drops an idle connection. From 1 second to 9 hours, or
   * `false` for no probes.
   *
   * @default `keepalives_idle` of the connection string, else "30 seconds"
   */
  readonly keepAlive?: Duration.DurationInput | false | undefined
  /**
   * The treatment of a COMMIT whose answer was lost. With `"status"` the client asks the server for
   * the status of the transaction, for up to `resolveWithin`: the work succeeds if it is stored, and
   * fails with `Disconnected`, undone, if it is not. With `"unknown"` it fails with
   * `CommitOutcomeUnknown` at once. After a restart of the server only the loss of the work can be
   * proved, and after a failover nothing: then it fails with `CommitOutcomeUnknown`, too.
   *
   * With `"marker"` each transaction that has written also stores a small row in the table
   * `effect_db.outcome`, in the exchange of COMMIT. The row proves the outcome after a restart or a
   * failover, too: in the history that the new primary has. Work that is proved undone cannot be
   * stored later. The settings are `outcomeTable` and `outcomeRetention`.
   *
   * `"status"` needs the id of the transaction before COMMIT. A short query behind the first write,
   * in the same message, returns it. So `pg_stat_activity` may show this query for a transaction that
   * is idle. A transaction that has written only by another command than INSERT, UPDATE, DELETE,
   * MERGE, WITH or SELECT, or by COPY or as a stream, has one more round trip before COMMIT.
   *
   * @default "status"
   */
  readonly outcome?: "status" | "marker" | "unknown" | undefined
  /**
   * The creation of the table `effect_db.outcome` for `outcome: "marker"`. With `"create"` the
   * client creates it, with its schema and its functions, if it is missing. With `"exists"` another
   * user must have created it, for example by `Migrations.outcomeTable`. The user needs USAGE on the
   * schema, and SELECT, INSERT, UPDATE and DELETE on the table; a role that a transaction sets needs
   * USAGE alone. Otherwise the layer fails with `ConnectFailed` and the reason `outcomeTable`; with
   * `startup: "lazy"` its first transaction does.
   *
   * @default "create"
   */
  readonly outcomeTable?: "create" | "exists" | undefined
  /**
   * The time after which the rows of `outcome: "marker"` are deleted, in batches, by each process
   * about once a minute. It must be longer than `resolveWithin`, and with `twoPhase` an hour
   * at least. After this time an outcome cannot be proved any more. Give the same time to all
   * processes that use the database, because each of them deletes the rows of all.
   *
   * @default "1 day"
   */
  readonly outcomeRetention?: Duration.DurationInput | undefined
  /**
   * True if the transactions of the database may end in two phases, for units of work with `atomic:
   * "twoPhase"`. It needs `outcome: "marker"`, and `max_prepared_transactions` above 0 on the server:
   * otherwise the layer fails with `ConfigInvalid`, or with `startup: "lazy"` the end of the first such
   * unit does. Each process looks for prepared transactions that another one has left, at its start
   * (with `"lazy"` from its first such unit) and about every 10 seconds, on a connection of its own
   * beside those of `maxConnections`, which it closes after that.
   *
   * @see `UnitOfWork.Options` for the option `atomic`
   * @default false
   */
  readonly twoPhase?: boolean | undefined
  /**
   * The longest time to find out if a COMMIT without an answer is stored; it must be finite.
   *
   * @default "5 seconds"
   */
  readonly resolveWithin?: Duration.DurationInput | undefined
  /**
   * The time for which a failed reader without a monitor takes no part in routing; then one read
   * tries it. A reader with a monitor returns when the monitor has an answer: the monitor tries it
   * at this interval, or at `monitorInterval` if that is shorter.
   *
   * @default "5 seconds"
   */
  readonly readerRetryDelay?: Duration.DurationInput | undefined
  /**
   * The longest time that a reader may be behind the primary, above 0. A reader that is further
   * behind in two successive checks of its monitor takes no part in routing until two checks have
   * found it below half of the limit. The first check after a start or an outage decides alone. A
   * reader that receives no log from the primary, or has another history, is infinitely far behind.
   * The lag of an idle primary's replica is zero. Infinity means no limit.
   *
   * @default "1 minute"
   */
  readonly maxLag?: Duration.DurationInput | undefined
  /**
   * The same limit in bytes of the log, a number from 1.
   *
   * @default Number.POSITIVE_INFINITY
   */
  readonly maxLagBytes?: number | undefined
  /**
   * The server of a read if all readers that answer are further behind than `maxLag` or `maxLagBytes`:
   * the primary; the reader that is least behind; or none, and the read fails with
   * `NoReplicaCaughtUp`, unless its consistency names the primary.
   *
   * @default "primary"
   */
  readonly whenAllBehind?: WhenAllBehind | undefined
  /**
   * The largest number of connections for reads on the primary, from 1 to `maxConnections`. It limits the load that the
   * primary takes over if no reader can be used; further reads wait, as in every pool.
   *
   * @default `maxConnections`
   */
  readonly maxPrimaryReads?: number | undefined
  /**
   * True if the servers are monitored, each on a connection of its own: the readers and their
   * primary, and the hosts of a writer that has several of them. The monitors start with the first
   * read, or the first search for the writer. Without a monitor, the successor of a writer is found
   * after a connection is lost, and the lag of a reader is not known. A reader with several hosts,
   * and servers behind a transaction pooler, are not monitored.
   *
   * From PostgreSQL 19 on, a monitored reader also has a connection on which `WAIT FOR LSN` waits
   * for the writes that reads must see, while there are such reads. Before PostgreSQL 19, its
   * position is queried at intervals.
   *
   * @default true
   */
  readonly monitor?: boolean | undefined
  /**
   * The interval of the monitor, above 0. For 30 seconds after a change of the writer, and while the
   * lag of a reader crosses its limit, it is 100 ms.
   *
   * @default "5 seconds"
   */
  readonly monitorInterval?: Duration.DurationInput | undefined
  /**
   * The time after which a monitored server that answers neither callers nor its monitor is given up, with the
   * connections in use; finite and above 0. It must be longer than several round trips; a shorter
   * time also gives up a server that is only slow.
   *
   * @default "1 second"
   */
  readonly detectionTime?: Duration.DurationInput | undefined
  /**
   * The interval of heartbeats on the listening connection, above 0; infinity means never.
   *
   * @default "30 seconds"
   */
  readonly listenHeartbeat?: Duration.DurationInput | undefined
  /**
   * The number of prepared statements that a connection caches. 0 prepares none; behind a transaction
   * pooler the number is always 0.
   *
   * @default 256
   */
  readonly preparedStatements?: number | undefined
  /**
   * The largest row, or part of a COPY, that a server may send, in bytes of the protocol. A
   * statement with a larger answer fails with `Disconnected`. A row takes twice its size in memory
   * while it arrives.
   *
   * @default 268435456 (256 MiB)
   */
  readonly maxRowBytes?: number | undefined
  /**
   * The bytes of notices, errors and reported settings that a server may send in answer to one
   * exchange. A statement with a larger answer fails with `Disconnected`.
   *
   * @default 67108864 (64 MiB)
   */
  readonly maxNoticeBytes?: number | undefined
  /**
   * The bytes that a server may send during a login, and the bytes of reported settings in the life
   * of a connection. If a server sends more, the connect fails with the reason `protocol`.
   *
   * @default 1048576 (1 MiB)
   */
  readonly maxStartupBytes?: number | undefined
  /**
   * The iterations of SCRAM that a server may request (`scram_iterations`). Each login computes
   * them: a million take about a second of one of Node's threads. If a server requests more, the
   * connect fails with the reason `authentication`.
   *
   * @default 1000000
   */
  readonly maxScramIterations?: number | undefined
  /**
   * Function that renames the columns of rows, such as a function by `Statement.defaultTransforms` of
   * `@effect/sql`. `withoutTransform` of a statement skips it.
   *
   * @default undefined (names stay the same)
   */
  readonly transformResultNames?: ((name: string) => string) | undefined
  /**
   * Function that renames the identifiers of statements: `sql(name)`, and the keys of `sql.insert`
   * and `sql.update`.
   *
   * @default undefined (names stay the same)
   */
  readonly transformQueryNames?: ((name: string) => string) | undefined
  /**
   * True if the two functions also rename the keys of JSON values.
   *
   * @default true
   */
  readonly transformJson?: boolean | undefined
  /**
   * Parsers of columns: by the numbers of types, as in node-postgres, or {@link TypesByName}.
   *
   * @default the parsers of node-postgres
   */
  readonly types?: Types | undefined
  /**
   * Attributes that all spans of the database get, beside those of OpenTelemetry.
   *
   * @default undefined (none)
   */
  readonly spanAttributes?: Record<string, unknown> | undefined
  /**
   * The observations that are logged, by the loggers of the fiber that builds the layer: `true`
   * logs all, each at its own level; a level logs those of at least that level. Problems are
   * warnings, the life of connections is info, transactions and waits are debug. The minimum log
   * level of the program holds as well.
   *
   * @default false
   */
  readonly echo?: boolean | LogLevel.Literal | undefined
}

/**
 * Settings of one named database.
 *
 * Either `writer` or `hosts` is required. A setting that is not valid, or has an unknown name, is refused with `ConfigInvalid`.
 *
 * @see `DatabaseConfig.make` to check settings
 * @see `DatabaseConfig.ConfigOptions` for settings from `Config`
 * @see `Database.Service` for the class that takes them
 * @since 0.1.0
 * @category models
 */
export type DatabaseOptions = CommonOptions & (WriterOption | HostsOption)

/**
 * Server of a read if all readers are too far behind: the primary, the reader that is least behind, or
 * none, and the read fails.
 *
 * @see {@link DatabaseOptions} for the option `whenAllBehind`
 * @since 0.3.0
 * @category models
 */
export type WhenAllBehind = "primary" | "leastBehind" | "fail"
