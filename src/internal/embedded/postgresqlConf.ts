/**
 * The settings of an embedded server, as text for postgresql.conf and for the command line.
 */
import * as Either from "effect/Either"

/** Settings of a server by name, as in postgresql.conf. */
export type Settings = Readonly<Record<string, string | number | boolean>>

/** Returns the default settings of a server. The settings of the program override them. */
export const defaults = (replicas: number): Settings => ({
  listen_addresses: "127.0.0.1",
  unix_socket_directories: "",
  max_connections: 100,
  fsync: false,
  wal_level: "replica",
  wal_keep_size: "512MB",
  max_wal_senders: 10 + replicas,
  hot_standby: true,
  // the pause of a replica before it retries a primary that is not available
  wal_retrieve_retry_interval: "100ms",
  timezone: "UTC",
  log_timezone: "UTC"
})

/**
 * Returns the settings that this library depends on, as arguments of the command line, which the
 * configuration file cannot override.
 */
export const fixed = (port: number, name: string): ReadonlyArray<string> =>
  [
    `port=${port}`,
    `cluster_name=${name}`,
    "lc_messages=C",
    "log_destination=stderr",
    "logging_collector=off",
    "log_min_messages=warning"
  ].flatMap((setting) => ["-c", setting])

const quote = (value: string | number | boolean): string =>
  typeof value === "boolean"
    ? value
      ? "on"
      : "off"
    : `'${String(value).replaceAll("\\", "\\\\").replaceAll("'", "''").replaceAll("\n", "\\n").replaceAll("\r", "\\r")}'`

/** Returns the text of a configuration file, or as `Left` the name of an invalid setting. */
export const render = (settings: Settings): Either.Either<string, string> => {
  const invalid = Object.entries(settings).find(
    ([name, value]) => !/^[A-Za-z_][\w$]*(\.[A-Za-z_][\w$]*)*$/.test(name) || String(value).includes("\0")
  )
  return invalid === undefined
    ? Either.right(
        Object.entries(settings)
          .map(([name, value]) => `${name} = ${quote(value)}\n`)
          .join("")
      )
    : Either.left(invalid[0])
}

/** Returns the connection string of a standby to its primary. */
export const conninfo = (options: { readonly port: number; readonly password: string; readonly name: string }) =>
  `host=127.0.0.1 port=${options.port} user=postgres password=${options.password} application_name=${options.name}`
