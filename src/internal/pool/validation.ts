/** Validation before a checkout: a ping if the connection may be dead, then `onCheckout`. */

import type { PoolConfig, SessionConfig } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { Connections } from "./connections.js"
import type { ConnectionTask, RunningTasks } from "./lifecycleTasks.js"

/** The longest timeout of a ping, in ms. */
const maxPingTimeout = 1000

const ping: ConnectionTask = (connection, callback) => {
  connection.ping((failure) => callback(failure?.error))
  return () => {}
}

/** The result of a validation. */
export type ValidationResult =
  | { readonly _tag: "valid" }
  /** The connection did not answer the ping, or was retired meanwhile; it is closed. */
  | { readonly _tag: "closed" }
  /** `onCheckout` has failed; the connection must be closed. */
  | { readonly _tag: "vetoed"; readonly error: Error }

const valid: ValidationResult = { _tag: "valid" }
const closed: ValidationResult = { _tag: "closed" }

export class Validation {
  /** The number of connections that are being validated for a waiter. */
  count = 0
  /** The timeout of a ping, in ms. */
  private readonly pingTimeout: number

  constructor(
    private readonly connections: Connections,
    private readonly tasks: RunningTasks,
    private readonly config: PoolConfig,
    session: SessionConfig,
    private readonly onCheckout: ConnectionTask | undefined
  ) {
    // a pooler answers only when it has a free connection to the server, which may take longer
    this.pingTimeout =
      session.mode === "session" ? Math.min(config.connectTimeout, maxPingTimeout) : config.connectTimeout
  }

  /** Checks if a connection can be assigned without a ping and without `onCheckout`. */
  isReady(connection: Connection, now: number, isNew = false): boolean {
    return this.onCheckout === undefined && (isNew || !this.connections.isSuspect(connection, now))
  }

  /** Pings a connection if it may be dead, then runs `onCheckout`. */
  validate(connection: Connection, now: number, isNew: boolean, callback: (result: ValidationResult) => void): void {
    this.count++
    const finish = (result: ValidationResult) => {
      this.count--
      callback(result)
    }
    const runOnCheckout = () => {
      if (this.onCheckout === undefined) return finish(this.resultOf(connection))
      this.tasks.run(this.onCheckout, connection, this.config.connectTimeout, (error) =>
        finish(error === undefined ? this.resultOf(connection) : { _tag: "vetoed", error })
      )
    }
    if (isNew || !this.connections.isSuspect(connection, now)) return runOnCheckout()
    this.tasks.run(ping, connection, this.pingTimeout, (failure) => {
      if (failure === undefined) return runOnCheckout()
      // a close on request does not show that other connections are dead
      if (connection.broken === undefined || connection.broken === "broken") this.connections.discardSilent(now)
      connection.destroy("invalid")
      finish(closed)
    })
  }

  /** Returns the result for a validated connection, and closes it if its retirement is due. */
  private resultOf(connection: Connection): ValidationResult {
    if (connection.broken !== undefined) return closed
    const reason = this.connections.retirementReason(connection, clock.now())
    if (reason === undefined) return valid
    connection.end(reason)
    return closed
  }
}
