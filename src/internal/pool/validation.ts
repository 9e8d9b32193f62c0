/**
 * Whether a connection may be handed out: one that may be dead is asked for a sign of life, then what the settings ask for is done.
 */

import type { PoolConfig, SessionConfig } from "../../DatabaseConfig.js"
import type { Connection } from "../connection/connection.js"
import type { Connections } from "./connections.js"
import type { ConnectionTasks, SessionTask } from "./connectionTasks.js"

/** How long a connection may take for a sign of life, in ms. */
const longestPing = 1000

/** Asks for a sign of life. */
const ping: SessionTask = (connection, done) => {
  connection.ping((failure) => done(failure?.error))
  return () => {}
}

/** What a look at a connection has shown. */
export type ValidationResult =
  | { readonly _tag: "fit" }
  /** It gave no sign of life. */
  | { readonly _tag: "dead" }
  | { readonly _tag: "vetoed"; readonly error: Error }

const fit: ValidationResult = { _tag: "fit" }
const dead: ValidationResult = { _tag: "dead" }

export class Validation {
  /** How long it may take for a sign of life, in ms. */
  private readonly patience: number

  constructor(
    private readonly stock: Connections,
    private readonly tasks: ConnectionTasks,
    private readonly pool: PoolConfig,
    session: SessionConfig,
    private readonly onCheckout: SessionTask | undefined
  ) {
    // a pooler answers when it has a server free
    this.patience = session.mode === "session" ? Math.min(pool.connectTimeout, longestPing) : pool.connectTimeout
  }

  /** Whether nothing has to be done first. */
  isKnown(connection: Connection, now: number, isNew = false): boolean {
    return this.onCheckout === undefined && (isNew || !this.stock.isSuspect(connection, now))
  }

  look(connection: Connection, now: number, isNew: boolean, done: (verdict: ValidationResult) => void): void {
    const admit = () => {
      if (this.onCheckout === undefined) return done(fit)
      this.tasks.perform(this.onCheckout, connection, this.pool.connectTimeout, (error) =>
        done(error === undefined ? fit : { _tag: "vetoed", error })
      )
    }
    if (isNew || !this.stock.isSuspect(connection, now)) return admit()
    this.tasks.perform(ping, connection, this.patience, (failure) => (failure === undefined ? admit() : done(dead)))
  }
}
