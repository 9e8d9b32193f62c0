/**
 * Password files in libpq's form: a line `host:port:database:user:password` for each, `*` for any.
 */

/** A connection, which a line has to fit. */
export interface PassfileKey {
  readonly host: string
  readonly port: number
  readonly database: string
  readonly username: string
}

/** libpq's own folders for sockets, which a line names as `localhost`. */
const normalFolders = ["/tmp", "/var/run/postgresql"]

/** Splits a line at the first four colons that no backslash stands before; the password may have more. */
const fieldsOf = (line: string): ReadonlyArray<string> =>
  /^((?:\\.|[^\\:])*):((?:\\.|[^\\:])*):((?:\\.|[^\\:])*):((?:\\.|[^\\:])*):(.*)$/.exec(line)?.slice(1) ?? []

const plain = (field: string): string => field.replace(/\\(.)/g, "$1")

/** Finds the password of the first line that fits. */
export const findPassword = (text: string, key: PassfileKey): string | undefined => {
  const hosts = normalFolders.includes(key.host) ? [key.host, "localhost"] : [key.host]
  const fits = (field: string | undefined, ...values: ReadonlyArray<string>) =>
    field === "*" || (field !== undefined && values.includes(plain(field)))
  for (const line of text.split(/\r?\n/)) {
    if (line.startsWith("#")) continue
    const [host, port, database, username, password] = fieldsOf(line)
    const isMeant =
      fits(host, ...hosts) &&
      fits(port, String(key.port)) &&
      fits(database, key.database) &&
      fits(username, key.username)
    if (isMeant && password !== undefined) return plain(password)
  }
  return undefined
}
