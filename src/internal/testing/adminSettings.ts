/**
 * The settings of the sessions that create and drop databases for tests: those of the database in
 * the context, without its limits, hooks and conversions, which are meant for the program.
 */
import * as SqlClient from "@effect/sql/SqlClient"
import * as Effect from "effect/Effect"
import * as LogLevel from "effect/LogLevel"
import type { DatabaseConfig, ServerConfig } from "../../DatabaseConfig.js"

/** The largest number of databases that a run creates or drops at the same time. */
const maxConnections = 4

/** The time to wait for such a session, in ms. The copy of a large database takes long. */
const acquireTimeout = 120_000

/** The time to wait for a session on a replica, in ms. Reads do without a replica that is away. */
const replicaTimeout = 1000

const plain = (config: DatabaseConfig, server: ServerConfig): DatabaseConfig => ({
  ...config,
  // a connection string may have limits of its own
  writer: { ...server, own: {} },
  readers: [],
  pool: {
    ...config.pool,
    minConnections: 0,
    maxOverflow: 0,
    maxConnections,
    strategy: "pooled",
    maxLifetime: Number.POSITIVE_INFINITY,
    queueTarget: Number.POSITIVE_INFINITY,
    leakThreshold: Number.POSITIVE_INFINITY,
    acquireTimeout
  },
  session: {
    ...config.session,
    statementTimeout: 0,
    lockTimeout: 0,
    idleInTransactionTimeout: 0,
    preparedStatements: 0,
    applicationName: "effect-db/TestDatabase",
    types: undefined
  },
  outcome: "unknown",
  twoPhase: false,
  echo: LogLevel.None,
  options: { credentials: config.options.credentials }
})

/**
 * Returns the settings for the primary. Each session takes the lock of the run, and the pool keeps a
 * session open, so that the lock is held again as soon as possible after a connection was lost.
 */
export const adminSettings = (config: DatabaseConfig, lockKey: string): DatabaseConfig => {
  const admin = plain(config, config.writer)
  // of the versions that have the setting, some builds do not have the value
  const setUp = `SELECT pg_advisory_lock_shared(${lockKey}), (SELECT set_config(name, 'clone', false)
    FROM pg_settings WHERE name = 'file_copy_method' AND 'clone' = ANY (enumvals))`
  return {
    ...admin,
    startup: "verify",
    pool: { ...admin.pool, minConnections: 1 },
    options: { ...admin.options, onConnect: Effect.flatMap(SqlClient.SqlClient, (sql) => sql.unsafe(setUp)) }
  }
}

/** Returns the settings for a replica. */
export const replicaSettings = (config: DatabaseConfig, replica: ServerConfig): DatabaseConfig => {
  const admin = plain(config, { ...replica, target: "any" })
  const pool = { ...admin.pool, acquireTimeout: replicaTimeout, connectTimeout: replicaTimeout }
  return { ...admin, cluster: undefined, startup: "lazy", pool }
}

/** Returns the settings with another database on all servers. */
export const withDatabase = (config: DatabaseConfig, database: string): DatabaseConfig => ({
  ...config,
  writer: { ...config.writer, database },
  readers: config.readers.map((reader) => ({ ...reader, database }))
})
