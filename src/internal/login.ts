/**
 * From a server's address to a session that has logged in.
 */
import * as Redacted from "effect/Redacted"
import type { Credentials, ServerConfig, SessionConfig } from "../DatabaseConfig.js"
import { type ConnectReason, connectReason } from "../SqlState.js"
import { type Client, makeClient, toError } from "./driver.js"
import { timer } from "./later.js"
import { settings } from "./limits.js"
import { isByName } from "./protocol/typeNames.js"

/**
 * Why a connect failed, with the driver's words.
 *
 * @since 0.1.0
 * @category models
 */
export interface ConnectFailure {
  readonly reason: ConnectReason
  readonly error: Error
}

/** What the session is told at login. A pooler would refuse it, for it could not keep to it. */
const sessionOptions = (session: SessionConfig, readOnly: boolean): string => {
  if (session.mode === "transactionPooler") return ""
  const all = settings(session).map(([name, value]) => `-c ${name}=${value}`)
  if (readOnly) all.push("-c default_transaction_read_only=on")
  return all.join(" ")
}

/** A client that has logged in, and what its server has reported. */
interface LoggedIn {
  readonly client: Client
  readonly parameters: Map<string, string>
}

/** Called with one of the two. */
type Done = (failure: ConnectFailure | undefined, loggedIn: LoggedIn | undefined) => void

interface LoginOptions {
  readonly timeout: number
  readonly readOnly: boolean
  readonly credentials: Credentials
}

/** Why a connect failed, in the words of an error. */
const failureOf = (error: Error): ConnectFailure => {
  // a refusal of all the addresses of a host comes as one error with a code and no words
  const code = "code" in error && typeof error.code === "string" ? error.code : ""
  return { reason: connectReason(code, error.message), error: error.message === "" ? new Error(code) : error }
}

/**
 * Logs in; the returned function gives up. `done` is called once, in the same turn as the server's last word and not before this function
 * has returned, unless it was given up.
 */
export const login = (
  server: ServerConfig,
  session: SessionConfig,
  options: LoginOptions,
  done: Done
): (() => void) => {
  let client: Client
  try {
    client = open(server, session, options)
  } catch (cause) {
    let isOver = false
    queueMicrotask(() => {
      if (!isOver) done(failureOf(toError(cause)), undefined)
    })
    return () => {
      isOver = true
    }
  }
  return follow(client, options.timeout, done)
}

/** Makes the client; throws where that cannot be done. */
const open = (server: ServerConfig, session: SessionConfig, { credentials, readOnly }: LoginOptions): Client => {
  const { password, username } = credentials
  return makeClient({
    host: server.host,
    port: server.port,
    database: server.database,
    user: username,
    password: password === undefined ? undefined : Redacted.value(password),
    ssl: server.ssl,
    applicationName: session.applicationName,
    options: sessionOptions(session, readOnly),
    keepAlive: session.keepAlive,
    types: session.types === undefined || isByName(session.types) ? undefined : session.types
  })
}

/** Connects and waits for the session; the returned function gives up. */
const follow = (client: Client, timeout: number, done: Done): (() => void) => {
  const parameters = new Map<string, string>()
  let settled = false
  let accepted = false
  const settle = () => {
    settled = true
    clearTimeout(impatient)
  }
  const fail = (failure: ConnectFailure) => {
    if (settled) return
    settle()
    client.connection.stream.destroy()
    done(failure, undefined)
  }
  const impatient = timer(timeout, () =>
    fail({
      reason: accepted ? "unresponsive" : "unreachable",
      error: new Error(`no answer within ${Math.round(timeout)} ms`)
    })
  )
  client.connection.on("parameterStatus", (message: { parameterName: string; parameterValue: string }) => {
    parameters.set(message.parameterName, message.parameterValue)
  })
  client.connection.once("connect", () => {
    accepted = true
  })
  // after the login errors go to the connection's own listeners as well; none may be without a listener
  client.on("error", (error: Error) => fail(failureOf(error)))
  const connected = (error: Error | null | undefined) => {
    if (settled) return
    if (error) return fail(failureOf(error))
    settle()
    done(undefined, { client, parameters })
  }
  try {
    client.connect(connected)
  } catch (cause) {
    // an address that is none; not before this function has returned
    queueMicrotask(() => connected(toError(cause)))
  }
  return () => {
    if (settled) return
    settle()
    client.connection.stream.destroy()
  }
}
