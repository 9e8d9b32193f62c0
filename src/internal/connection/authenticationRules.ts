/**
 * The rules for the authentication requests of a server: `require_auth`, `channel_binding=require`,
 * no plain or MD5 password to a remote host without TLS, and no SCRAM without a proof of the
 * server. Without these rules a server could request the password itself instead of a proof that
 * the client has it.
 */
import type { EventEmitter } from "node:events"
import type { AuthMethod, ServerConfig } from "../../DatabaseConfig.js"
import { isLocal } from "../config/localHost.js"
import type { Destination } from "./destination.js"

/** The authentication methods, by the driver's names of the messages that request them. */
const methods = new Map<string, AuthMethod>([
  ["authenticationCleartextPassword", "password"],
  ["authenticationMD5Password", "md5"],
  ["authenticationSASL", "scram-sha-256"]
])

/** The SCRAM mechanism with channel binding. */
const boundMechanism = "SCRAM-SHA-256-PLUS"

/** Returns the reason to refuse an authentication method, if there is one. */
const refusalOf = (server: Destination, method: AuthMethod, mechanisms: ReadonlyArray<string>): string | undefined => {
  if (server.requireAuth?.has(method) === false) return `it asks for ${method}, which require_auth does not allow`
  if (server.bindsChannel && !mechanisms.includes(boundMechanism)) {
    return `it does not offer ${boundMechanism}, which channel_binding=require needs: the TLS connection may end at another machine`
  }
  if (method !== "scram-sha-256" && method !== "none" && isExposed(server)) {
    return `it asks for the password by ${method}, over a connection without TLS to a remote host: use TLS, or scram-sha-256 on the server`
  }
  return undefined
}

/**
 * Checks if the connection leads to a remote host without TLS. A stream of the program counts as
 * secure.
 */
const isExposed = (server: Destination): boolean =>
  server.ssl === false && server.dial === undefined && !isLocal(server)

/**
 * Watches a login, and calls `refuse` if a message of the server breaks a rule. The call is made
 * before the driver answers the message. `refuse` must destroy the connection.
 */
export const watchAuthentication = (
  protocol: EventEmitter,
  server: ServerConfig,
  refuse: (error: Error) => void
): void => {
  let requested: AuthMethod = "none"
  let isProved = false
  const check = (method: AuthMethod, mechanisms: ReadonlyArray<string>) => {
    requested = method
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
    if (requested === "none") return check("none", [])
    // in SCRAM the server must prove, too, that it knows the password
    if (requested === "scram-sha-256" && !isProved) {
      refuse(new Error("it ended SCRAM without a proof that it knows the password: it may be another server"))
    }
  })
}
