/**
 * The TLS options of one connection, with their secrets concealed.
 */
import { isIP } from "node:net"
import * as Tls from "node:tls"
import { thrownMessage } from "./thrownValue.js"

/** The options that hold a private key or decrypt one. */
const secrets = ["key", "passphrase", "pfx"] as const

/**
 * Copies options, so that a later change of the program's object has no effect. The secrets of the
 * copy are not enumerable, so that no code lists or prints them. node-postgres does the same to the
 * `key` of the object that it gets.
 */
export const concealSecrets = <A extends boolean | Tls.ConnectionOptions | undefined>(ssl: A): A => {
  if (typeof ssl !== "object" || ssl === null) return ssl
  const copy = { ...ssl }
  for (const name of secrets) {
    if (ssl[name] !== undefined) Object.defineProperty(copy, name, { value: ssl[name], enumerable: false })
  }
  return copy
}

/** Settings of the start of TLS. */
export interface TlsSettings {
  /** True if TLS begins at once, without a request for it. */
  readonly isDirectTls?: boolean
  /** True if the client sends the name of the host (SNI). */
  readonly sendsServerName?: boolean
}

/**
 * Creates the options of one connection to `host`. Keys and certificates are read here, so their
 * errors are thrown by this function and not by an event of the socket. The environment cannot turn
 * off the verification of the server's certificate.
 */
export const tlsOptions = (
  ssl: true | Tls.ConnectionOptions,
  host: string,
  { isDirectTls = false, sendsServerName = true }: TlsSettings = {}
): Tls.ConnectionOptions => {
  const isValid: unknown = ssl === true || (typeof ssl === "object" && ssl !== null)
  if (!isValid) throw unusableTls(`ssl is a ${typeof ssl}; give true, false or an object of TLS options`)
  const given: Tls.ConnectionOptions = ssl === true ? {} : ssl
  const { key, passphrase, pfx, rejectUnauthorized = true, secureContext } = given
  return {
    host,
    ...given,
    // `secureContext` holds these three
    key: undefined,
    passphrase: undefined,
    pfx: undefined,
    secureContext: secureContext ?? makeContext({ ...given, key, passphrase, pfx }),
    rejectUnauthorized,
    // the server rejects TLS without a request unless the client names the protocol
    ...(isDirectTls ? { ALPNProtocols: ["postgresql"] } : {}),
    // the certificate is compared with the name in the settings; SNI does not allow an address
    ...serverName(given, host, sendsServerName)
  }
}

const serverName = ({ servername }: Tls.ConnectionOptions, host: string, isSent: boolean): Tls.ConnectionOptions => {
  // with `undefined` Node compares the certificate with the host, and sends no name
  if (!isSent) return { servername: undefined }
  return servername === undefined && isIP(host) === 0 ? { servername: host } : {}
}

const makeContext = (options: Tls.SecureContextOptions): Tls.SecureContext => {
  try {
    return Tls.createSecureContext(options)
  } catch (cause) {
    throw unusableTls(thrownMessage(cause))
  }
}

const unusableTls = (reason: string) => new Error(`TLS cannot be used as it is set: ${reason}`)
