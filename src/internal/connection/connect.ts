/**
 * Opens a physical connection: asks for credentials, connects, and where the server refuses them asks once more.
 */

import * as Cause from "effect/Cause"
import * as Redacted from "effect/Redacted"
import type { Connector, ServerConfig, SessionConfig } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"
import { toError } from "../protocol/pgDriver.js"
import { connectedStream } from "../protocol/socket.js"
import type { ConnectFailure, Connection, Owner } from "./connection.js"
import { type CredentialSource, type Login, PasswordFileError } from "./credentials.js"
import type { DialOptions } from "./destination.js"
import { connectFirst } from "./hosts.js"
import { isLasting } from "./textFile.js"

export interface ConnectOptions {
  readonly server: ServerConfig
  readonly session: SessionConfig
  readonly credentials: CredentialSource
  readonly readOnly: boolean
  /** How long it may take all in all, in ms. */
  readonly timeout: number
}

/** Opens streams by an effect of the program. Its words are for the program alone, as those of a provider of credentials. */
const dialBy =
  (connector: Connector, credentials: CredentialSource): DialOptions =>
  (done) =>
    credentials.run(connector, (stream, cause) => {
      if (cause !== undefined) {
        const error = Cause.isCause(cause) ? Cause.squash(cause) : cause
        return done(new Error("the effect that opens the socket failed", { cause: Redacted.make(error) }), undefined)
      }
      try {
        done(undefined, connectedStream(stream))
      } catch (cause) {
        done(toError(cause), undefined)
      }
    })

/** Calls back once, not before it has returned, unless it was given up before by the function that it returns. */
export const connect = (
  opening: ConnectOptions,
  owner: Owner,
  done: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void
): (() => void) => {
  const { credentials, readOnly, server, session } = opening
  const destination = { ...server, dial: server.socket && dialBy(server.socket, credentials) }
  const deadline = clock.now() + opening.timeout
  let isOver = false
  let giveUp = () => {
    isOver = true
  }
  const start = (wasRefused: boolean) => {
    const fail = (error: Error, isPermanent = false) => done({ reason: "credentials", error, isPermanent }, undefined)
    const impatient = clock.timer(deadline - clock.now(), () => {
      giveUp()
      fail(new Error(`the provider of credentials gave none within ${opening.timeout} ms`))
    })
    const answer = (login: Login | undefined, cause: unknown) => {
      clock.clear(impatient)
      if (login === undefined) {
        const error = Cause.isCause(cause) ? Cause.squash(cause) : cause
        // a provider's own words may hold what is secret: they are there for a program, and no log that renders causes shows them
        if (error instanceof PasswordFileError) return fail(error, isLasting(error.cause))
        const why = credentials.isAsked
          ? "the provider of credentials failed"
          : "the user or the password of the settings is no text"
        return fail(new Error(why, { cause: Redacted.make(error) }), !credentials.isAsked)
      }
      // what was asked for before a rotation is not even tried
      if (login.generation < credentials.generation) return start(wasRefused)
      const timeout = Math.max(1, deadline - clock.now())
      const options = { timeout, readOnly, owner, credentials: login }
      giveUp = connectFirst(destination, session, options, (failure, connection) => {
        if (failure?.reason === "authentication" && credentials.isAsked && !wasRefused) return start(true)
        done(failure, connection)
      })
    }
    // an answer may come at once, and has a way to give up of its own by then
    let isAnswered = false
    const stopAsking = credentials.ask((login, cause) => {
      isAnswered = true
      answer(login, cause)
    })
    if (isAnswered) return
    giveUp = () => {
      clock.clear(impatient)
      stopAsking()
    }
  }
  // a provider may fail at once
  queueMicrotask(() => {
    if (!isOver) start(false)
  })
  return () => giveUp()
}
