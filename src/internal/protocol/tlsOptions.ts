/**
 * TLS options that belong to one connection, with their secrets out of sight.
 */
import { isIP } from "node:net"
import * as Tls from "node:tls"

/** Options that hold a private key or open one. */
const secrets = ["key", "passphrase", "pfx"] as const

/**
 * Copies options, so that a program's later change of its own object changes nothing. The copy has the secrets, but lists and prints none
 * of them. An object that node-postgres was given before lists no `key` either.
 */
export const concealSecrets = <A extends boolean | Tls.ConnectionOptions | undefined>(ssl: A): A => {
  if (typeof ssl !== "object" || ssl === null) return ssl
  const copy = { ...ssl }
  for (const name of secrets) {
    if (ssl[name] !== undefined) Object.defineProperty(copy, name, { value: ssl[name], enumerable: false })
  }
  return copy
}

/** The beginning of TLS. */
export interface TlsSettings {
  /** True if TLS begins at once, without a question. */
  readonly isDirectTls?: boolean
  /** True if the host is named to the server. */
  readonly sendsServerName?: boolean
}

/**
 * Makes the options of one connection to `host`. Keys and certificates are read here, so what is wrong with them is thrown by this function
 * and not by a socket's event. The environment has no say in whether the server's certificate is verified.
 */
export const tlsOptions = (
  ssl: true | Tls.ConnectionOptions,
  host: string,
  { isDirectTls = false, sendsServerName = true }: TlsSettings = {}
): Tls.ConnectionOptions => {
  const isKnown: unknown = ssl === true || (typeof ssl === "object" && ssl !== null)
  if (!isKnown) throw unusableTls(`ssl is a ${typeof ssl}; give true, false or an object of TLS options`)
  const given: Tls.ConnectionOptions = ssl === true ? {} : ssl
  const { key, passphrase, pfx, rejectUnauthorized = true, secureContext } = given
  return {
    host,
    ...given,
    // the context holds them
    key: undefined,
    passphrase: undefined,
    pfx: undefined,
    secureContext: secureContext ?? makeContext({ ...given, key, passphrase, pfx }),
    rejectUnauthorized,
    // the server refuses TLS without a question unless the client names the protocol
    ...(isDirectTls ? { ALPNProtocols: ["postgresql"] } : {}),
    // the certificate is compared with the name in the settings, and an address is no name to ask for
    ...serverName(given, host, sendsServerName)
  }
}

const serverName = ({ servername }: Tls.ConnectionOptions, host: string, isSent: boolean): Tls.ConnectionOptions => {
  // undefined keeps the name that is compared, the host's, and sends none
  if (!isSent) return { servername: undefined }
  return servername === undefined && isIP(host) === 0 ? { servername: host } : {}
}

const makeContext = (options: Tls.SecureContextOptions): Tls.SecureContext => {
  try {
    return Tls.createSecureContext(options)
  } catch (cause) {
    throw unusableTls(cause instanceof Error ? cause.message : String(cause))
  }
}

const unusableTls = (why: string) => new Error(`TLS cannot be used as it is set: ${why}`)
