/**
 * The authentication methods that a connection string allows: `require_auth`.
 */
import type { AuthMethod } from "../../ServerConfig.js"
import { Invalid } from "./optionParsers.js"

/** The methods of libpq's `require_auth`. The driver does not have `gss`, `sspi` and `oauth`. */
const table: Readonly<Record<AuthMethod, true>> = {
  password: true,
  md5: true,
  gss: true,
  sspi: true,
  "scram-sha-256": true,
  oauth: true,
  none: true
}

const isMethod = (name: string): name is AuthMethod => Object.hasOwn(table, name)

const methods = Object.keys(table).filter(isMethod)

/** Returns the allowed methods: the listed ones or, if these have a `!`, all others. */
export const parseRequireAuth = (setting: string, list: string | undefined): ReadonlySet<AuthMethod> | undefined => {
  if (list === undefined) return undefined
  const entries = list.split(",").map((entry) => entry.trim())
  const names = entries.map((entry) => entry.replace(/^!/, ""))
  const isNegated = entries.map((entry) => entry.startsWith("!"))
  const known = names.filter(isMethod)
  if (known.length < names.length) throw new Invalid(setting, "unknown", `some of ${methods.join(", ")}`)
  if (new Set(isNegated).size > 1) {
    throw new Invalid(setting, "a mixture of methods with and without !", "all of them with !, or none")
  }
  if (new Set(known).size < known.length) throw new Invalid(setting, "a list with a method twice", "each method once")
  return new Set(isNegated[0] ? methods.filter((method) => !known.includes(method)) : known)
}
