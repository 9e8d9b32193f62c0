/**
 * From a server's address to a session that has logged in.
 */
import * as Redacted from "effect/Redacted"
import type { Credentials, ServerConfig, SessionConfig } from "../DatabaseConfig.js"
import { type ConnectReason, connectReason } from "../SqlState.js"
import { type Client, makeClient, type Notice } from "./driver.js"
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

/** How many notices of a login are passed on: a server may send any number. */
const mostNotices = 20

/** What the session is told at login. A pooler would refuse it, for it could not keep to it. */
const sessionOptions = (session: SessionConfig, readOnly: boolean): string => {
  if (session.mode === "transactionPooler") return ""
  const all = settings(session).map(([name, value]) => `-c ${name}=${value}`)
  if (readOnly) all.push("-c default_transaction_read_only=on")
  return all.join(" ")
}

/** Logs in; the returned function gives up. `done` is called once, in the same turn as the server's last word, unless it was given up. */
export const login = (
  server: ServerConfig,
  session: SessionConfig,
  options: { readonly timeout: number; readonly readOnly: boolean; readonly credentials: Credentials },
  done: (
    failure: ConnectFailure | undefined,
    client: Client,
    parameters: Map<string, string>,
    notices: ReadonlyArray<Notice>
  ) => void
): (() => void) => {
  const { password, username } = options.credentials
  const client = makeClient({
    host: server.host,
    port: server.port,
    database: server.database,
    user: username,
    password: password === undefined ? undefined : Redacted.value(password),
    ssl: server.ssl,
    application_name: session.applicationName,
    options: sessionOptions(session, options.readOnly),
    keepAlive: session.keepAlive !== undefined,
    keepAliveInitialDelayMillis: session.keepAlive,
    ...(session.types === undefined || isByName(session.types) ? {} : { types: session.types })
  })
  const parameters = new Map<string, string>()
  const notices: Array<Notice> = []
  const hear = (notice: Notice) => {
    if (notices.length < mostNotices) notices.push(notice)
  }
  client.on("notice", hear)
  let settled = false
  let accepted = false
  const settle = () => {
    settled = true
    clearTimeout(impatient)
    client.off("notice", hear)
  }
  const fail = (reason: ConnectReason, error: Error) => {
    if (settled) return
    settle()
    client.connection.stream.destroy()
    done({ reason, error }, client, parameters, notices)
  }
  const impatient = timer(options.timeout, () =>
    fail(accepted ? "unresponsive" : "unreachable", new Error(`no answer within ${Math.round(options.timeout)} ms`))
  )
  client.connection.on("parameterStatus", (message: { parameterName: string; parameterValue: string }) => {
    parameters.set(message.parameterName, message.parameterValue)
  })
  client.connection.once("connect", () => {
    accepted = true
  })
  // errors after the first go to the connection's own listeners; none may be without a listener
  client.on("error", () => {})
  client.connect((error) => {
    if (settled) return
    if (error) {
      // a refusal of all the addresses of a host comes as one error with a code and no words
      const code = "code" in error && typeof error.code === "string" ? error.code : ""
      if (password === undefined && connectReason(code, error.message) === "authentication") {
        return fail("authentication", new Error("it asks for a password, and none was given", { cause: error }))
      }
      return fail(connectReason(code, error.message), error.message === "" ? new Error(code) : error)
    }
    settle()
    done(undefined, client, parameters, notices)
  })
  return () => {
    if (settled) return
    settle()
    client.connection.stream.destroy()
  }
}
