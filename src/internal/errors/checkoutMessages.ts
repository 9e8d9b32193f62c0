/**
 * The messages of errors without a connection: from a failed connect, or from the pool.
 */
import { type ConnectReason, tlsAdvice } from "../../SqlState.js"
import { type Caused, causeText, hasProperty, type Location, locationText } from "./messageParts.js"

const connectAdvice: Readonly<Record<Exclude<ConnectReason, "tls">, string>> = {
  unreachable: "no server answered: check host, port and network, and that the server is running",
  unresponsive: "the server did not answer in time: it may be stopped or overloaded",
  authentication: "the server rejected the user or password: check the credentials and pg_hba.conf",
  tooManyConnections: "the server has no connection left: lower maxConnections or raise max_connections",
  startingUp: "the server is starting up, shutting down or recovering: try again later",
  noSuchDatabase: "the server has no database of that name: create it or correct the URL",
  wrongRole:
    "the server does not have the role that the settings require: check writer and readers, and mode if there is a pooler",
  poolerMode: 'the address is that of a pooler in transaction mode: set mode: "transactionPooler"',
  credentials: "there is no user or password to log in with: check the settings, `credentials` or `passwordFile`",
  setup: "`onConnect` or `onCheckout` failed on the new connection: check its statements",
  outcomeTable: 'outcome: "marker" needs this table: see the setting outcomeTable',
  protocol: "the answer is not PostgreSQL's protocol, or exceeds a limit: check host and port, and any proxy in between"
}

/**
 * Returns the code of an error or of its cause, which is the error of the last host if there are
 * several.
 */
const codeOf = (cause: unknown): string | undefined => {
  const inner = hasProperty(cause, "cause") ? cause.cause : undefined
  const coded = [cause, inner].find((error) => hasProperty(error, "code"))
  return hasProperty(coded, "code") && typeof coded.code === "string" ? coded.code : undefined
}

export const connectFailed = (self: Caused & { readonly reason: ConnectReason }): string => {
  const advice = self.reason === "tls" ? tlsAdvice(codeOf(self.cause)) : connectAdvice[self.reason]
  return `${locationText(self)}: cannot connect (${self.reason})${causeText(self)} - ${advice}`
}

const exhaustedAdvice = {
  timeout: "hold connections for less time, or raise maxConnections",
  shed: "the pool is overloaded: slow the callers down, or raise maxConnections or queueTarget",
  single: "the strategy assertSingle allows one checkout at a time: check in the other one, or use another strategy",
  outage: "the server is unavailable, and maxOutageWaiters callers wait for it: try again later, or raise the limit",
  paused: "the database is paused: resume it by Db.resume, or try again later"
} as const

interface Exhausted extends Location {
  readonly reason: keyof typeof exhaustedAdvice
  readonly waitedMillis: number
  readonly total: number
  readonly active: number
  readonly idle: number
  readonly waiting: number
  readonly connecting?: { readonly count: number; readonly longestMillis: number } | undefined
  readonly lastConnectFailure?: string | undefined
  readonly longestCheckout?:
    | { readonly heldMillis: number; readonly fiber?: string | undefined; readonly location?: string | undefined }
    | undefined
}

export const poolExhausted = (self: Exhausted): string => {
  const { active, connecting, idle, lastConnectFailure, longestCheckout, reason, total, waiting } = self
  const connects =
    connecting === undefined
      ? ""
      : `; connects in progress: ${connecting.count}, the longest for ${Math.round(connecting.longestMillis)} ms`
  const lastConnect = lastConnectFailure === undefined ? "" : `; the last connect failed: ${lastConnectFailure}`
  const checkout =
    longestCheckout === undefined
      ? ""
      : `; the longest checkout has been held for ${Math.round(longestCheckout.heldMillis)} ms` +
        (longestCheckout.fiber === undefined ? "" : ` by fiber ${longestCheckout.fiber}`) +
        (longestCheckout.location === undefined ? "" : ` at ${longestCheckout.location}`)
  const advice =
    reason === "timeout" && (active < total || total === 0)
      ? "the server may not be answering: check if it is stopped or overloaded"
      : exhaustedAdvice[reason]
  return (
    `${locationText(self)}: no connection became free within ${Math.round(self.waitedMillis)} ms ` +
    `(total ${total}, active ${active}, idle ${idle}, waiting ${waiting})${connects}${lastConnect}${checkout} - ${advice}`
  )
}

export const poolSelfDeadlock = (self: Location & { readonly maxConnections: number }): string =>
  `${locationText(self)}: this fiber holds a connection and needs another one, ` +
  `but all ${self.maxConnections} are held by fibers that need another one, too` +
  " - raise maxConnections, or do not nest with requiresNew or independent"

export const databaseClosed = (self: Location & { readonly notYet?: boolean | undefined }): string =>
  self.notYet === true
    ? `${locationText(self)} is not open yet - wait for \`open()\` before the first use`
    : `${locationText(self)} is closed - use it only while its layer is open`
