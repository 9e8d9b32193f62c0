/**
 * Tasks that run on a connection at points of its life, such as `onConnect`. Each task ends once,
 * and within its timeout.
 */

import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"

/**
 * Task that runs on a connection at a point of its life. It calls back once; after a failure the
 * pool closes the connection. The returned function stops the task, and is called after a failure,
 * a timeout or a close of the connection.
 */
export type ConnectionTask = (connection: Connection, callback: (failure: Error | undefined) => void) => () => void

/** The tasks that the options define for points of a connection's life. */
export interface ConnectionTasks {
  /** Runs before a new connection is checked out for the first time. */
  readonly onConnect?: ConnectionTask | undefined
  /** Runs before each checkout. */
  readonly onCheckout?: ConnectionTask | undefined
  /**
   * Runs at a checkin, before the connection is reused; not if the connection is closed instead.
   */
  readonly onReturn?: ConnectionTask | undefined
}

const nothing = () => {}

/** Tasks that are running on the connections of a pool. */
export class RunningTasks {
  /** The functions that end the running tasks, by connection. */
  private readonly pending = new Map<Connection, (failure: Error) => void>()

  /**
   * Runs a task on a connection. `callback` is called once, within the timeout. It gets a failure
   * if the connection is closed meanwhile.
   */
  run(
    task: ConnectionTask,
    connection: Connection,
    timeout: number,
    callback: (failure: Error | undefined) => void
  ): void {
    let cancel = nothing
    const finish = (failure: Error | undefined) => {
      if (this.pending.get(connection) !== finish) return
      this.pending.delete(connection)
      cancelTimeout()
      callback(failure)
      if (failure !== undefined) cancel()
    }
    const cancelTimeout = clock.later(timeout, () => finish(new Error(`the task did not end within ${timeout} ms`)))
    this.pending.set(connection, finish)
    cancel = task(connection, finish)
  }

  /** Fails the task of a connection that was closed. */
  onConnectionClosed(connection: Connection): void {
    this.pending.get(connection)?.(new Error("the connection was closed"))
  }

  /** Aborts the connections with a running task, because no caller uses them. */
  shutDown(): void {
    for (const connection of this.pending.keys()) connection.abort("shutdown")
  }
}
