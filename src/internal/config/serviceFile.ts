/**
 * Service files of libpq: parameters by the name of a service.
 */
import type { Pair } from "./connectionUri.js"
import { Invalid } from "./optionParsers.js"

/**
 * Returns the parameters of a service in the order of the file, or `undefined` if the file does not
 * define the service.
 */
export const parseService = (text: string, service: string): ReadonlyArray<Pair> | undefined => {
  let pairs: Array<Pair> | undefined
  for (const line of text.split(/\r?\n/).map((line) => line.trim())) {
    if (line === "" || line.startsWith("#")) continue
    if (line.startsWith("[")) {
      if (pairs !== undefined) break
      if (line.startsWith(`[${service}]`)) pairs = []
    } else if (pairs !== undefined) {
      const [name = "", value] = line.split(/=(.*)/s)
      // the error does not show the line, which may contain a password
      if (value === undefined || name === "service" || name.startsWith("ldap")) {
        throw new Invalid(`service ${service}`, "a line that is no parameter", "parameter=value")
      }
      pairs.push([name, value])
    }
  }
  return pairs
}
