/**
 * Settings of a session and its connect that a connection string may hold.
 */

import { flag, Invalid, integer, keepAlive } from "./optionParsers.js"
import type { ServerParts } from "./serverInput.js"

/**
 * The settings of sessions that a connection string holds. The options of the database come before them.
 *
 * @since 0.2.0
 * @category models
 */
export interface SessionParameters {
  readonly applicationName?: string
  /** In milliseconds; `undefined` where TCP keeps silent. */
  readonly keepAlive?: number | undefined
  /** Settings of the session, in the form of libpq's `options`: `-c name=value`. */
  readonly startupOptions?: string
  /** There, and undefined, if `startupOptions` limit it. */
  readonly idleInTransactionTimeout?: undefined
}

const utf8 = /^(utf-?8|unicode|auto)$/i

/** Returns the settings of a session that a connection string holds. */
export const sessionParameters = ({ parameter, parameters }: ServerParts): SessionParameters => {
  const value = (name: string) => parameters?.get(name) || undefined
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
    // zero stands for a time that is not given
    ...(isKept && idle > 0 ? { keepAlive: keepAlive(idle * 1000, parameter("keepalives_idle")) } : {}),
    ...(isKept ? {} : { keepAlive: undefined })
  }
}

/** Returns the time that each host may take to connect to, in milliseconds, if a connection string says so. */
export const hostTimeoutOf = ({ parameter, parameters }: ServerParts): number | undefined => {
  const given = parameters?.get("connect_timeout")
  if (given === undefined || given === "") return undefined
  const seconds = integer(parameter("connect_timeout"), given)
  if (seconds > 0) return seconds * 1000
  throw new Invalid(parameter("connect_timeout"), "zero or less, which waits without limit", "seconds from 1")
}
