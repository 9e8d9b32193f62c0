/**
 * The destination of a connect: one host of a server, with the certificates, keys and password that
 * are read from their files.
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
import { thrownMessage } from "../protocol/thrownValue.js"
import type { ConnectFailure } from "./connectFailure.js"
import type { Login } from "./credentials.js"
import { PasswordFileError } from "./passwordFile.js"
import { isLasting, readTextFile } from "./textFile.js"

/** Function that opens a stream of the program; the returned function cancels. */
export type Dial = (callback: (error: Error | undefined, stream: Net.Socket | undefined) => void) => () => void

/** Server at one of its hosts. */
export interface Destination extends ServerConfig {
  /** Opens a stream to the server in place of a socket. */
  readonly dial?: Dial | undefined
}

/** Returns the address of a destination, or the path of its socket. */
export const addressOf = ({ address, host, port }: Destination): SocketTarget =>
  isSocket({ host }) ? { path: `${host}/.s.PGSQL.${port}` } : { host: address ?? host, port }

/** Returns the socket to use in place of a socket to a destination. */
export const intercepted = ({ intercept, name }: Destination, socket: Net.Socket): Net.Socket =>
  intercept === undefined ? socket : intercept(socket, name)

/** Destination with credentials. */
interface PreparedDestination {
  readonly destination: Destination
  readonly credentials: Login
}

/** Exception for a file of the settings that cannot be used. */
class UnusableFile implements ConnectFailure {
  constructor(
    readonly reason: ConnectReason,
    readonly error: Error,
    readonly isPermanent = false
  ) {}
}

/**
 * The largest file, in bytes. Certificate bundles of cloud providers have some hundred kilobytes.
 */
const maxFileSize = 4_194_304

const readTls = async (parameter: string, file: string | undefined): Promise<string | undefined> => {
  if (file === undefined) return undefined
  try {
    return (await readTextFile(file, maxFileSize)).text
  } catch (cause) {
    const reason = thrownMessage(cause)
    throw new UnusableFile("tls", new Error(`the file of ${parameter}, ${file}, cannot be used: ${reason}`, { cause }))
  }
}

/**
 * Adds the contents of TLS files to Node's options. The files are read for each connect, because
 * they may be replaced.
 */
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

/** Finds the password of a host in a password file of libpq, if the file exists. */
const passwordIn = async (file: string, server: Destination, username: string): Promise<string | undefined> => {
  const unusable = (reason: string, isPermanent: boolean) =>
    new UnusableFile("credentials", new PasswordFileError(file, reason), isPermanent)
  const { database, host, port } = server
  const found = await readTextFile(file, maxFileSize).catch((cause: NodeJS.ErrnoException) => {
    if (isMissingFile(cause.code)) return undefined
    throw unusable(cause.message, isLasting(cause))
  })
  if (found === undefined) return undefined
  // Windows has no permissions of this kind
  if (process.platform !== "win32" && (found.mode & 0o077) !== 0) {
    throw unusable("other users may read it: restrict its permissions (chmod 0600)", true)
  }
  return findPassword(found.text, { host, port, database, username })
}

/** Checks if a file must be read before a connect. */
const needsFiles = ({ passfile, ssl, tlsFiles }: Destination, { password }: Login): boolean =>
  (tlsFiles !== undefined && ssl !== false) || (passfile !== undefined && password === undefined)

const readFiles = async (destination: Destination, credentials: Login): Promise<PreparedDestination> => {
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
 * Prepares a connect to one host of a server, within `timeout` ms. Calls back once, unless the
 * returned function cancels. If no file is needed, it calls back before it returns.
 */
export const prepareDestination = (
  server: Destination,
  endpoint: Endpoint,
  credentials: Login,
  timeout: number,
  callback: (result: PreparedDestination | ConnectFailure) => void
): (() => void) => {
  const destination = { ...server, ...endpoint }
  if (!needsFiles(destination, credentials)) {
    callback({ destination, credentials })
    return () => {}
  }
  let isOver = false
  const end = (result: PreparedDestination | ConnectFailure) => {
    if (isOver) return
    isOver = true
    clock.clear(timer)
    callback(result)
  }
  const timer = clock.timer(timeout, () =>
    end({ reason: "unresponsive", error: new Error("the files of its settings were not read in time") })
  )
  readFiles(destination, credentials).then(end, end)
  return () => {
    isOver = true
    clock.clear(timer)
  }
}
