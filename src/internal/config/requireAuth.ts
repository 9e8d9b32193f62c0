/**
 * The authentication methods that a connection string allows: `require_auth`.
 */
import { Invalid } from "./optionParsers.js"

/** The methods of libpq's `require_auth`. The driver has three of them, and `none`. */
const methods = ["password", "md5", "gss", "sspi", "scram-sha-256", "oauth", "none"] as const

/**
 * Authentication method, by its name in libpq's `require_auth`.
 *
 * @since 0.2.0
 * @category models
 */
export type AuthMethod = (typeof methods)[number]

const isMethod = (name: string): name is AuthMethod => (methods as ReadonlyArray<string>).includes(name)

/** Returns the allowed methods. In `require_auth` a method with `!` is forbidden. */
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
