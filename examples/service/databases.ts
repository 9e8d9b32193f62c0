import { Config, Effect, Layer, Redacted } from "effect"
import { Database, EmbeddedPostgres } from "effect-db"
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

/** Both databases on an embedded cluster, the first with its replicas. */
export const embedded = Layer.unwrapEffect(
  Effect.map(EmbeddedPostgres.EmbeddedPostgres, (postgres) =>
    Layer.mergeAll(
      Db.layer({ ...limits, ...postgres.settings(Db.databaseName) }),
      Audit.layer({ ...limits, writer: postgres.primary.url(Audit.databaseName) }),
      Servers.embedded(postgres),
      Playground.embedded(postgres)
    )
  )
)

/** A cluster with a replica and both databases, for as long as the layer lives. */
export const cluster = (options: EmbeddedPostgres.EmbeddedPostgres.Options = {}) =>
  EmbeddedPostgres.EmbeddedPostgres.layer({
    ...options,
    replicas: 1,
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
  Playground.none
)

const isGiven = Config.all(
  ["DATABASE_URL", "DATABASE_READER_URLS", "AUDIT_DATABASE_URL"].map((name) =>
    Config.withDefault(Config.string(name), "")
  )
).pipe(Config.map((values) => values.some((value) => value !== "")))

const own = Layer.merge(embedded, Revive.layer).pipe(Layer.provide(cluster()))

type Made = Layer.Layer<Layer.Layer.Success<typeof own>, Layer.Layer.Error<typeof real | typeof own>>

/** The databases of the settings, or embedded databases if no setting is given. */
export const layer = Layer.unwrapEffect(Effect.map(isGiven, (given): Made => (given ? real : own)))
