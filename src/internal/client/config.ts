/**
 * The settings of a client in the words of @effect/sql-pg.
 */
import type { PgClientConfig } from "@effect/sql-pg/PgClient"
import * as Redacted from "effect/Redacted"
import type { DatabaseConfig, Types } from "../../DatabaseConfig.js"
import { concealed } from "../protocol/tls.js"
import { isByName } from "../protocol/typeNames.js"

const isByNumber = (types: Types): types is NonNullable<PgClientConfig["types"]> => !isByName(types)

/** Returns the settings as the plain client shows its own: what was given, with the parts of the URL filled in. */
export const configOf = ({ options, pool, session, writer }: DatabaseConfig): PgClientConfig => ({
  url: Redacted.isRedacted(options.writer) ? options.writer : undefined,
  host: writer.host,
  port: writer.port,
  database: writer.database,
  username: writer.username,
  password: writer.password,
  ssl: concealed(writer.ssl),
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
})
