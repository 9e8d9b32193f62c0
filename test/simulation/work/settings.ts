/**
 * The settings of an episode, which its seed chooses: the servers, and the options of the databases.
 */
import * as Redacted from "effect/Redacted"
import type { Database } from "effect-db"
import type { Random } from "../loop/random.js"

/** The names of the faults. */
export const faultKinds = [
  "cut",
  "slowNetwork",
  "halfOpen",
  "reset",
  "terminate",
  "crash",
  "restart",
  "power",
  "freeze",
  "slowServer",
  "commit",
  "failover",
  "switchover",
  "splitBrain",
  "lag",
  "clockStep",
  "stall"
] as const

export type FaultKind = (typeof faultKinds)[number]

/** Settings of an episode that a shrunk replay may reduce. */
export interface EpisodeOptions {
  readonly seed: string
  /** The virtual time that calls and faults are planned for, in ms. */
  readonly millis: number
  /** True if there are no quiet times. */
  readonly isDense?: boolean | undefined
  /** The virtual time of the work, in ms; `millis` if it is undefined. */
  readonly until?: number | undefined
  /** The faults that are injected, by their numbers; all if it is undefined. */
  readonly faults?: ReadonlyArray<number> | undefined
  /** Calls before this number are left out. */
  readonly firstCall?: number | undefined
  /** Calls from this number on are left out. */
  readonly lastCall?: number | undefined
}

/** Settings of the servers of a database. */
export interface ClusterSettings {
  readonly name: "app" | "audit"
  readonly addresses: readonly [string, ...ReadonlyArray<string>]
  readonly version: number
  readonly authentication: "trust" | "cleartext" | "md5"
  readonly latency: number
  readonly jitter: number
  readonly workMean: number
  readonly replicationDelay: number
  readonly serializationFailures: number
  readonly options: Database.Options
}

/** The password of all servers. */
export const password = "simulated"

/** Returns the limit of the connections of a pool. */
export const maxConnections = ({ options }: ClusterSettings): number =>
  (options.maxConnections ?? 10) + (options.maxOverflow ?? 0)

const optionsOf = (random: Random): Omit<Database.Options, "hosts" | "writer"> => {
  const connections = random.whole(1, 8)
  return {
    maxConnections: connections,
    minConnections: random.whole(0, Math.min(2, connections)),
    maxOverflow: random.chance(0.3) ? random.whole(1, 3) : 0,
    acquireTimeout: random.pick([1000, 2000, 5000]),
    connectTimeout: random.pick([500, 1000, 3000]),
    statementTimeout: random.pick([1500, 3000, 5000]),
    ...(random.chance(0.6) ? { lockTimeout: random.pick([300, 1000, 4000]) } : {}),
    idleInTransactionTimeout: random.pick([3000, 10_000]),
    idleTimeout: random.pick([5000, 60_000, 600_000]),
    maxLifetime: random.pick([20_000, 300_000, 1_800_000]),
    validateAfterIdle: random.pick([0, 200, 5000, 30_000]),
    order: random.pick(["lifo", "fifo"]),
    strategy: random.weighted([
      ["pooled", 8],
      ["none", 1],
      ["single", 1]
    ]),
    queueTarget: random.pick([50, 1000, Number.POSITIVE_INFINITY]),
    outcome: random.pick(["status", "marker", "unknown"]),
    resolveWithin: random.pick([1000, 5000]),
    monitorInterval: random.weighted([
      [1000, 1],
      [5000, 2],
      [30_000, 4],
      [60_000, 4]
    ]),
    detectionTime: random.weighted([
      [1000, 1],
      [5000, 4],
      [10_000, 4]
    ]),
    preparedStatements: random.pick([0, 2, 256]),
    keepAlive: random.pick([5000, 30_000]),
    startup: "lazy",
    shutdownTimeout: 2000,
    leakThreshold: random.pick([10_000, Number.POSITIVE_INFINITY])
  }
}

const clusterOf = (random: Random, name: "app" | "audit", hosts: number, subnet: number): ClusterSettings => {
  const [first = "", ...others] = Array.from({ length: hosts }, (_, i) => `127.0.${subnet}.${i + 1}`)
  const addresses = [first, ...others] as const
  const server = { database: name, username: "program", password: Redacted.make(password), ssl: false }
  const plain = optionsOf(random)
  // a pool with one connection, or none, has no place for more
  const alone = { ...plain, minConnections: 0, maxOverflow: 0 }
  const options =
    plain.strategy === "pooled" ? plain : plain.strategy === "single" ? { ...alone, maxConnections: 1 } : alone
  const servers: Pick<Database.Options, never> =
    hosts === 1
      ? { writer: { ...server, host: first } }
      : random.chance(0.5)
        ? { hosts: { ...server, host: [...addresses] } }
        : { writer: { ...server, host: [...addresses] }, readers: others.map((host) => ({ ...server, host })) }
  return {
    name,
    addresses,
    version: random.pick([13, 14, 16, 17, 18]),
    authentication: random.pick(["trust", "cleartext", "md5"]),
    latency: random.pick([0.1, 0.5, 5]),
    jitter: random.pick([0, 0.1, 2]),
    workMean: random.pick([0.1, 1]),
    replicationDelay: random.pick([1, 10, 100]),
    serializationFailures: random.pick([0, 0.05, 0.3]),
    // the cast: the two forms of servers are checked when the database is opened
    options: { ...options, ...servers } as Database.Options
  }
}

/** Returns the settings of the clusters of an episode. */
export const clustersOf = (random: Random): readonly [ClusterSettings, ClusterSettings] => [
  clusterOf(
    random.fork("app"),
    "app",
    random.weighted([
      [3, 4],
      [2, 2],
      [1, 2]
    ]),
    0
  ),
  clusterOf(random.fork("audit"), "audit", 1, 1)
]
