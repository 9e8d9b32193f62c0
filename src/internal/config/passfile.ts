/**
 * Password files of libpq, such as `.pgpass`: lines `host:port:database:user:password`, in which
 * `*` matches any value.
 */

/** Connection that needs a password from the file. */
export interface PassfileKey {
  readonly host: string
  readonly port: number
  readonly database: string
  readonly username: string
}

/** The default folders of Unix sockets. A line with the host `localhost` matches them, too. */
const defaultFolders = ["/tmp", "/var/run/postgresql"]

/**
 * Splits a line at its first four colons. A colon after a backslash does not count, and the
 * password may contain further colons.
 */
const fieldsOf = (line: string): ReadonlyArray<string> =>
  /^((?:\\.|[^\\:])*):((?:\\.|[^\\:])*):((?:\\.|[^\\:])*):((?:\\.|[^\\:])*):(.*)$/.exec(line)?.slice(1) ?? []

const plain = (field: string): string => field.replace(/\\(.)/g, "$1")

/** Returns the password of the first line that matches. */
export const findPassword = (text: string, key: PassfileKey): string | undefined => {
  const hosts = defaultFolders.includes(key.host) ? [key.host, "localhost"] : [key.host]
  const matches = (field: string | undefined, ...values: ReadonlyArray<string>) =>
    field === "*" || (field !== undefined && values.includes(plain(field)))
  for (const line of text.split(/\r?\n/)) {
    if (line.startsWith("#")) continue
    const [host, port, database, username, password] = fieldsOf(line)
    const isMatch =
      matches(host, ...hosts) &&
      matches(port, String(key.port)) &&
      matches(database, key.database) &&
      matches(username, key.username)
    if (isMatch && password !== undefined) return plain(password)
  }
  return undefined
}
