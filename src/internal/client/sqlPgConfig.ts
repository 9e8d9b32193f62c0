/**
 * The settings of a client as options of @effect/sql-pg.
 */
import type { PgClientConfig } from "@effect/sql-pg/PgClient"
import * as Redacted from "effect/Redacted"
import type { DatabaseConfig, Ssl, Types } from "../../DatabaseConfig.js"
import { formatUri } from "../config/connectionUri.js"
import { isByName } from "../protocol/parsersByName.js"
import { concealSecrets } from "../protocol/tlsOptions.js"

const isByNumber = (types: Types): types is NonNullable<PgClientConfig["types"]> => !isByName(types)

/** Returns the `sslmode` of a URL that has the meaning of TLS options; `undefined` if none has. */
const sslmodeOf = (ssl: Ssl): string | undefined => {
  if (typeof ssl === "boolean") return ssl ? "verify-full" : "disable"
  // secrets are not enumerable
  const given = Object.getOwnPropertyNames(ssl).filter((name) => Reflect.get(ssl, name) !== undefined)
  if (given.some((name) => name !== "rejectUnauthorized")) return undefined
  return ssl.rejectUnauthorized !== false ? "verify-full" : "no-verify"
}

/**
 * Returns the host for a client that does not support `hostaddr`: the address without TLS, the name
 * with TLS, because the certificate must match the name.
 */
const hostOf = ({ address, host, ssl }: DatabaseConfig["writer"]): string => (ssl === false ? (address ?? host) : host)

/**
 * Returns a URL of the writer's first host for other libraries, which support neither keyword
 * strings nor several hosts. Returns `undefined` if no URL can express the settings: a `socket`,
 * TLS options of Node, a revocation list, or the password of a key.
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

/**
 * Returns the settings in the form of @effect/sql-pg, so that another client can be made with them.
 */
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
