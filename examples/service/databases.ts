import { Config, Effect, Layer, Redacted } from "effect"
import { Database, EmbeddedPostgres } from "effect-db"
import { UsageError } from "./args.js"
import * as Cluster from "./cluster.js"
import * as Playground from "./playground.js"
import * as Revive from "./revive.js"
import * as Servers from "./servers.js"

export class Db extends Database.Service<Db>()("app") {}
export class Audit extends Database.Service<Audit>()("audit") {}

/** Limits with which a request is answered within seconds, and the service ends within three seconds after Ctrl-C. */
const limits = {
  applicationName: Servers.applicationName,
  acquireTimeout: "5 seconds",
  connectTimeout: "1500 millis",
  lockTimeout: "3 seconds",
  statementTimeout: "3 seconds",
  shutdownTimeout: "500 millis"
} as const

/** The number of replicas of an embedded cluster, if the user says nothing else. */
const defaultReplicas = 1

/** Returns one URL with all servers of a cluster, among which the primary is found, also after a promotion. */
const anyOf = ({ primary, replicas }: EmbeddedPostgres.EmbeddedPostgres.Service, database: string) => {
  const addresses = [primary, ...replicas].map(({ host, port }) => `${host}:${port}`)
  return Redacted.make(Redacted.value(primary.url(database)).replace(addresses[0] ?? "", addresses.join()))
}

/**
 * Both databases on an embedded cluster, the first with its replicas. With the outcome `"marker"` a lost COMMIT is proved also after a
 * promotion.
 */
export const embedded = (outcome: "status" | "marker" = "status") =>
  Layer.unwrapEffect(
    Effect.map(EmbeddedPostgres.EmbeddedPostgres, (postgres) =>
      Layer.mergeAll(
        Db.layer({
          ...limits,
          outcome,
          hosts: anyOf(postgres, Db.databaseName),
          // the page shows the lag of each replica
          monitorInterval: "1 second",
          // while there is no primary, reads go on
          whenAllBehind: "leastBehind"
        }),
        Audit.layer({ ...limits, outcome, writer: anyOf(postgres, Audit.databaseName) }),
        Servers.embedded(postgres),
        Playground.embedded(postgres),
        Cluster.embedded(postgres)
      )
    )
  )

/** A cluster with a replica and both databases, for as long as the layer lives. */
export const cluster = (options: EmbeddedPostgres.EmbeddedPostgres.Options = {}) =>
  EmbeddedPostgres.EmbeddedPostgres.layer({
    replicas: defaultReplicas,
    ...options,
    databases: [Db.databaseName, Audit.databaseName]
  })

// an empty variable counts as not set
const url = (name: string) => Config.map(Config.nonEmptyString(name), Redacted.make)

const urls = Config.all({
  writer: url("DATABASE_URL"),
  readers: Config.string("DATABASE_READER_URLS").pipe(
    Config.withDefault(""),
    Config.map((list) => list.split(",").flatMap((one) => (one.trim() === "" ? [] : [Redacted.make(one.trim())])))
  ),
  audit: url("AUDIT_DATABASE_URL")
})

const real = Layer.mergeAll(
  Db.layerConfig(Config.map(urls, ({ readers, writer }) => ({ ...limits, writer, readers }))),
  Audit.layerConfig(Config.map(urls, ({ audit }) => ({ ...limits, writer: audit }))),
  Layer.unwrapEffect(Effect.map(urls, Servers.real)),
  Playground.none,
  Cluster.none
)

const isGiven = Config.all(
  ["DATABASE_URL", "DATABASE_READER_URLS", "AUDIT_DATABASE_URL"].map((name) =>
    Config.withDefault(Config.string(name), "")
  )
).pipe(Config.map((values) => values.some((value) => value !== "")))

/** Options of the embedded servers; `undefined` if the user has not chosen. */
export interface Options {
  readonly replicas: number | undefined
  /**
   * True if each commit waits for a replica, so that a promotion loses nothing that was acknowledged, and leaves a row that proves it.
   */
  readonly synchronous: boolean
}

const own = ({ replicas = defaultReplicas, synchronous }: Options) =>
  Revive.layer.pipe(
    Layer.provideMerge(embedded(synchronous ? "marker" : "status")),
    Layer.provide(cluster({ replicas, synchronous: synchronous ? 1 : 0 }))
  )

const notOurs = new UsageError({
  message:
    "--replicas and --failover are for servers that the service starts itself: leave them out, or unset DATABASE_URL, DATABASE_READER_URLS and AUDIT_DATABASE_URL"
})

type Own = ReturnType<typeof own>
type Made = Layer.Layer<Layer.Layer.Success<Own>, Layer.Layer.Error<typeof real | Own>>

/** The databases of the settings, or embedded databases if no setting is given. */
export const layer = (options: Options) =>
  Layer.unwrapEffect(
    Effect.flatMap(isGiven, (given): Effect.Effect<Made, UsageError> => {
      if (!given) return Effect.succeed(own(options))
      return options.replicas === undefined ? Effect.succeed(real) : Effect.fail(notOurs)
    })
  )
