/**
 * The opening of a physical connection: the request of credentials, and the connect with them. If
 * the server refuses credentials of a provider, they are requested once more.
 */

import type { Endpoint, ServerConfig, SessionConfig, TargetSessionAttrs } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"
import { mayPass } from "./connectFailure.js"
import type { ConnectFailure, Connection, Owner } from "./connection.js"
import { connectToFirstHost } from "./connectToFirstHost.js"
import type { CredentialSource, OnLogin } from "./credentials.js"

/**
 * Callback for the host that has the role now; `undefined` if the name of the host is the same as
 * before, but leads to another server.
 */
export type OnMoved = (host: string | undefined, error: Error) => void

/** Locator of the host that has the required role, for a server with several hosts. */
export interface HostLocator {
  /**
   * Calls back with the host, or with a failure after `timeout` ms; in this call if the host is
   * known. The returned function cancels.
   */
  readonly locate: (
    timeout: number,
    callback: (failure: ConnectFailure | undefined, host: Endpoint | undefined) => void
  ) => () => void
  /** Reports that a connect to a located host has failed, so that the next call searches for it. */
  readonly doubt: (host: string) => void
  /** Checks if the role is known to be on another host. */
  readonly isElsewhere: (host: string) => boolean
  /** True if the role was lost, and is searched. */
  readonly isSearching: boolean
  /**
   * Calls `onMoved` when another host has the role, or the name of the host leads to another
   * server, until the returned function is called.
   */
  readonly follow: (onMoved: OnMoved) => () => void
}

export interface ConnectOptions {
  readonly server: ServerConfig
  /** Without a locator, the hosts of the server are tried one after the other. */
  readonly locator?: HostLocator | undefined
  readonly session: SessionConfig
  readonly credentials: CredentialSource
  readonly readOnly: boolean
  /** The timeout of all steps together, in ms. */
  readonly timeout: number
  /** The preferred role. If no host has it, a connection to another one is opened. */
  readonly preferred?: TargetSessionAttrs | undefined
}

/**
 * Opens a connection; the returned function cancels. Unless the opening is cancelled, `callback` is
 * called once, after this function has returned: with a failure, with a connection, or with both if
 * no host has the preferred role.
 */
export const connect = (
  options: ConnectOptions,
  owner: Owner,
  callback: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void
): (() => void) => {
  const { credentials, locator, preferred, readOnly, server, session } = options
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
      const attempt = (hosts: ReadonlyArray<Endpoint>, onFailure: (failure: ConnectFailure | undefined) => void) => {
        const timeout = Math.max(1, deadline - clock.now())
        const hostOptions = { timeout, readOnly, owner, credentials: login, preferred }
        cancel = connectToFirstHost({ ...destination, hosts }, session, hostOptions, (failure, connection) => {
          if (failure?.reason === "authentication" && credentials.isDynamic && !wasRefused) return start(true)
          if (connection === undefined) onFailure(failure)
          else callback(failure, connection)
        })
      }
      if (locator === undefined) return attempt(server.hosts, (failure) => callback(failure, undefined))
      const locate = (failed: { readonly host: string; readonly failure: ConnectFailure | undefined } | undefined) => {
        let isLocated = false
        const cancelLocate = locator.locate(Math.max(1, deadline - clock.now()), (failure, host) => {
          isLocated = true
          if (host === undefined) return callback(failure, undefined)
          // the search has found the same host again, so another attempt would fail in the same way
          if (host.name === failed?.host) return callback(failed.failure, undefined)
          attempt([host], (failure) => {
            if (failure !== undefined && !mayPass(failure) && failure.reason !== "protocol")
              return callback(failure, undefined)
            locator.doubt(host.name)
            if (failed === undefined && clock.now() < deadline) locate({ host: host.name, failure })
            else callback(failure, undefined)
          })
        })
        if (!isLocated) cancel = cancelLocate
      }
      locate(undefined)
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
