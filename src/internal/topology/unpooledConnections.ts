/**
 * Connections of a server outside of the limits of its pools, for work that callers of the pools may
 * wait for.
 */
import * as clock from "../concurrency/clock.js"
import { FifoLock } from "../concurrency/fifoLock.js"
import { connect } from "../connection/connect.js"
import { connectFailed } from "../connection/connectFailure.js"
import type { Connection, Owner } from "../connection/connection.js"
import type { PoolDependencies } from "../pool/poolDependencies.js"
import type { ConnectionSource, OnCheckout } from "./connectionSource.js"

const nothing = () => {}

/**
 * Source that opens a connection for each checkout, one at a time, and closes it at the checkin.
 */
export class UnpooledConnections implements ConnectionSource {
  private readonly lock = new FifoLock()
  private readonly sockets = new Set<Connection>()
  private isClosed = false
  private cancelConnect = nothing
  private onAllClosed = nothing
  private readonly owner: Owner = {
    lost: nothing,
    closed: (connection) => {
      this.sockets.delete(connection)
      if (this.sockets.size === 0) this.onAllClosed()
    }
  }

  constructor(readonly options: PoolDependencies) {}

  checkout(deadline: number, _: ReadonlyArray<Connection>, callback: OnCheckout): () => void {
    const { credentials, database, locator, pool, readOnly, server, session } = this.options
    const fail = (error: Error) =>
      callback(connectFailed({ database, server: server.name }, { reason: "unresponsive", error }), undefined)
    let cancel = nothing
    const stop = clock.later(deadline - clock.now(), () => {
      cancel()
      fail(new Error("no connection was opened in time"))
    })
    const leave = this.lock.acquire(() => {
      if (this.isClosed) return
      const timeout = Math.max(1, Math.min(deadline - clock.now(), pool.connectTimeout))
      const cancelConnect = connect(
        { server, locator, session, credentials, readOnly, timeout },
        this.owner,
        (failure, connection) => {
          stop()
          cancel = nothing
          this.cancelConnect = nothing
          if (connection !== undefined) {
            this.sockets.add(connection)
            // only the callers of the pools keep the process alive
            connection.keepProcess(false)
            return callback(undefined, connection)
          }
          this.lock.release()
          if (failure === undefined) return fail(new Error("the connect has failed"))
          callback(connectFailed({ database, server: server.name }, failure), undefined)
        }
      )
      this.cancelConnect = cancelConnect
      cancel = () => {
        // a caller may cancel after the deadline has cancelled the connect
        cancel = nothing
        cancelConnect()
        this.cancelConnect = nothing
        this.lock.release()
      }
    })
    if (cancel === nothing) cancel = leave
    return () => {
      stop()
      cancel()
    }
  }

  checkin(connection: Connection): void {
    connection.end("excess")
    this.lock.release()
  }

  /** Closes the connections; `callback` is called when all sockets are closed. */
  close(callback: () => void): void {
    this.isClosed = true
    this.cancelConnect()
    this.onAllClosed = callback
    for (const connection of this.sockets) connection.destroy("shutdown")
    if (this.sockets.size === 0) callback()
  }
}
