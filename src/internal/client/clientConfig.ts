/**
 * The settings of a client in the words of @effect/sql-pg.
 */
import type { PgClientConfig } from "@effect/sql-pg/PgClient"
import * as Redacted from "effect/Redacted"
import type { DatabaseConfig, Ssl, Types } from "../../DatabaseConfig.js"
import { formatUri } from "../config/connectionUri.js"
import { concealSecrets } from "../protocol/tlsOptions.js"
import { isByName } from "../protocol/typeNames.js"

const isByNumber = (types: Types): types is NonNullable<PgClientConfig["types"]> => !isByName(types)

/** Returns TLS in the words of a URL; `undefined` if a URL has no words for it. */
const sslmodeOf = (ssl: Ssl): string | undefined => {
  if (typeof ssl === "boolean") return ssl ? "verify-full" : "disable"
  // secrets are not enumerable
  const given = Object.getOwnPropertyNames(ssl).filter((name) => Reflect.get(ssl, name) !== undefined)
  if (given.some((name) => name !== "rejectUnauthorized")) return undefined
  return ssl.rejectUnauthorized !== false ? "verify-full" : "no-verify"
}

/** Returns the host that a client without `hostaddr` connects to. A certificate is compared with the name. */
const hostOf = ({ address, host, ssl }: DatabaseConfig["writer"]): string => (ssl === false ? (address ?? host) : host)

/**
 * Returns a URL of the writer's first host for other libraries, which know neither keyword strings nor several hosts; `undefined` for
 * settings that no URL can say: a stream of the program, TLS by options of Node. The parts beside it have them.
 */
const urlOf = ({ options, writer }: DatabaseConfig): Redacted.Redacted<string> | undefined => {
  const { database, isDirectTls, own, port, ssl, tlsFiles, username } = writer
  const sslmode = sslmodeOf(ssl)
  if (writer.socket !== undefined || sslmode === undefined) return undefined
  if (tlsFiles?.sslcrl !== undefined || tlsFiles?.sslpassword !== undefined) return undefined
  const password = writer.password && Redacted.value(writer.password)
  return Redacted.make(
    formatUri({
      username,
      password,
      host: hostOf(writer),
      port,
      database,
      parameters: [
        ["sslmode", sslmode],
        ["sslrootcert", tlsFiles?.sslrootcert],
        ["sslcert", tlsFiles?.sslcert],
        ["sslkey", tlsFiles?.sslkey],
        ["sslnegotiation", isDirectTls ? "direct" : undefined],
        ["application_name", options.applicationName ?? own.applicationName],
        ["options", own.startupOptions]
      ]
    })
  )
}

/** Returns the settings as the plain client has its own, so that another client can be made of them. */
export const clientConfig = (config: DatabaseConfig): PgClientConfig => {
  const { options, pool, session, writer } = config
  return {
    url: urlOf(config),
    host: hostOf(writer),
    port: writer.port,
    database: writer.database,
    username: writer.username,
    password: writer.password,
    ssl: concealSecrets(writer.ssl),
    applicationName: session.applicationName,
    maxConnections: pool.maxConnections,
    minConnections: pool.minConnections,
    connectTimeout: pool.connectTimeout,
    idleTimeout: pool.idleTimeout,
    connectionTTL: pool.maxLifetime,
    spanAttributes: options.spanAttributes,
    transformResultNames: options.transformResultNames,
    transformQueryNames: options.transformQueryNames,
    transformJson: options.transformJson,
    types: options.types !== undefined && isByNumber(options.types) ? options.types : undefined
  }
}
