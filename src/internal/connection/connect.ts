/**
 * The opening of a physical connection: the request of credentials, and the connect with them. If
 * the server refuses credentials of a provider, they are requested once more.
 */

import type { ServerConfig, SessionConfig } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"
import type { ConnectFailure, Connection, Owner } from "./connection.js"
import { connectToFirstHost } from "./connectToFirstHost.js"
import type { CredentialSource, OnLogin } from "./credentials.js"

export interface ConnectOptions {
  readonly server: ServerConfig
  readonly session: SessionConfig
  readonly credentials: CredentialSource
  readonly readOnly: boolean
  /** The timeout of all steps together, in ms. */
  readonly timeout: number
}

/**
 * Opens a connection; the returned function cancels. Unless the opening is cancelled, `callback` is
 * called once, after this function has returned.
 */
export const connect = (
  options: ConnectOptions,
  owner: Owner,
  callback: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void
): (() => void) => {
  const { credentials, readOnly, server, session } = options
  const destination = { ...server, dial: credentials.dial }
  const deadline = clock.now() + options.timeout
  let isCancelled = false
  let cancel = () => {
    isCancelled = true
  }
  const start = (wasRefused: boolean) => {
    const timer = clock.timer(deadline - clock.now(), () => {
      cancel()
      const error = new Error(`the provider of credentials returned none within ${options.timeout} ms`)
      callback({ reason: "credentials", error }, undefined)
    })
    const onLogin: OnLogin = (login, failure) => {
      clock.clear(timer)
      if (login === undefined) return callback(failure, undefined)
      // credentials from before a rotation are not tried
      if (login.generation < credentials.generation) return start(wasRefused)
      const timeout = Math.max(1, deadline - clock.now())
      const hostOptions = { timeout, readOnly, owner, credentials: login }
      cancel = connectToFirstHost(destination, session, hostOptions, (failure, connection) => {
        if (failure?.reason === "authentication" && credentials.isDynamic && !wasRefused) return start(true)
        callback(failure, connection)
      })
    }
    // the source may answer within this call; `onLogin` has then set `cancel` already
    let isAnswered = false
    const cancelCredentials = credentials.request((login, failure) => {
      isAnswered = true
      onLogin(login, failure)
    })
    if (isAnswered) return
    cancel = () => {
      clock.clear(timer)
      cancelCredentials()
    }
  }
  // a provider may fail at once, and the callback must not be called before this function returns
  queueMicrotask(() => {
    if (!isCancelled) start(false)
  })
  return () => cancel()
}
