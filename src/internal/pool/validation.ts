/**
 * Validation before a checkout: a connection that may be dead is pinged, then `onCheckout` runs.
 */

import type { PoolConfig, SessionConfig } from "../../DatabaseConfig.js"
import type { Connection } from "../connection/connection.js"
import type { Connections } from "./connections.js"
import type { ConnectionTasks, SessionTask } from "./sessionTasks.js"

/** The longest timeout of a ping, in ms. */
const maxPingTimeout = 1000

/** Pings the server. */
const ping: SessionTask = (connection, callback) => {
  connection.ping((failure) => callback(failure?.error))
  return () => {}
}

/** The result of a validation. */
export type ValidationResult =
  | { readonly _tag: "valid" }
  /** The connection did not answer the ping. */
  | { readonly _tag: "dead" }
  | { readonly _tag: "vetoed"; readonly error: Error }

const valid: ValidationResult = { _tag: "valid" }
const dead: ValidationResult = { _tag: "dead" }

export class Validation {
  /** The timeout of a ping, in ms. */
  private readonly pingTimeout: number

  constructor(
    private readonly connections: Connections,
    private readonly tasks: ConnectionTasks,
    private readonly config: PoolConfig,
    session: SessionConfig,
    private readonly onCheckout: SessionTask | undefined
  ) {
    // a pooler answers only when it has a free server connection
    this.pingTimeout =
      session.mode === "session" ? Math.min(config.connectTimeout, maxPingTimeout) : config.connectTimeout
  }

  /** Checks if a connection can be assigned without a ping and without `onCheckout`. */
  isReady(connection: Connection, now: number, isNew = false): boolean {
    return this.onCheckout === undefined && (isNew || !this.connections.isSuspect(connection, now))
  }

  validate(connection: Connection, now: number, isNew: boolean, callback: (result: ValidationResult) => void): void {
    const runOnCheckout = () => {
      if (this.onCheckout === undefined) return callback(valid)
      this.tasks.run(this.onCheckout, connection, this.config.connectTimeout, (error) =>
        callback(error === undefined ? valid : { _tag: "vetoed", error })
      )
    }
    if (isNew || !this.connections.isSuspect(connection, now)) return runOnCheckout()
    this.tasks.run(ping, connection, this.pingTimeout, (failure) =>
      failure === undefined ? runOnCheckout() : callback(dead)
    )
  }
}
