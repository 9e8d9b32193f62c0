/**
 * The parameters of a connection string for its sessions, and for the timeout of a connect.
 */

import type { SessionParameters } from "../../ServerConfig.js"
import { flag, Invalid, integer, keepAlive } from "./optionParsers.js"
import type { ServerParts } from "./serverInput.js"

const utf8 = /^(utf-?8|unicode|auto)$/i

/** Returns the session settings of a connection string. */
export const sessionParameters = ({ parameter, value }: ServerParts): SessionParameters => {
  if (!utf8.test(value("client_encoding") ?? "UTF8")) {
    throw new Invalid(parameter("client_encoding"), "not supported", "UTF8, which is all that the driver reads")
  }
  const applicationName = value("application_name") ?? value("fallback_application_name")
  const startupOptions = value("options")
  const isKept = flag(parameter("keepalives"), value("keepalives"))
  const idle = integer(parameter("keepalives_idle"), value("keepalives_idle") ?? "0")
  return {
    ...(applicationName === undefined ? {} : { applicationName }),
    ...(startupOptions === undefined ? {} : { startupOptions }),
    // libpq treats zero as a missing value
    ...(isKept && idle > 0 ? { keepAlive: keepAlive(idle * 1000, parameter("keepalives_idle")) } : {}),
    ...(isKept ? {} : { keepAlive: undefined })
  }
}

/** Returns the timeout of a connection string for each host, in milliseconds, if there is one. */
export const hostTimeoutOf = ({ parameter, value }: ServerParts): number | undefined => {
  const given = value("connect_timeout")
  if (given === undefined) return undefined
  const seconds = integer(parameter("connect_timeout"), given)
  if (seconds > 0) return seconds * 1000
  throw new Invalid(parameter("connect_timeout"), "zero or less, which waits without limit", "seconds from 1")
}
