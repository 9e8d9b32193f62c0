/**
 * The metrics of a pool, as Effect metrics with the names, units and attributes of OpenTelemetry's
 * conventions for database clients.
 *
 * Metrics are always recorded, so each is looked up once, and an update is one call.
 */
import * as Metric from "effect/Metric"
import * as MetricBoundaries from "effect/MetricBoundaries"
import type * as MetricHook from "effect/MetricHook"
import * as MetricKey from "effect/MetricKey"
import * as MetricLabel from "effect/MetricLabel"

/** Pool that has metrics. */
interface MeteredPool {
  /** The name of the database in this program. */
  readonly database: string
  readonly purpose: "writes" | "reads"
  readonly server: { readonly host: string; readonly port: number; readonly database: string }
  /** The number of connections that the pool keeps open when idle. */
  readonly idleMin: number
  /** The limit for idle connections. */
  readonly idleMax: number
  /** The limit for connections. */
  readonly max: number
}

/**
 * Functions that set the gauges of one pool and record its events. Times are in milliseconds here,
 * and in seconds in the metrics.
 */
export interface PoolMetrics {
  /** Sets the numbers of connections that are idle and in use. */
  readonly setConnections: (idle: number, active: number) => void
  /** Sets the number of callers in the wait queue. */
  readonly setWaiting: (count: number) => void
  /** Records the time that a caller has waited for a checkout. */
  readonly waited: (millis: number) => void
  /** Records the time from a checkout to its checkin. */
  readonly used: (millis: number) => void
  /** Records the time that a connect has taken. */
  readonly created: (millis: number) => void
  /** Records a caller that got no connection, because of a timeout, overload or outage. */
  readonly timedOut: () => void
  /**
   * Records the time of an exchange with the server. If it has failed, `error` is its SQLSTATE or
   * the tag of its error.
   */
  readonly operated: (millis: number, error: string | undefined) => void
  /** Sets the gauges of a closed pool to 0. Its counts and times are not changed. */
  readonly close: () => void
}

/** Function that makes the metrics of a pool. */
export type MakePoolMetrics = (pool: MeteredPool) => PoolMetrics

type Labels = ReadonlyArray<MetricLabel.MetricLabel>

type Count = MetricHook.MetricHook.Counter<number>

/** The boundaries that OpenTelemetry advises for database clients, in seconds. */
const boundaries = MetricBoundaries.fromIterable([0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10])

/**
 * The number of errors of a pool that have their own time series. A program can raise any number of
 * different SQLSTATEs.
 */
const mostErrors = 100

// exporters read the unit of a metric from this attribute
const inUnit = (unit: string): MetricLabel.MetricLabel => MetricLabel.make("unit", unit)

const connections = inUnit("{connection}")
const requests = inUnit("{request}")
const seconds = inUnit("s")
const timeouts = inUnit("{timeout}")

const idle = MetricLabel.make("db.client.connection.state", "idle")
const used = MetricLabel.make("db.client.connection.state", "used")
const system = MetricLabel.make("db.system.name", "postgresql")

const upDownCounter = (name: string, description: string) => MetricKey.counter(name, { description })

const duration = (name: string, description: string) => MetricKey.histogram(name, boundaries, description)

// a gauge is a counter that is not incremental, because that is exported as an UpDownCounter, as
// the conventions require
const keys = {
  count: upDownCounter("db.client.connection.count", "Connections that are open, by state"),
  idleMax: upDownCounter("db.client.connection.idle.max", "Most connections that may be idle"),
  idleMin: upDownCounter("db.client.connection.idle.min", "Idle connections that are kept open"),
  max: upDownCounter("db.client.connection.max", "Most connections that may be open"),
  pending: upDownCounter("db.client.connection.pending_requests", "Callers that wait for a connection"),
  timeouts: MetricKey.counter("db.client.connection.timeouts", {
    description: "Callers that got no connection in time",
    incremental: true
  }),
  create: duration("db.client.connection.create_time", "Time to open a connection"),
  wait: duration("db.client.connection.wait_time", "Time that a caller waits for a checkout"),
  use: duration("db.client.connection.use_time", "Time from a checkout to its checkin"),
  operation: duration("db.client.operation.duration", "Time of one exchange with the server")
}

/**
 * Makes a function that sets the value of one pool in a gauge, at first 0. The gauge is the sum of
 * all pools with the same attributes.
 *
 * The gauge is updated when the pool changes, because Effect's registry has no metric that is
 * computed when it is read.
 */
const gauge = (key: MetricKey.MetricKey.Counter<number>, labels: Labels): ((value: number) => void) => {
  const hook: Count = Metric.globalMetricRegistry.get(MetricKey.taggedWithLabels(key, labels))
  let current = 0
  return (value) => {
    if (value === current) return
    hook.update(value - current)
    current = value
  }
}

/**
 * Makes a histogram that is registered with its first value, because an empty histogram has no
 * minimum and no maximum.
 */
const histogram = (key: MetricKey.MetricKey.Histogram, labels: Labels): ((millis: number) => void) => {
  let hook: MetricHook.MetricHook.Histogram | undefined
  return (millis) => {
    hook ??= Metric.globalMetricRegistry.get(MetricKey.taggedWithLabels(key, labels))
    hook.update(millis / 1000)
  }
}

/** Returns the attributes of a server. The port 5432 is left out. */
const address = ({ host, port }: MeteredPool["server"]): Labels =>
  host.startsWith("/")
    ? [MetricLabel.make("server.address", `${host}/.s.PGSQL.${port}`)]
    : [
        MetricLabel.make("server.address", host),
        ...(port === 5432 ? [] : [MetricLabel.make("server.port", String(port))])
      ]

/** Returns the attributes of an error. */
const errorLabels = (error: string): Labels => {
  const type = MetricLabel.make("error.type", error)
  const isSqlState = /^[0-9A-Z]{5}$/.test(error)
  return isSqlState ? [type, MetricLabel.make("db.response.status_code", error)] : [type]
}

/**
 * Makes the metrics of a pool.
 *
 * The name of the pool, `db.client.connection.pool.name`, is `app writes localhost:5432/todos`: the name of
 * the database in the program, the purpose of the pool, the server, and the name of the database on
 * the server.
 */
export const makePoolMetrics: MakePoolMetrics = (pool) => {
  const { database, purpose, server } = pool
  const name = MetricLabel.make(
    "db.client.connection.pool.name",
    `${database} ${purpose} ${server.host}:${server.port}/${server.database}`
  )
  const setIdle = gauge(keys.count, [connections, name, idle])
  const setUsed = gauge(keys.count, [connections, name, used])
  const setIdleMax = gauge(keys.idleMax, [connections, name])
  const setIdleMin = gauge(keys.idleMin, [connections, name])
  const setMax = gauge(keys.max, [connections, name])
  const setWaiting = gauge(keys.pending, [requests, name])
  setIdleMax(pool.idleMax)
  setIdleMin(pool.idleMin)
  setMax(pool.max)
  // registered at once with the count 0, so that a rate includes the first timeout
  const timedOut: Count = Metric.globalMetricRegistry.get(MetricKey.taggedWithLabels(keys.timeouts, [timeouts, name]))
  const operation = [seconds, name, system, MetricLabel.make("db.namespace", server.database), ...address(server)]
  const succeeded = histogram(keys.operation, operation)
  const failed = new Map<string, (millis: number) => void>()
  /** Returns the histogram of an error, or the shared one for further errors above the limit. */
  const failedWith = (error: string) => {
    const type = failed.size < mostErrors ? error : "_OTHER"
    const known = failed.get(type)
    if (known !== undefined) return known
    const count = histogram(keys.operation, [...operation, ...errorLabels(type)])
    failed.set(type, count)
    return count
  }
  return {
    setConnections: (idle, active) => {
      setIdle(idle)
      setUsed(active)
    },
    setWaiting,
    waited: histogram(keys.wait, [seconds, name]),
    used: histogram(keys.use, [seconds, name]),
    created: histogram(keys.create, [seconds, name]),
    timedOut: () => timedOut.update(1),
    operated: (millis, error) => {
      if (error === undefined) succeeded(millis)
      else (failed.get(error) ?? failedWith(error))(millis)
    },
    close: () => {
      for (const set of [setIdle, setUsed, setIdleMax, setIdleMin, setMax, setWaiting]) set(0)
    }
  }
}
