/**
 * The TLS parameters of a connection string, such as `sslmode`, as options of Node.
 */
import type { ConnectionOptions } from "node:tls"
import * as Redacted from "effect/Redacted"
import type { Host, Ssl, TlsFiles } from "../../ServerConfig.js"
import { isLocal, isSocket } from "./localHost.js"
import { Invalid, oneOf } from "./optionParsers.js"
import type { ServerParts } from "./serverInput.js"

const modes = ["disable", "allow", "prefer", "no-verify", "require", "verify-ca", "verify-full"] as const
type Mode = (typeof modes)[number]

const versions = ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"] as const

const versionOf = ({ parameter, parameters }: ServerParts, name: string): ConnectionOptions["minVersion"] => {
  const given = parameters?.get(name)
  if (!given) return undefined
  const known = versions.find((version) => version.toLowerCase() === given.toLowerCase())
  return oneOf(parameter(name), known ?? given, ...versions)
}

/** Returns the TLS options of Node for one host of a connection string. */
export const tlsParameters = (given: ServerParts, host: Host): Ssl => {
  const { parameter, parameters } = given
  const trustsSystem = parameters?.get("sslrootcert") === "system"
  const defaultMode = isLocal(host) && !trustsSystem ? "disable" : "verify-full"
  const mode: Mode = oneOf(parameter("sslmode"), parameters?.get("sslmode") || defaultMode, ...modes)
  // like libpq, ignores sslmode for a Unix socket
  if (isSocket(host) || mode === "disable") return false
  if (mode === "allow" || mode === "prefer") {
    if (isLocal(host)) return false
    throw new Invalid(
      parameter("sslmode"),
      `${mode} for a remote host, which continues in plain text if TLS is refused`,
      "require or verify-full, or disable where the network is trusted"
    )
  }
  if (trustsSystem && mode !== "require" && mode !== "verify-full") {
    throw new Invalid(
      parameter("sslmode"),
      `${mode} with sslrootcert=system`,
      "verify-full, because any site can get such a certificate"
    )
  }
  const minVersion = versionOf(given, "ssl_min_protocol_version")
  const maxVersion = versionOf(given, "ssl_max_protocol_version")
  if (minVersion !== undefined && maxVersion !== undefined && minVersion > maxVersion) {
    throw new Invalid(parameter("ssl_min_protocol_version"), "above ssl_max_protocol_version", "a range of versions")
  }
  const options: ConnectionOptions = {
    ...(mode === "no-verify" ? { rejectUnauthorized: false } : {}),
    // this mode verifies the chain of certificates, but not the name
    ...(mode === "verify-ca" ? { checkServerIdentity: () => undefined } : {}),
    ...(minVersion === undefined ? {} : { minVersion }),
    ...(maxVersion === undefined ? {} : { maxVersion })
  }
  return Object.keys(options).length === 0 ? true : options
}

/** Returns the TLS files that a connection string names, and the password of the key. */
export const tlsFilesOf = ({ parameter, value }: ServerParts): TlsFiles | undefined => {
  const sendsNone = value("sslcertmode") === "disable"
  const sslrootcert = value("sslrootcert")
  const sslcert = sendsNone ? undefined : value("sslcert")
  const sslkey = sendsNone ? undefined : value("sslkey")
  const sslpassword = value("sslpassword")
  if ((sslcert === undefined) !== (sslkey === undefined)) {
    const missing = sslcert === undefined ? "sslcert" : "sslkey"
    throw new Invalid(parameter(missing), "missing", "both sslcert and sslkey, or none of them")
  }
  const files: TlsFiles = {
    // without a file Node trusts its bundled certificates
    sslrootcert: sslrootcert === "system" ? undefined : sslrootcert,
    sslcert,
    sslkey,
    sslcrl: value("sslcrl"),
    sslpassword: sslpassword === undefined ? undefined : Redacted.make(sslpassword)
  }
  return Object.values(files).some((file) => file !== undefined) ? files : undefined
}
