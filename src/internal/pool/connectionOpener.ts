/**
 * The opening of connections: for waiters and for `minConnections`, with pauses after failures. A
 * failed connect fails the waiters that it was made for.
 */

import * as clock from "../concurrency/clock.js"
import { connectFailed, mayPass } from "../connection/connectFailure.js"
import type { ConnectFailure, Connection, Owner } from "../connection/connection.js"
import { ConnectBackoff, initialPause } from "./connectBackoff.js"
import { type Demand, Growth } from "./growth.js"
import { PendingConnects } from "./pendingConnects.js"
import { maxTotal } from "./poolOptions.js"
import type { PoolState } from "./poolState.js"

export class ConnectionOpener {
  readonly backoff = new ConnectBackoff(() => this.openIfNeeded())
  readonly growth: Growth
  readonly pendingConnects: PendingConnects
  /** The number of new connections that run `onConnect`. */
  private initializingCount = 0
  /** Connections that began before this moment are closed when they are ready. */
  private invalidBefore = Number.NEGATIVE_INFINITY
  private isStopped = false

  constructor(
    private readonly pool: PoolState,
    owner: Owner,
    /** Called with each new connection that is ready for its first checkout. */
    private readonly onReady: (connection: Connection, now: number) => void
  ) {
    const { credentials, pool: config, readOnly, server, session } = pool.options
    this.growth = new Growth(
      () => this.demand,
      () => this.open(),
      config.strategy === "none"
    )
    this.pendingConnects = new PendingConnects(
      { credentials, readOnly, server, session, timeout: config.connectTimeout },
      owner,
      () => this.growth.expectedConnectTime,
      () => this.growth.openIfNeeded()
    )
  }

  /**
   * Checks if the server is away and no connection is left, so that callers wait for nothing but
   * its return.
   */
  get isInOutage(): boolean {
    return this.backoff.isAway && this.pool.connections.openCount === 0
  }

  /** Opens connections for the waiters and for `minConnections`. */
  openIfNeeded(): void {
    if (this.isStopped) return
    this.growth.openIfNeeded()
    const { connections, options } = this.pool
    while (!this.backoff.isPausing && connections.all.size + this.pendingConnects.size < options.pool.minConnections)
      this.open()
  }

  /** Closes the connections that began before a moment as soon as they are ready. */
  invalidate(before: number): void {
    this.invalidBefore = Math.max(this.invalidBefore, before)
  }

  /**
   * Closes a new connection that cannot be used. The next connection would fail as well, so this
   * fails the waiters. It does not if the connection was lost, because another attempt may succeed.
   * A connection that was invalidated, or closed with the pool, counts as no failure.
   */
  reject(connection: Connection, error: Error, start: number): void {
    const { broken } = connection
    connection.destroy("vetoed")
    if (broken === "broken") this.onFailed({ reason: "unreachable", error }, start)
    else if (broken === "wrongRole") this.onFailed({ reason: "wrongRole", error }, start)
    else if (broken !== "invalidated" && broken !== "shutdown") this.onFailed({ reason: "setup", error })
  }

  /** Cancels the connects in progress, and opens no connection any more. */
  stop(): void {
    this.isStopped = true
    this.growth.stop()
    this.backoff.stop()
    this.pendingConnects.cancelAll()
  }

  private get demand(): Demand {
    const { connections, options, validation, waiters } = this.pool
    const waiting = waiters.size
    const connecting = this.pendingConnects.size
    const room = maxTotal(options.pool) - connections.all.size - connecting
    // evaluated for each waiter, so a full pool returns early
    if (room <= 0) return { waiting, wanted: 0, room, active: 0, pending: 0, isEmpty: false }
    const { openCount } = connections
    const active = openCount - connections.idle.length
    const pending = this.initializingCount + connecting - this.pendingConnects.lateCount
    const isPaused = this.backoff.isPausing && (openCount > 0 ? this.backoff.isRejecting : this.backoff.isAway)
    const wanted = isPaused ? 0 : waiting - validation.count - pending
    return { waiting, wanted, room, active, pending, isEmpty: openCount <= this.initializingCount }
  }

  private open(): void {
    const { connections, options, tasks } = this.pool
    const { onConnect } = options.tasks
    this.pendingConnects.begin((start, failure, connection) => {
      if (failure !== undefined) return this.onFailed(failure, start)
      if (connection === undefined) return
      connections.add(connection)
      if (onConnect === undefined) return this.onOpened(connection, start)
      this.initializingCount++
      tasks.run(onConnect, connection, options.pool.connectTimeout, (error) => {
        this.initializingCount--
        if (error === undefined) this.onOpened(connection, start)
        else this.reject(connection, error, start)
      })
    })
  }

  private onOpened(connection: Connection, start: number): void {
    const { events, options, waiters } = this.pool
    const now = clock.now()
    if (this.backoff.isAway) waiters.suspendSheddingUntil(now + initialPause)
    this.backoff.onSuccess()
    this.growth.onConnected(now - start)
    events.connected(connection, now - start)
    options.onHealth?.(true, "connected")
    // this connect began before the invalidation, or with the old credentials
    if (start < this.invalidBefore) connection.end("invalidated")
    else if (connection.generation < options.credentials.generation) connection.end("oldCredentials")
    else this.onReady(connection, now)
  }

  /**
   * Fails the waiters that a failed connect was made for. `start` is when the connect began: it was
   * not made for callers that arrived later.
   */
  private onFailed(failure: ConnectFailure, start = Number.POSITIVE_INFINITY): void {
    if (this.isStopped) return
    const { connections, events, location, options, waiters } = this.pool
    const { reason } = failure
    const now = clock.now()
    // the name leads to another server now, so open connections may be on one that is no longer the
    // primary
    if (reason === "wrongRole") connections.retireAll(reason)
    const isEmpty = connections.openCount === 0
    this.backoff.onFailure(failure, now - start < this.growth.expectedConnectTime, isEmpty ? "needed" : "spare")
    events.connectFailed(failure)
    // waiters can use the open connections, so no waiter fails if the server only rejects further
    // ones
    if (this.backoff.isRejecting && !isEmpty) return
    options.onHealth?.(false, failure.error.message)
    if (isEmpty) waiters.suspendSheddingUntil(now + initialPause)
    // a permanent failure fails all waiters; another failure fails those that waited when the
    // connect began, or only the first of them if connections are open
    const isPermanent = !mayPass(failure)
    const checkoutFailure = connectFailed(location, failure)
    for (const waiter of [...waiters]) {
      if (!isPermanent && waiter.since > start) break
      if (waiters.remove(waiter)) waiter.callback(checkoutFailure, undefined)
      if (!isPermanent && !isEmpty) break
    }
    this.growth.openIfNeeded()
  }
}
