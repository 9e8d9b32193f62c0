/**
 * Connection URIs, as libpq 18 reads them:
 * `postgres://user:password@host:port,host:port/dbname?parameter=value`.
 *
 * They are read character by character as in libpq, because existing URLs rely on that: some have
 * several hosts, a `?` in a password, or spaces around a value. If a password has a character that
 * should be encoded, a part of the password is read as another part of the URL. So an error does
 * not show the URL, and a / in the credentials and an @ in a host are refused, although libpq
 * accepts them.
 */
import { Invalid } from "./optionParsers.js"

/** Parameter and its value. In a list, a later value of a parameter replaces an earlier one. */
export type Pair = readonly [parameter: string, value: string]

const prefix = /^postgres(?:ql)?:\/\//

/** Checks if a connection string is a URI. */
export const isUri = (text: string): boolean => prefix.test(text)

const uriForm = "a URL like postgres://user:password@host:5432/database"

/** Decodes `%XX`. Like libpq, removes spaces around a text and refuses spaces inside of it. */
const decode = (setting: string, text: string): string => {
  const trimmed = text.replace(/^ +| +$/g, "")
  const refuse = (given: string, expected: string) => new Invalid(setting, `a URL with ${given}`, expected)
  if (trimmed.includes(" ")) throw refuse("a space", "%20 for a space")
  if (/%(?![0-9a-f]{2})/i.test(trimmed)) throw refuse("a % that encodes nothing", "%25 for a percent sign")
  if (trimmed.includes("%00")) throw refuse("a NUL character", "text without NUL")
  try {
    return decodeURIComponent(trimmed)
  } catch {
    throw refuse("an encoding that is not UTF-8", "UTF-8")
  }
}

/** Returns the lists of hosts and ports, and the index where the path or the query begins. */
const readHosts = (setting: string, text: string, start: number) => {
  const hosts: Array<string> = []
  const ports: Array<string> = []
  let at = start
  const take = (pattern: RegExp): string => {
    pattern.lastIndex = at
    const taken = pattern.exec(text)?.[0] ?? ""
    at += taken.length
    return taken
  }
  do {
    if (hosts.length > 0) at++
    if (text[at] === "[") {
      const address = take(/\[[^\]]+\]/y)
      if (address === "" || !/^[:/?,]?$/.test(text[at] ?? "")) {
        throw new Invalid(setting, "a URL with a malformed IPv6 address", "an address in brackets, such as [::1]:5432")
      }
      hosts.push(address.slice(1, -1))
    } else hosts.push(take(/[^:/?,]*/y))
    ports.push(take(/:[^/?,]*/y).slice(1))
  } while (text[at] === ",")
  return { host: hosts.join(","), port: ports.join(","), end: at }
}

const readQuery = (setting: string, query: string): ReadonlyArray<Pair> =>
  // libpq allows an extra & at the end, and none elsewhere
  (query === "" ? [] : query.replace(/&$/, "").split("&")).map((text) => {
    const [name, value, ...more] = text.split("=")
    if (name === undefined || value === undefined) {
      throw new Invalid(setting, "a URL with a parameter that has no value", "parameter=value, with %26 for an &")
    }
    if (more.length > 0) {
      throw new Invalid(setting, "a URL with two = in a parameter", "%3D for an = in a value, and & between parameters")
    }
    const parameter = decode(setting, name)
    const decoded = decode(setting, value)
    // libpq accepts this parameter of JDBC
    return parameter === "ssl" && decoded === "true" ? ["sslmode", "require"] : [parameter, decoded]
  })

/** Reads a connection URI. */
export const parseUri = (setting: string, uri: string): ReadonlyArray<Pair> => {
  const text = uri.replace(prefix, "")
  const [credentials = ""] = /^[^@/]*@/.exec(text) ?? []
  // a / in a password that is not encoded ends the credentials
  if (credentials === "" && /\/.*@/s.test(text.split("?", 1)[0] ?? "")) {
    throw new Invalid(setting, "a malformed URL", `${uriForm}, with %2F for a / in the password`)
  }
  const [, user = "", password = ""] = /^([^:]*):?(.*)@$/s.exec(credentials) ?? []
  // if an @ in the query is not encoded, all text before it is read as the user
  if (user.includes("?")) {
    throw new Invalid(setting, "a malformed URL", `${uriForm}, with %40 for an @ and %3F for a ? elsewhere`)
  }
  const { end, host, port } = readHosts(setting, text, credentials.length)
  // libpq ends the credentials at the first @, and reads the rest of a password as a host
  if (`${host}${port}`.includes("@")) {
    throw new Invalid(setting, "a malformed URL", `${uriForm}, with %40 for an @ in the user or password`)
  }
  const [dbname = "", ...query] = text.slice(end).split("?")
  const pairs: ReadonlyArray<Pair> = [
    ["user", user],
    ["password", password],
    ["host", host],
    ["port", port],
    ["dbname", dbname.slice(1)]
  ]
  return [
    ...pairs.flatMap(([name, value]): ReadonlyArray<Pair> => (value === "" ? [] : [[name, decode(setting, value)]])),
    ...readQuery(setting, query.join("?"))
  ]
}

/** Parts of a connection URI with a single host. */
export interface UriParts {
  readonly username: string
  readonly password: string | undefined
  readonly host: string
  readonly port: number
  readonly database: string
  readonly parameters: ReadonlyArray<readonly [parameter: string, value: string | undefined]>
}

/** Encodes a part of a URI. A lone surrogate becomes U+FFFD, as in UTF-8. */
const encode = (text: string): string => encodeURIComponent(Buffer.from(text).toString())

/**
 * Returns a connection URI that other libraries can read, too. node-postgres decodes the name of a
 * database with `decodeURI`, so of the reserved characters only `?` and `#` are encoded there.
 */
export const formatUri = ({ database, host, parameters, password, port, username }: UriParts): string => {
  const user = username === "" ? "" : `${encode(username)}${password === undefined ? "" : `:${encode(password)}`}@`
  const at = host.includes(":") ? `[${host}]` : encode(host)
  const path = encodeURI(Buffer.from(database).toString()).replace(/[?#]/g, encodeURIComponent)
  const query = parameters.flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${encode(value)}`]))
  return `postgres://${user}${at}:${port}/${path}${query.length === 0 ? "" : `?${query.join("&")}`}`
}
