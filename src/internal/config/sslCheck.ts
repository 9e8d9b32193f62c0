/**
 * The check of the option `ssl`.
 */
import type { ConnectionOptions } from "node:tls"
import type { Ssl } from "../../ServerConfig.js"
import { Invalid } from "./optionParsers.js"
import { type KnownNames, refuseUnknown } from "./unknownSetting.js"

/** The options of Node for a TLS connection, including options that Node 20 does not have yet. */
const nodeOptions: KnownNames<ConnectionOptions> & Readonly<Record<string, true>> = {
  secureContext: true,
  enableTrace: true,
  requestCert: true,
  ALPNProtocols: true,
  ALPNCallback: true,
  SNICallback: true,
  rejectUnauthorized: true,
  ca: true,
  cert: true,
  key: true,
  passphrase: true,
  pfx: true,
  crl: true,
  ciphers: true,
  sigalgs: true,
  dhparam: true,
  ecdhCurve: true,
  honorCipherOrder: true,
  minVersion: true,
  maxVersion: true,
  secureProtocol: true,
  secureOptions: true,
  sessionIdContext: true,
  ticketKeys: true,
  sessionTimeout: true,
  clientCertEngine: true,
  privateKeyEngine: true,
  privateKeyIdentifier: true,
  allowPartialTrustChain: true,
  host: true,
  port: true,
  path: true,
  socket: true,
  checkServerIdentity: true,
  servername: true,
  session: true,
  minDHSize: true,
  lookup: true,
  timeout: true,
  pskCallback: true,
  highWaterMark: true,
  requestOCSP: true,
  isServer: true,
  server: true
}

/**
 * Refuses a value that is neither a boolean nor an object, and an object with a name that is no TLS
 * option of Node.
 */
export const checkSsl = (setting: string, ssl: Ssl | undefined): void => {
  if (ssl === undefined || typeof ssl === "boolean") return
  if (typeof ssl !== "object" || ssl === null) {
    throw new Invalid(setting, "neither a boolean nor options of TLS", "true, false, or an object such as { ca }")
  }
  refuseUnknown(setting, ssl, nodeOptions)
}
