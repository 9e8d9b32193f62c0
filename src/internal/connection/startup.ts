/**
 * From a server's address to a session that has logged in.
 */

import type { Socket } from "node:net"
import type { SessionConfig } from "../../DatabaseConfig.js"
import { connectReason } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import { type Client, makeClient, type Notice, toError } from "../protocol/pgDriver.js"
import { type ProtocolLimits, ProtocolViolation } from "../protocol/protocolLimits.js"
import { socketTo } from "../protocol/socket.js"
import { isByName } from "../protocol/typeNames.js"
import { settings } from "../sql/settings.js"
import { watchAuthentication } from "./authentication.js"
import type { ConnectFailure } from "./connectFailure.js"
import type { ProvidedCredentials } from "./credentials.js"
import { addressOf, type Destination, type DialOptions } from "./destination.js"

/** How many notices of a login are passed on: a server may send any number. */
const mostNotices = 20

/** Returns the settings of a session at login. A pooler refuses ours, because it cannot keep to them, and gets those of the URL only. */
const sessionOptions = (session: SessionConfig, readOnly: boolean): string => {
  const given = session.startupOptions ?? ""
  if (session.mode === "transactionPooler") return given
  // the last one counts
  const all = [given, ...settings(session).map(([name, value]) => `-c ${name}=${value}`)].filter((one) => one !== "")
  if (readOnly) all.push("-c default_transaction_read_only=on")
  return all.join(" ")
}

/** A client that has logged in, and what its server has reported. */
interface LoggedIn {
  readonly client: Client
  readonly parameters: Map<string, string>
  readonly notices: ReadonlyArray<Notice>
}

/** Called with one of the two. */
type Done = (failure: ConnectFailure | undefined, loggedIn: LoggedIn | undefined) => void

interface LoginOptions {
  readonly timeout: number
  readonly readOnly: boolean
  readonly credentials: ProvidedCredentials
}

/** The driver's words for a server that asks for more iterations than it may. */
const tooManyIterations = /iteration count (\d+) exceeds/

/** The driver's words for a server that answers the request for TLS with neither yes nor no. */
const noAnswerToTls = "There was an error establishing an SSL connection"

/** Why a connect failed, in the words of an error. */
const failureOf = (error: Error): ConnectFailure => {
  if (error instanceof ProtocolViolation) return { reason: "protocol", error }
  if (error.message === noAnswerToTls) {
    const what =
      "answered the request for TLS with neither yes nor no, so it is no PostgreSQL server, or cannot serve now"
    return { reason: "protocol", error: new ProtocolViolation(what) }
  }
  const asked = tooManyIterations.exec(error.message)?.[1]
  if (asked !== undefined) {
    const words = `its SCRAM takes ${asked} iterations, more than maxScramIterations allows: raise that, if the server is yours`
    return { reason: "authentication", error: new Error(words, { cause: error }) }
  }
  // a refusal of all the addresses of a host comes as one error with a code and no words
  const code = "code" in error && typeof error.code === "string" ? error.code : ""
  return { reason: connectReason(code, error.message), error: error.message === "" ? new Error(code) : error }
}

/**
 * Logs in; the returned function gives up. `done` is called once, in the same turn as the server's last word and not before this function
 * has returned, unless it was given up.
 */
export const startup = (
  server: Destination,
  session: SessionConfig,
  options: LoginOptions,
  done: Done
): (() => void) => {
  if (server.dial === undefined) return begin(server, session, options, socketTo(addressOf(server)), done)
  return dial(server.dial, options.timeout, (failure, stream, left) => {
    if (stream !== undefined) return begin(server, session, { ...options, timeout: left }, stream, done)
    done(failure, undefined)
    return nothing
  })
}

const nothing = () => {}

/** Waits for a stream of the program, and hands it on with the time that is left; the returned function gives up whatever is under way. */
const dial = (
  open: DialOptions,
  timeout: number,
  opened: (failure: ConnectFailure | undefined, stream: Socket | undefined, left: number) => () => void
): (() => void) => {
  const deadline = clock.now() + timeout
  let isOver = false
  let giveUp = nothing
  const end = (failure: ConnectFailure | undefined, stream: Socket | undefined) => {
    clock.clear(impatient)
    isOver = true
    giveUp = opened(failure, stream, Math.max(1, deadline - clock.now()))
  }
  const impatient = clock.timer(timeout, () => {
    stop()
    end(
      { reason: "unreachable", error: new Error(`the socket was not opened within ${Math.round(timeout)} ms`) },
      undefined
    )
  })
  const stop = open((error, stream) => {
    if (isOver) return void stream?.destroy()
    end(error === undefined ? undefined : { reason: "unreachable", error }, stream)
  })
  return () => {
    clock.clear(impatient)
    if (!isOver) stop()
    isOver = true
    giveUp()
  }
}

/** Begins a login on a stream. */
const begin = (
  server: Destination,
  session: SessionConfig,
  options: LoginOptions,
  stream: Socket,
  done: Done
): (() => void) => {
  let client: Client
  try {
    client = open(server, session, options, stream)
  } catch (cause) {
    stream.destroy()
    let isOver = false
    queueMicrotask(() => {
      if (!isOver) done(failureOf(toError(cause)), undefined)
    })
    return () => {
      isOver = true
    }
  }
  return follow(client, server, options.timeout, session.limits, done)
}

/** Makes the client; throws where that cannot be done. */
const open = (
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

/** Connects and waits for the session; the returned function gives up. */
const follow = (
  client: Client,
  server: Destination,
  timeout: number,
  limits: ProtocolLimits,
  done: Done
): (() => void) => {
  const parameters = new Map<string, string>()
  const notices: Array<Notice> = []
  const hear = (notice: Notice) => {
    if (notices.length < mostNotices) notices.push(notice)
  }
  client.on("notice", hear)
  /** Length of the settings that the server has reported; they are kept as long as the connection. */
  let reported = 0
  let settled = false
  let accepted = false
  const settle = () => {
    settled = true
    clock.clear(impatient)
    client.off("notice", hear)
  }
  const fail = (failure: ConnectFailure) => {
    if (settled) return
    settle()
    client.connection.stream.destroy()
    done(failure, undefined)
  }
  const impatient = clock.timer(timeout, () =>
    fail({
      reason: accepted ? "unresponsive" : "unreachable",
      error: new Error(`no answer within ${Math.round(timeout)} ms`)
    })
  )
  client.connection.on("parameterStatus", (message: { parameterName: string; parameterValue: string }) => {
    const { parameterName: name, parameterValue: value } = message
    reported += value.length + (parameters.has(name) ? -(parameters.get(name)?.length ?? 0) : name.length)
    if (reported > limits.maxStartupBytes) {
      const { maxStartupBytes } = limits
      client.connection.stream.destroy(new ProtocolViolation(`reported more than maxStartupBytes, ${maxStartupBytes}`))
    } else parameters.set(name, value)
  })
  client.connection.once("connect", () => {
    accepted = true
  })
  watchAuthentication(client.connection, server, (error) => fail({ reason: "authentication", error }))
  // after the login errors go to the connection's own listeners as well; none may be without a listener
  client.on("error", (error: Error) => fail(failureOf(error)))
  const connected = (error: Error | null | undefined) => {
    if (settled) return
    if (error) return fail(failureOf(error))
    settle()
    done(undefined, { client, notices, parameters })
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
