/**
 * Rules for the requests of a server at login: `require_auth`, `channel_binding=require`, and no password in the clear to a remote
 * host. Without these rules a server decides how much of the password it gets to see.
 */
import type { EventEmitter } from "node:events"
import type { AuthMethod, ServerConfig } from "../../DatabaseConfig.js"
import { isLocal } from "../config/localHost.js"
import type { Destination } from "./destination.js"

/** The ways to authenticate, by the driver's names of the messages that ask for them. */
const methods = new Map<string, AuthMethod>([
  ["authenticationCleartextPassword", "password"],
  ["authenticationMD5Password", "md5"],
  ["authenticationSASL", "scram-sha-256"]
])

const bound = "SCRAM-SHA-256-PLUS"

/** Returns the reason to refuse a way to authenticate, if there is one. */
const refusalOf = (server: Destination, method: AuthMethod, mechanisms: ReadonlyArray<string>): string | undefined => {
  if (server.requireAuth?.has(method) === false) return `it asks for ${method}, which require_auth does not allow`
  if (server.bindsChannel && !mechanisms.includes(bound)) {
    return `it does not offer ${bound}, which channel_binding=require asks for: TLS may end before the server does`
  }
  if (method !== "scram-sha-256" && method !== "none" && isExposed(server)) {
    return `it asks for the password by ${method}, over a connection without TLS to a remote host: use TLS, or scram-sha-256 on the server`
  }
  return undefined
}

/** Tells if others on the network may read along. A stream that the program gave is its own affair. */
const isExposed = (server: Destination): boolean =>
  server.ssl === false && server.dial === undefined && !isLocal(server)

/**
 * Watches a login, and calls `refuse` in the turn of a message that asks for what is not allowed, before the driver answers it; the
 * connection has to be destroyed then.
 */
export const watchAuthentication = (
  protocol: EventEmitter,
  server: ServerConfig,
  refuse: (error: Error) => void
): void => {
  let asked: AuthMethod = "none"
  let isProved = false
  const check = (method: AuthMethod, mechanisms: ReadonlyArray<string>) => {
    asked = method
    const refusal = refusalOf(server, method, mechanisms)
    if (refusal !== undefined) refuse(new Error(refusal))
  }
  for (const [message, method] of methods) {
    protocol.on(message, ({ mechanisms = [] }: { readonly mechanisms?: ReadonlyArray<string> }) =>
      check(method, mechanisms)
    )
  }
  protocol.on("authenticationSASLFinal", () => {
    isProved = true
  })
  protocol.on("authenticationOk", () => {
    if (asked === "none") return check("none", [])
    // SCRAM proves the server to the client, too, unless it stops half-way
    if (asked === "scram-sha-256" && !isProved) {
      refuse(new Error("it ended SCRAM without a proof that it knows the password: it may be another server"))
    }
  })
}
