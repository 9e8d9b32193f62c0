/**
 * The sockets of the listening connection: connects, evictions and closing.
 */

import type { DatabaseConfig } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"
import { connect, type HostLocator } from "../connection/connect.js"
import type { Connection, Owner } from "../connection/connection.js"
import type { CredentialSource } from "../connection/credentials.js"
import { markForEviction } from "../pool/invalidation.js"
import type { ConnectAnother } from "./deliveryProbe.js"

/** The timeout of closing the sockets, in ms. */
const maxCloseTime = 1000

/** Maker of connections to the writer. It tracks each connection until its socket is closed. */
export class ListenConnector {
  private readonly open = new Set<Connection>()
  private readonly owner: Owner
  /** A connection is invalid if its connect was started at this time or before. */
  private invalidBefore = Number.NEGATIVE_INFINITY
  private onEmpty = () => {}

  constructor(
    private readonly config: DatabaseConfig,
    private readonly credentials: CredentialSource,
    private readonly locator: HostLocator | undefined,
    onLost: (connection: Connection, error: Error) => void
  ) {
    this.owner = {
      lost: onLost,
      closed: (connection) => {
        this.open.delete(connection)
        if (this.open.size === 0) this.onEmpty()
      }
    }
  }

  /**
   * Makes a connection. If the connection is outdated already, replaces it once. The returned
   * function cancels.
   */
  readonly connect: ConnectAnother = (callback) => {
    const { pool, session, writer: server } = this.config
    const { credentials, locator } = this
    const options = { server, session, credentials, locator, readOnly: false, timeout: pool.connectTimeout }
    const attempt = (isFirst: boolean): (() => void) => {
      const startedAt = clock.now()
      return connect(options, this.owner, (failure, connection) => {
        if (connection !== undefined) {
          this.open.add(connection)
          if (startedAt <= this.invalidBefore) connection.retireAt = startedAt
          // only once: if each connection gets new credentials, two concurrent connects would make
          // each other's credentials old again and again
          if (isFirst && this.isOutdated(connection)) {
            connection.end(connection.retireAt === startedAt ? "invalidated" : "oldCredentials")
            cancel = attempt(false)
            return
          }
          // the writer has moved during the login
          if (locator?.isElsewhere(connection.server.name) === true) {
            connection.end("wrongRole")
            cancel = attempt(isFirst)
            return
          }
        }
        callback(failure, connection)
      })
    }
    let cancel = attempt(true)
    return () => cancel()
  }

  /**
   * Checks if a connection must be replaced, because its credentials are old or it was invalidated.
   */
  isOutdated({ generation, retireAt }: Connection): boolean {
    return generation < this.credentials.generation || retireAt <= clock.now()
  }

  /**
   * Marks the connections that an invalidation matches for eviction, and returns them. Without
   * `processId`, connects in progress are matched too, but not returned.
   */
  invalidate(before: number, processId: number | undefined): ReadonlyArray<Connection> {
    if (processId === undefined) this.invalidBefore = Math.max(this.invalidBefore, before)
    return markForEviction(this.open, before, processId)
  }

  /**
   * Calls back when all sockets are closed. Destroys those that are still open after `timeout` ms,
   * or after `maxCloseTime` if that is shorter.
   */
  close(timeout: number, callback: () => void): void {
    const timer = clock.timer(Math.min(timeout, maxCloseTime), () => {
      for (const connection of this.open) connection.destroy("shutdown")
    })
    this.onEmpty = () => {
      clock.clear(timer)
      callback()
    }
    if (this.open.size === 0) this.onEmpty()
  }
}
