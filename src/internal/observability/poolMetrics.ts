/**
 * The metrics of a pool, as Effect metrics with the names, units and attributes of OpenTelemetry's
 * conventions for database clients.
 *
 * They are always on, so each hook is looked up once, and a count is one call of it.
 */
import { globalValue } from "effect/GlobalValue"
import * as Metric from "effect/Metric"
import * as MetricBoundaries from "effect/MetricBoundaries"
import type * as MetricHook from "effect/MetricHook"
import * as MetricKey from "effect/MetricKey"
import * as MetricLabel from "effect/MetricLabel"
import * as MetricState from "effect/MetricState"

/** Pool that has metrics. */
interface MeteredPool {
  /** The name of the database in this program. */
  readonly database: string
  readonly purpose: "writes" | "reads"
  readonly server: { readonly host: string; readonly port: number; readonly database: string }
  /** The number of idle connections that it keeps open. */
  readonly idleMin: number
  /** The limit for idle connections. */
  readonly idleMax: number
}

/** Figures of a pool at one moment. */
export interface PoolLevels {
  readonly max: number
  readonly idle: number
  readonly active: number
  readonly waiting: number
}

/**
 * Functions that record the events of one pool. Times are in milliseconds here, and in seconds in
 * the metrics.
 */
export interface PoolMetrics {
  /** Records the time that a caller has waited for a checkout. */
  readonly waited: (millis: number) => void
  /** Records the time from a checkout to its checkin. */
  readonly used: (millis: number) => void
  /** Records the time that a connect has taken. */
  readonly created: (millis: number) => void
  /** Records a caller that got no connection in time. */
  readonly timedOut: () => void
  /**
   * Records the time of an exchange with the server. If it has failed, `error` is its SQLSTATE or
   * the tag of its error.
   */
  readonly operated: (millis: number, error: string | undefined) => void
  /** Removes the levels of a closed pool. Its counts and times stay. */
  readonly close: () => void
}

/** Function that makes the metrics of a pool. `levels` returns the current figures of the pool. */
export type MakePoolMetrics = (pool: MeteredPool, levels: () => PoolLevels) => PoolMetrics

type Labels = ReadonlyArray<MetricLabel.MetricLabel>

type Count = MetricHook.MetricHook.Counter<number>

/** The boundaries that OpenTelemetry advises for database clients, in seconds. */
const boundaries = MetricBoundaries.fromIterable([0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10])

/**
 * The limit for SQLSTATEs with a time series of their own. A program can raise any number of
 * different ones.
 */
const mostErrors = 100

// the exporter takes the unit of a metric from this attribute
const inUnit = (unit: string): MetricLabel.MetricLabel => MetricLabel.make("unit", unit)

const connections = inUnit("{connection}")
const requests = inUnit("{request}")
const seconds = inUnit("s")
const timeouts = inUnit("{timeout}")

const idle = MetricLabel.make("db.client.connection.state", "idle")
const used = MetricLabel.make("db.client.connection.state", "used")
const system = MetricLabel.make("db.system.name", "postgresql")

const level = (name: string, description: string) => MetricKey.counter(name, { description })

const duration = (name: string, description: string) => MetricKey.histogram(name, boundaries, description)

// a level is a counter that is not incremental: it is exported as an UpDownCounter, as the
// conventions require
const keys = {
  count: level("db.client.connection.count", "Connections that are open, by state"),
  idleMax: level("db.client.connection.idle.max", "Most connections that may be idle"),
  idleMin: level("db.client.connection.idle.min", "Idle connections that are kept open"),
  max: level("db.client.connection.max", "Most connections that may be open"),
  pending: level("db.client.connection.pending_requests", "Callers who wait for a connection"),
  timeouts: MetricKey.counter("db.client.connection.timeouts", {
    description: "Callers who got no connection in time",
    incremental: true
  }),
  create: duration("db.client.connection.create_time", "Time to open a connection"),
  wait: duration("db.client.connection.wait_time", "Time from asking for a connection to having it"),
  use: duration("db.client.connection.use_time", "Time from taking a connection to giving it back"),
  operation: duration("db.client.operation.duration", "Time of one exchange with the server")
}

/**
 * The functions that read each level. They are global like the registry, so that two copies of this
 * module share them.
 */
const readings = globalValue(
  "effect-db/internal/observability/poolMetrics",
  () => new WeakMap<Count, Set<() => number>>()
)

/**
 * Registers a level of a pool; the returned function removes the pool from it. When the registry is
 * read, the level is the sum over all pools with the same attributes, or 0 without a pool. The
 * registry has no metric that is computed at that moment and never removes a hook, so this replaces
 * the `get` of the hook.
 */
const live = (key: MetricKey.MetricKey.Counter<number>, labels: Labels, read: () => number): (() => void) => {
  const hook: Count = Metric.globalMetricRegistry.get(MetricKey.taggedWithLabels(key, labels))
  const all = readings.get(hook) ?? new Set()
  if (!readings.has(hook)) {
    readings.set(hook, all)
    hook.get = () => {
      let sum = 0
      for (const one of all) sum += one()
      return MetricState.counter(sum)
    }
  }
  all.add(read)
  return () => all.delete(read)
}

/**
 * Makes a histogram that is registered with its first value: an empty one has no minimum and no
 * maximum.
 */
const histogram = (key: MetricKey.MetricKey.Histogram, labels: Labels): ((millis: number) => void) => {
  let hook: MetricHook.MetricHook.Histogram | undefined
  return (millis) => {
    hook ??= Metric.globalMetricRegistry.get(MetricKey.taggedWithLabels(key, labels))
    hook.update(millis / 1000)
  }
}

/** Returns the attributes of a server; its port only if it is not the standard one. */
const address = ({ host, port }: MeteredPool["server"]): Labels =>
  host.startsWith("/")
    ? [MetricLabel.make("server.address", `${host}/.s.PGSQL.${port}`)]
    : [
        MetricLabel.make("server.address", host),
        ...(port === 5432 ? [] : [MetricLabel.make("server.port", String(port))])
      ]

const failure = (error: string): Labels => {
  const type = MetricLabel.make("error.type", error)
  const isSqlState = /^[0-9A-Z]{5}$/.test(error)
  return isSqlState ? [type, MetricLabel.make("db.response.status_code", error)] : [type]
}

/**
 * Makes the metrics of a pool. `levels` is called when the metrics are read, until they are closed.
 *
 * The name of the pool, `db.client.connection.pool.name`, is `app writes localhost:5432/todos`: the name of
 * the database in the program, the purpose of the pool, the server, and the name of the database on
 * the server.
 */
export const makePoolMetrics: MakePoolMetrics = (pool, levels) => {
  const { database, idleMax, idleMin, purpose, server } = pool
  const name = MetricLabel.make(
    "db.client.connection.pool.name",
    `${database} ${purpose} ${server.host}:${server.port}/${server.database}`
  )
  const place = [seconds, name, system, MetricLabel.make("db.namespace", server.database), ...address(server)]
  const stops = [
    live(keys.count, [connections, name, idle], () => levels().idle),
    live(keys.count, [connections, name, used], () => levels().active),
    live(keys.idleMax, [connections, name], () => idleMax),
    live(keys.idleMin, [connections, name], () => idleMin),
    live(keys.max, [connections, name], () => levels().max),
    live(keys.pending, [requests, name], () => levels().waiting)
  ]
  // registered at once with the count 0, so that a rate includes the first timeout
  const timedOut: Count = Metric.globalMetricRegistry.get(MetricKey.taggedWithLabels(keys.timeouts, [timeouts, name]))
  const succeeded = histogram(keys.operation, place)
  const failed = new Map<string, (millis: number) => void>()
  const noteError = (error: string) => {
    const type = failed.size < mostErrors ? error : "_OTHER"
    const known = failed.get(type)
    if (known !== undefined) return known
    const count = histogram(keys.operation, [...place, ...failure(type)])
    failed.set(type, count)
    return count
  }
  return {
    waited: histogram(keys.wait, [seconds, name]),
    used: histogram(keys.use, [seconds, name]),
    created: histogram(keys.create, [seconds, name]),
    timedOut: () => timedOut.update(1),
    operated: (millis, error) => {
      if (error === undefined) succeeded(millis)
      else (failed.get(error) ?? noteError(error))(millis)
    },
    close: () => {
      for (const stop of stops) stop()
    }
  }
}
