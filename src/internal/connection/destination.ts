/**
 * One host of a server, with all that a connect to it needs: certificates and keys are read, and the password is found.
 */

import type * as Net from "node:net"
import type { ConnectionOptions } from "node:tls"
import type { Endpoint, ServerConfig, TlsFiles } from "../../DatabaseConfig.js"
import { type ConnectReason, isMissingFile } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import { isSocket } from "../config/localHost.js"
import { findPassword } from "../config/passfile.js"
import { Secret } from "../protocol/secret.js"
import type { SocketTarget } from "../protocol/socket.js"
import type { ConnectFailure } from "./connectFailure.js"
import type { Login } from "./credentials.js"
import { PasswordFileError } from "./passwordFile.js"
import { isLasting, readTextFile } from "./textFile.js"

/** Opens a stream of the program; the returned function gives up. */
export type DialOptions = (done: (error: Error | undefined, stream: Net.Socket | undefined) => void) => () => void

/** A server at one of its hosts. */
export interface Destination extends ServerConfig {
  /** Opens a stream to it, instead of a socket to its address. */
  readonly dial?: DialOptions | undefined
}

/** Returns the address of a destination, or the path of its socket. */
export const addressOf = ({ address, host, port }: Destination): SocketTarget =>
  isSocket({ host }) ? { path: `${host}/.s.PGSQL.${port}` } : { host: address ?? host, port }

/** A destination and the credentials for it. */
interface Prepared {
  readonly destination: Destination
  readonly credentials: Login
}

/** Thrown where a file of the settings cannot be used. */
class Unprepared implements ConnectFailure {
  constructor(
    readonly reason: ConnectReason,
    readonly error: Error,
    readonly isPermanent = false
  ) {}
}

/** The bundles of certificates of cloud providers have some hundred kilobytes. */
const longestFile = 4_194_304

const readTls = async (parameter: string, file: string | undefined): Promise<string | undefined> => {
  if (file === undefined) return undefined
  try {
    return (await readTextFile(file, longestFile)).text
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new Unprepared("tls", new Error(`the file of ${parameter}, ${file}, cannot be used: ${why}`, { cause }))
  }
}

/** Adds what TLS files hold to Node's options. They are read each time, for certificates are replaced. */
const withFiles = async (
  ssl: true | ConnectionOptions,
  files: TlsFiles,
  passphrase: Secret | undefined
): Promise<ConnectionOptions> => {
  const [ca, cert, key, crl] = await Promise.all([
    readTls("sslrootcert", files.sslrootcert),
    readTls("sslcert", files.sslcert),
    readTls("sslkey", files.sslkey),
    readTls("sslcrl", files.sslcrl)
  ])
  return {
    ...(ssl === true ? {} : ssl),
    ...(ca === undefined ? {} : { ca }),
    ...(cert === undefined ? {} : { cert }),
    ...(key === undefined ? {} : { key }),
    ...(crl === undefined ? {} : { crl }),
    ...(passphrase === undefined ? {} : { passphrase: passphrase.reveal() })
  }
}

/** Finds the password of a host in a file of libpq's form; a file that is not there holds none. */
const passwordIn = async (file: string, server: Destination, username: string): Promise<string | undefined> => {
  const unusable = (why: string, isPermanent: boolean) =>
    new Unprepared("credentials", new PasswordFileError(file, why), isPermanent)
  const { database, host, port } = server
  const found = await readTextFile(file, longestFile).catch((cause: NodeJS.ErrnoException) => {
    if (isMissingFile(cause.code)) return undefined
    throw unusable(cause.message, isLasting(cause))
  })
  if (found === undefined) return undefined
  // Windows has no such permissions
  if (process.platform !== "win32" && (found.mode & 0o077) !== 0) {
    throw unusable("others may read it; make it yours alone (chmod 0600)", true)
  }
  return findPassword(found.text, { host, port, database, username })
}

/** Tells if a host needs anything that is read from a file. */
const needsFiles = ({ passfile, ssl, tlsFiles }: Destination, { password }: Login): boolean =>
  (tlsFiles !== undefined && ssl !== false) || (passfile !== undefined && password === undefined)

const readFiles = async (destination: Destination, credentials: Login): Promise<Prepared> => {
  const { passfile, ssl, tlsFiles } = destination
  const { password, tlsPassphrase, username } = credentials
  const [tls, found] = await Promise.all([
    tlsFiles === undefined || ssl === false ? ssl : withFiles(ssl, tlsFiles, tlsPassphrase),
    passfile === undefined || password !== undefined ? undefined : passwordIn(passfile, destination, username)
  ])
  return {
    destination: { ...destination, ssl: tls },
    credentials: found ? { ...credentials, password: new Secret(found) } : credentials
  }
}

/**
 * Prepares a connect to one host of a server, within `timeout` ms. Calls back once, at once where no file has to be read, unless the
 * returned function gives it up before.
 */
export const prepareDestination = (
  server: Destination,
  endpoint: Endpoint,
  credentials: Login,
  timeout: number,
  done: (outcome: Prepared | ConnectFailure) => void
): (() => void) => {
  const destination = { ...server, ...endpoint }
  if (!needsFiles(destination, credentials)) {
    done({ destination, credentials })
    return () => {}
  }
  let isOver = false
  const end = (outcome: Prepared | ConnectFailure) => {
    if (isOver) return
    isOver = true
    clock.clear(impatient)
    done(outcome)
  }
  const impatient = clock.timer(timeout, () =>
    end({ reason: "unresponsive", error: new Error("the files of its settings were not read in time") })
  )
  readFiles(destination, credentials).then(end, end)
  return () => {
    isOver = true
    clock.clear(impatient)
  }
}
