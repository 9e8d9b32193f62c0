/**
 * Connections in the hands of what is done with them at points of their life: each task ends once, in time, whatever it does.
 */

import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"

/**
 * Something to be done with a connection at a point of its life. It calls back once; after a failure the connection is closed. The returned
 * function stops it, when it has taken too long or its connection is gone.
 *
 * @since 0.1.0
 * @category models
 */
export type SessionTask = (connection: Connection, done: (failure: Error | undefined) => void) => () => void

const nothing = () => {}

export class ConnectionTasks {
  /** How to end the task that has a connection. */
  private readonly ends = new Map<Connection, (failure: Error) => void>()

  /** Lets a task have a connection. `done` is called once, in time; a connection that is closed meanwhile is a failure. */
  perform(task: SessionTask, connection: Connection, limit: number, done: (failure: Error | undefined) => void): void {
    let stop = nothing
    const end = (failure: Error | undefined) => {
      if (this.ends.get(connection) !== end) return
      this.ends.delete(connection)
      takeBack()
      done(failure)
      if (failure !== undefined) stop()
    }
    const takeBack = clock.later(limit, () => end(new Error(`it was not done within ${limit} ms`)))
    this.ends.set(connection, end)
    stop = task(connection, end)
  }

  /** A connection is gone, and with it what was being done. */
  closed(connection: Connection): void {
    this.ends.get(connection)?.(new Error("its connection was closed"))
  }

  /** Nobody waits for what is being made ready; a statement of that is cancelled. */
  shutDown(): void {
    for (const connection of this.ends.keys()) connection.abort("shutdown")
  }
}
