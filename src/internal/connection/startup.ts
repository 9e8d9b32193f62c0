/**
 * The login: opens a socket to the address of a server, and starts a session.
 */

import type { Socket } from "node:net"
import type { ProtocolLimits, SessionConfig } from "../../DatabaseConfig.js"
import { connectReason } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import { isByName } from "../protocol/parsersByName.js"
import { type Client, makeClient, type Notice } from "../protocol/pgDriver.js"
import { ProtocolViolation } from "../protocol/protocolViolation.js"
import { socketTo } from "../protocol/socket.js"
import { toError } from "../protocol/thrownValue.js"
import { settingsOf } from "../sql/timeouts.js"
import { watchAuthentication } from "./authenticationRules.js"
import type { ConnectFailure } from "./connectFailure.js"
import type { ProvidedCredentials } from "./credentials.js"
import { addressOf, type Destination, type Dial, intercepted } from "./destination.js"

/** The largest number of notices of a login that are kept: a server may send any number. */
const maxNotices = 20

/**
 * Returns the settings of a session at login. A pooler receives only the settings of the URL,
 * because it refuses settings that it cannot apply.
 */
const sessionOptions = (session: SessionConfig, readOnly: boolean): string => {
  const given = session.startupOptions ?? ""
  if (session.mode === "transactionPooler") return given
  // the last value of a setting counts
  const all = [given, ...settingsOf(session).map(([name, value]) => `-c ${name}=${value}`)].filter((one) => one !== "")
  if (readOnly) all.push("-c default_transaction_read_only=on")
  return all.join(" ")
}

/** Client that has logged in, and the reports of its server. */
interface LoggedIn {
  readonly client: Client
  readonly parameters: Map<string, string>
  readonly notices: ReadonlyArray<Notice>
}

/** Callback that receives a failure, or a client that has logged in. */
type OnLoggedIn = (failure: ConnectFailure | undefined, loggedIn: LoggedIn | undefined) => void

interface LoginOptions {
  readonly timeout: number
  readonly readOnly: boolean
  readonly credentials: ProvidedCredentials
}

/** The driver's message about a server that requests too many iterations of SCRAM. */
const tooManyIterations = /iteration count (\d+) exceeds/

/** The driver's message about a server that answers the request for TLS with neither yes nor no. */
const noAnswerToTls = "There was an error establishing an SSL connection"

/** Returns the failure of a connect, given its error. */
const failureOf = (error: Error): ConnectFailure => {
  if (error instanceof ProtocolViolation) return { reason: "protocol", error }
  if (error.message === noAnswerToTls) {
    const violation =
      "answered the request for TLS with neither yes nor no, so it is no PostgreSQL server, or cannot serve now"
    return { reason: "protocol", error: new ProtocolViolation(violation) }
  }
  const iterations = tooManyIterations.exec(error.message)?.[1]
  if (iterations !== undefined) {
    const message = `its SCRAM takes ${iterations} iterations, more than maxScramIterations allows: raise maxScramIterations if the server is yours`
    return { reason: "authentication", error: new Error(message, { cause: error }) }
  }
  // if all addresses of a host refuse, the error of Node has a code and no message
  const code = "code" in error && typeof error.code === "string" ? error.code : ""
  return { reason: connectReason(code, error.message), error: error.message === "" ? new Error(code) : error }
}

/**
 * Logs in; the returned function cancels. Unless the login is cancelled, `callback` is called once;
 * after a success, in the same turn as the last message of the server.
 */
export const startup = (
  server: Destination,
  session: SessionConfig,
  options: LoginOptions,
  callback: OnLoggedIn
): (() => void) => {
  if (server.dial === undefined)
    return begin(server, session, options, intercepted(server, socketTo(addressOf(server))), callback)
  return dial(server.dial, options.timeout, (failure, stream, left) => {
    if (stream !== undefined)
      return begin(server, session, { ...options, timeout: left }, intercepted(server, stream), callback)
    callback(failure, undefined)
    return nothing
  })
}

const nothing = () => {}

/**
 * Opens a stream of the program, and calls `onOpened` with the stream or a failure, and with the
 * remaining time. The returned function cancels the opening, or the step that `onOpened` has begun.
 */
const dial = (
  open: Dial,
  timeout: number,
  onOpened: (failure: ConnectFailure | undefined, stream: Socket | undefined, left: number) => () => void
): (() => void) => {
  const deadline = clock.now() + timeout
  let isOver = false
  let cancelNext = nothing
  const end = (failure: ConnectFailure | undefined, stream: Socket | undefined) => {
    clock.clear(timer)
    isOver = true
    cancelNext = onOpened(failure, stream, Math.max(1, deadline - clock.now()))
  }
  const timer = clock.timer(timeout, () => {
    cancelDial()
    end(
      { reason: "unreachable", error: new Error(`the socket was not opened within ${Math.round(timeout)} ms`) },
      undefined
    )
  })
  const cancelDial = open((error, stream) => {
    if (isOver) return void stream?.destroy()
    end(error === undefined ? undefined : { reason: "unreachable", error }, stream)
  })
  return () => {
    clock.clear(timer)
    if (!isOver) cancelDial()
    isOver = true
    cancelNext()
  }
}

/** Begins a login on a stream. */
const begin = (
  server: Destination,
  session: SessionConfig,
  options: LoginOptions,
  stream: Socket,
  callback: OnLoggedIn
): (() => void) => {
  let client: Client
  try {
    client = createClient(server, session, options, stream)
  } catch (cause) {
    stream.destroy()
    let isOver = false
    queueMicrotask(() => {
      if (!isOver) callback(failureOf(toError(cause)), undefined)
    })
    return () => {
      isOver = true
    }
  }
  return logIn(client, server, options.timeout, session.limits, callback)
}

/** Creates the client, or throws. */
const createClient = (
  server: Destination,
  session: SessionConfig,
  { credentials, readOnly }: LoginOptions,
  stream: Socket
): Client => {
  const { password, username } = credentials
  return makeClient({
    stream,
    host: server.host,
    tls: server,
    bindsChannel: server.bindsChannel,
    database: server.database,
    user: username,
    password: password?.reveal(),
    ssl: server.ssl,
    applicationName: session.applicationName,
    options: sessionOptions(session, readOnly),
    keepAlive: session.keepAlive,
    types: session.types === undefined || isByName(session.types) ? undefined : session.types,
    limits: session.limits
  })
}

/** Connects and waits for the session; the returned function cancels. */
const logIn = (
  client: Client,
  server: Destination,
  timeout: number,
  limits: ProtocolLimits,
  callback: OnLoggedIn
): (() => void) => {
  const parameters = new Map<string, string>()
  const notices: Array<Notice> = []
  const onNotice = (notice: Notice) => {
    if (notices.length < maxNotices) notices.push(notice)
  }
  client.on("notice", onNotice)
  /**
   * The length of the reported settings, in characters. They are kept as long as the connection.
   */
  let parameterBytes = 0
  let isOver = false
  let isAccepted = false
  const settle = () => {
    isOver = true
    clock.clear(timer)
    client.off("notice", onNotice)
  }
  const fail = (failure: ConnectFailure) => {
    if (isOver) return
    settle()
    client.connection.stream.destroy()
    callback(failure, undefined)
  }
  const timer = clock.timer(timeout, () =>
    fail({
      reason: isAccepted ? "unresponsive" : "unreachable",
      error: new Error(`no answer within ${Math.round(timeout)} ms`)
    })
  )
  client.connection.on("parameterStatus", (message: { parameterName: string; parameterValue: string }) => {
    const { parameterName: name, parameterValue: value } = message
    parameterBytes += value.length + (parameters.has(name) ? -(parameters.get(name)?.length ?? 0) : name.length)
    if (parameterBytes > limits.maxStartupBytes) {
      const { maxStartupBytes } = limits
      client.connection.stream.destroy(new ProtocolViolation(`reported more than maxStartupBytes, ${maxStartupBytes}`))
    } else parameters.set(name, value)
  })
  client.connection.once("connect", () => {
    isAccepted = true
  })
  watchAuthentication(client.connection, server, (error) => fail({ reason: "authentication", error }))
  // after the login the connection adds listeners of its own; until then this one receives the
  // errors
  client.on("error", (error: Error) => fail(failureOf(error)))
  const onConnected = (error: Error | null | undefined) => {
    if (isOver) return
    if (error) return fail(failureOf(error))
    settle()
    callback(undefined, { client, notices, parameters })
  }
  try {
    client.connect(onConnected)
  } catch (cause) {
    // the address is invalid; in a microtask, because the callback must not be called before this
    // function has returned
    queueMicrotask(() => onConnected(toError(cause)))
  }
  return () => {
    if (isOver) return
    settle()
    client.connection.stream.destroy()
  }
}
