/**
 * The rules for the authentication requests of a server: `require_auth`, `channel_binding=require`,
 * and no password in plain text to a remote host. Without these rules a server could request the
 * password itself in place of a proof.
 */
import type { EventEmitter } from "node:events"
import type { AuthMethod, ServerConfig } from "../../DatabaseConfig.js"
import { isLocal } from "../config/localHost.js"
import type { Destination } from "./preparedEndpoint.js"

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
 * Checks if others can read the messages on the network. A stream of the program counts as secure.
 */
const isExposed = (server: Destination): boolean =>
  server.ssl === false && server.dial === undefined && !isLocal(server)

/**
 * Watches a login. `refuse` is called in the same turn as a message that requests a forbidden
 * method, before the driver answers it, and must destroy the connection.
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
    // SCRAM also proves the server to the client, unless it ends early
    if (requested === "scram-sha-256" && !isProved) {
      refuse(new Error("it ended SCRAM without a proof that it knows the password: it may be another server"))
    }
  })
}
