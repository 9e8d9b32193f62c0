/**
 * The opening of connections for waiters and for `minConnections`, with pauses after failures. A
 * failed connect fails the waiters that depend on it.
 */

import * as clock from "../concurrency/clock.js"
import { connectFailed, mayPass } from "../connection/connectFailure.js"
import type { ConnectFailure, Connection, Owner } from "../connection/connection.js"
import { ConnectBackoff, sheddingPause } from "./connectBackoff.js"
import { type Demand, Growth } from "./growth.js"
import { PendingConnects } from "./pendingConnects.js"
import { maxTotal } from "./poolDependencies.js"
import type { PoolState } from "./poolState.js"

export class ConnectionOpener {
  readonly backoff = new ConnectBackoff(() => this.openIfNeeded())
  readonly growth: Growth
  readonly pendingConnects: PendingConnects
  /** The number of new connections that run `onConnect`. */
  private initializingCount = 0
  /** A connection whose connect began before this moment is closed when it is ready. */
  private invalidBefore = Number.NEGATIVE_INFINITY
  private isStopped = false

  constructor(
    private readonly pool: PoolState,
    owner: Owner,
    /** Called with each new connection that is ready for its first checkout. */
    private readonly onReady: (connection: Connection, now: number) => void
  ) {
    const { credentials, locator, pool: config, readOnly, server, session } = pool.options
    this.growth = new Growth(
      () => this.demand,
      () => this.open(),
      config.strategy === "none"
    )
    this.pendingConnects = new PendingConnects(
      { credentials, locator, readOnly, server, session, timeout: config.connectTimeout },
      owner,
      () => this.growth.expectedConnectTime,
      () => this.growth.openIfNeeded()
    )
  }

  /** Checks if callers wait for an unavailable server, because no connection to it is left. */
  get isInOutage(): boolean {
    const isAway = this.backoff.isAway || this.pool.options.locator?.isSearching === true
    return isAway && this.pool.connections.openCount === 0
  }

  /** Opens connections for the waiters and for `minConnections`. */
  openIfNeeded(): void {
    if (this.isStopped) return
    this.growth.openIfNeeded()
    const { connections, options } = this.pool
    while (
      !this.pool.isPaused &&
      !this.backoff.isPausing &&
      options.isWarm?.() !== false &&
      connections.all.size + this.pendingConnects.size < options.pool.minConnections
    )
      this.open()
  }

  /** Marks the connects that began before a moment: their connections are closed when ready. */
  invalidate(before: number): void {
    this.invalidBefore = Math.max(this.invalidBefore, before)
  }

  /**
   * Closes a new connection whose `onConnect` or `onCheckout` has failed, and records a failed
   * connect. If the connection was lost, later waiters do not fail, because another attempt may
   * succeed. An invalidation or the close of the pool counts as no failure.
   */
  reject(connection: Connection, error: Error, start: number): void {
    const { broken } = connection
    connection.destroy("vetoed")
    if (broken === "broken") this.onFailed({ reason: "unreachable", error }, start)
    else if (broken === "wrongRole") this.onFailed({ reason: "wrongRole", error }, start)
    else if (broken !== "invalidated" && broken !== "shutdown") this.onFailed({ reason: "setup", error })
  }

  /** Cancels the connects in progress, and begins others if they are needed and allowed. */
  restart(): void {
    this.pendingConnects.cancelAll()
    this.openIfNeeded()
  }

  /** Cancels the connects in progress as failed, and fails the waiters: the server does not answer. */
  giveUp(error: Error): void {
    this.pendingConnects.cancelAll()
    this.onFailed({ reason: "unresponsive", error }, clock.now())
  }

  /** Cancels the connects in progress, and prevents further ones. */
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
    if (room <= 0 || this.pool.isPaused) return { waiting, wanted: 0, room, active: 0, pending: 0, isEmpty: false }
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
    if (this.backoff.isAway) waiters.suspendSheddingUntil(now + sheddingPause)
    this.backoff.onSuccess()
    this.growth.onConnected(now - start)
    events.connected(connection, now - start)
    options.onHealth?.(true, "connected")
    // the connect began before an invalidation, or with old credentials
    if (start < this.invalidBefore) connection.end("invalidated")
    else if (connection.generation < options.credentials.generation) connection.end("oldCredentials")
    else this.onReady(connection, now)
  }

  /**
   * Records a failed connect, and fails the waiters that depend on it. `start` is the moment when
   * the connect began: it was not made for callers that arrived later.
   */
  private onFailed(failure: ConnectFailure, start = Number.POSITIVE_INFINITY): void {
    if (this.isStopped) return
    const { connections, events, location, options, waiters } = this.pool
    const { reason } = failure
    const now = clock.now()
    // the host name may lead to another server than before, so the open connections may be to a
    // former primary
    if (reason === "wrongRole") connections.retireAll(reason)
    const isEmpty = connections.openCount === 0
    this.backoff.onFailure(failure, now - start < this.growth.expectedConnectTime, isEmpty ? "needed" : "spare")
    events.connectFailed(failure)
    // waiters can use the open connections, so no waiter fails if the server only rejects further
    // ones
    if (this.backoff.isRejecting && !isEmpty) return
    options.onHealth?.(false, failure.error.message)
    // the callers that are held back do not depend on this connect
    if (this.pool.isPaused) return
    if (isEmpty) waiters.suspendSheddingUntil(now + sheddingPause)
    // a permanent failure fails all waiters; a temporary one fails those that waited when the
    // connect began, or only the first of these if connections are open
    const isPermanent = !mayPass(failure)
    const checkoutFailure = connectFailed(location, failure)
    for (const waiter of [...waiters]) {
      // an urgent waiter may have arrived after those behind it
      if (!isPermanent && waiter.since > start) continue
      if (waiters.remove(waiter)) waiter.callback(checkoutFailure, undefined)
      if (!isPermanent && !isEmpty) break
    }
    this.growth.openIfNeeded()
  }
}
