/**
 * The names of the options of a database.
 */
import type { CommonOptions, HostsOption, WriterOption } from "../../DatabaseOptions.js"
import { type KnownNames, refuseUnknown } from "./unknownSetting.js"

/** Settings of a database before their check. */
export type GivenOptions = CommonOptions & Partial<WriterOption & HostsOption>

/** The names of all options; if one is missing, this does not compile. */
const known: KnownNames<GivenOptions> = {
  maxConnections: true,
  minConnections: true,
  idleExit: true,
  maxOverflow: true,
  acquireTimeout: true,
  maxOutageWaiters: true,
  connectTimeout: true,
  idleTimeout: true,
  maxLifetime: true,
  validateAfterIdle: true,
  order: true,
  strategy: true,
  queueTarget: true,
  resetOnReturn: true,
  onConnect: true,
  onCheckout: true,
  leakThreshold: true,
  statementTimeout: true,
  lockTimeout: true,
  idleInTransactionTimeout: true,
  applicationName: true,
  writer: true,
  readers: true,
  hosts: true,
  discover: true,
  discoverInterval: true,
  credentials: true,
  passwordFile: true,
  ssl: true,
  mode: true,
  startup: true,
  shutdownTimeout: true,
  keepAlive: true,
  outcome: true,
  outcomeTable: true,
  outcomeRetention: true,
  twoPhase: true,
  resolveWithin: true,
  readerRetryDelay: true,
  maxLag: true,
  maxLagBytes: true,
  whenAllBehind: true,
  maxPrimaryReads: true,
  monitor: true,
  monitorInterval: true,
  detectionTime: true,
  listenHeartbeat: true,
  preparedStatements: true,
  maxRowBytes: true,
  maxNoticeBytes: true,
  maxStartupBytes: true,
  maxScramIterations: true,
  transformResultNames: true,
  transformQueryNames: true,
  transformJson: true,
  types: true,
  spanAttributes: true,
  echo: true
}

/** The options by the names that other libraries have for them. */
const synonyms: Readonly<Record<string, string>> = {
  url: "writer",
  connectionString: "writer",
  host: "writer",
  replicas: "readers",
  max: "maxConnections",
  poolSize: "maxConnections",
  maxPoolSize: "maxConnections",
  min: "minConnections",
  idleTimeoutMillis: "idleTimeout",
  connectionTimeoutMillis: "connectTimeout",
  connectionTTL: "maxLifetime",
  debug: "echo",
  pgbouncer: "mode",
  tls: "ssl"
}

/** Refuses an option with an unknown name. */
export const refuseUnknownOptions = (options: GivenOptions): void => refuseUnknown("", options, known, synonyms)
