/**
 * The settings of the examples. Each runs without any: where `DATABASE_URL` is not set, a PostgreSQL of its own comes and goes with the
 * program. `DATABASE_READER_URLS` (with commas between them) and `AUDIT_DATABASE_URL` may be set as well.
 */
import { Config, ConfigProvider, Effect, Layer, Redacted } from "effect"
import { EmbeddedPostgres } from "effect-db"

// an empty variable is one that is not set
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

/** Makes the settings available to every layer built on this one. */
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
