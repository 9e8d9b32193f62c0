/**
 * The metrics of the servers of a database: the changes of its writer; the lag of a reader behind the
 * primary, its latency, and its part in routing.
 */
import * as Metric from "effect/Metric"
import * as MetricKey from "effect/MetricKey"
import * as MetricLabel from "effect/MetricLabel"

/** Functions that set the gauges of one reader. Times are in milliseconds here, and in seconds in the metrics. */
export interface ReaderMetrics {
  /** Sets the lag behind the primary, unless it is infinite, which exporters cannot write. */
  readonly setLag: (lag: { readonly bytes: number; readonly millis: number }) => void
  /** Sets the average time of a round trip. */
  readonly setLatency: (millis: number) => void
  /** Sets if reads use the server. */
  readonly setUsable: (isUsable: boolean) => void
}

/** Function that makes the metrics of a reader. */
export type MakeReaderMetrics = (database: string, server: string) => ReaderMetrics

/** Makes a function that sets a gauge. The gauge does not exist before its first value. */
const gauge = (name: string, description: string, unit: string, labels: ReadonlyArray<MetricLabel.MetricLabel>) => {
  const key = MetricKey.taggedWithLabels(MetricKey.gauge(name, { description }), [
    ...labels,
    MetricLabel.make("unit", unit)
  ])
  return (value: number) => {
    if (Number.isFinite(value)) Metric.globalMetricRegistry.get(key).update(value)
  }
}

/** Function that makes the function that counts the changes of a database's writer. */
export type MakeWriterMetrics = (database: string) => (tookMillis: number) => void

/** Makes the function that counts the changes of a writer, and records the time of the last search. */
export const makeWriterMetrics: MakeWriterMetrics = (database) => {
  const labels = [MetricLabel.make("db.system.name", "postgresql"), MetricLabel.make("effect_db.database", database)]
  const key = MetricKey.counter("effect_db.writer.changes", {
    description: "Changes of the writer to another host",
    incremental: true
  })
  const search = gauge("effect_db.writer.search_time", "Time of the search before the last change", "s", labels)
  return (tookMillis) => {
    Metric.globalMetricRegistry.get(MetricKey.taggedWithLabels(key, labels)).update(1)
    search(tookMillis / 1000)
  }
}

/** Makes the metrics of a reader. */
export const makeReaderMetrics: MakeReaderMetrics = (database, server) => {
  const labels = [
    MetricLabel.make("db.system.name", "postgresql"),
    MetricLabel.make("effect_db.database", database),
    MetricLabel.make("effect_db.server", server)
  ]
  const lag = gauge("effect_db.reader.lag", "Time that the reader is behind the primary", "s", labels)
  const bytes = gauge("effect_db.reader.lag_bytes", "Bytes that the reader is behind the primary", "By", labels)
  const latency = gauge("effect_db.reader.latency", "Average time of a round trip to the reader", "s", labels)
  const usable = gauge("effect_db.reader.usable", "1 if reads use the server, 0 if it is left out", "1", labels)
  return {
    setLag: ({ bytes: lagBytes, millis }) => {
      lag(millis / 1000)
      bytes(lagBytes)
    },
    setLatency: (millis) => latency(millis / 1000),
    setUsable: (isUsable) => usable(isUsable ? 1 : 0)
  }
}
