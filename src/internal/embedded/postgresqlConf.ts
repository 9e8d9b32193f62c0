import * as Either from "effect/Either"

/** Settings of a server by name, as in postgresql.conf. */
export type Settings = Readonly<Record<string, string | number | boolean>>

/** What a server for tests needs. The user's settings come after these, so they win. */
export const defaults = (replicas: number): Settings => ({
  listen_addresses: "127.0.0.1",
  unix_socket_directories: "",
  max_connections: 100,
  fsync: false,
  wal_level: "replica",
  wal_keep_size: "512MB",
  max_wal_senders: 10 + replicas,
  hot_standby: true,
  // a replica waits so long before it tries a primary again that was not there
  wal_retrieve_retry_interval: "100ms",
  timezone: "UTC",
  log_timezone: "UTC"
})

/** What the library itself reads or decides, so it comes as arguments, which nobody can override. */
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

/** The text of a configuration file; the left side is the first name that cannot be one. */
export const render = (settings: Settings): Either.Either<string, string> => {
  const bad = Object.entries(settings).find(
    ([name, value]) => !/^[A-Za-z_][\w$]*(\.[A-Za-z_][\w$]*)*$/.test(name) || String(value).includes("\0")
  )
  return bad === undefined
    ? Either.right(
        Object.entries(settings)
          .map(([name, value]) => `${name} = ${quote(value)}\n`)
          .join("")
      )
    : Either.left(bad[0])
}

/** How a standby reaches its primary. */
export const conninfo = (options: { readonly port: number; readonly password: string; readonly name: string }) =>
  `host=127.0.0.1 port=${options.port} user=postgres password=${options.password} application_name=${options.name}`
