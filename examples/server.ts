/**
 * The settings of the examples. All are optional: if `DATABASE_URL` is not set, an example starts its own PostgreSQL and stops it at its
 * end. With `DATABASE_URL`, `DATABASE_READER_URLS` (separated by commas) and `AUDIT_DATABASE_URL` may be set as well.
 */
import { Config, ConfigProvider, Effect, Layer, Redacted } from "effect"
import { EmbeddedPostgres } from "effect-db"

// an empty variable counts as not set
const variable = (name: string) => Config.withDefault(Config.string(name), "")

const urls = (replicas: number) =>
  Effect.gen(function* () {
    const writer = yield* variable("DATABASE_URL")
    if (writer !== "") {
      const readers = yield* variable("DATABASE_READER_URLS")
      return { writer, readers, audit: (yield* variable("AUDIT_DATABASE_URL")) || writer }
    }
    const postgres = yield* EmbeddedPostgres.make({ replicas, databases: ["app", "audit"] })
    return {
      writer: Redacted.value(postgres.primary.url("app")),
      readers: postgres.replicas.map((replica) => Redacted.value(replica.url("app"))).join(),
      audit: Redacted.value(postgres.primary.url("audit"))
    }
  })

/** Provides the settings as `Config` to the layers that this layer is provided to. */
export const server = ({ replicas = 0 } = {}) =>
  Layer.unwrapScoped(
    Effect.map(urls(replicas), ({ audit, readers, writer }) => {
      const found = new Map([
        ["DATABASE_URL", writer],
        ["AUDIT_DATABASE_URL", audit]
      ])
      if (readers !== "") found.set("DATABASE_READER_URLS", readers)
      return Layer.setConfigProvider(ConfigProvider.orElse(ConfigProvider.fromMap(found), ConfigProvider.fromEnv))
    })
  )
