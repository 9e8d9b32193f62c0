/**
 * The connections to one server for one purpose: their number, their assignment to callers, and
 * their life.
 *
 * A connection is connecting, initializing (`onConnect`), idle, validating, active, returning
 * (`onReturn`), idle again or closed.
 *
 * Checkouts use callbacks, not fibers, so that the checkout of an idle connection is a few plain
 * function calls.
 */

import type { PoolConfig, ServerConfig, SessionConfig } from "../../DatabaseConfig.js"
import type { Observer } from "../../Observation.js"
import type { PoolStats } from "../../Pool.js"
import * as clock from "../concurrency/clock.js"
import { connectFailed, mayPass } from "../connection/connectFailure.js"
import type { ConnectFailure, Connection, Owner } from "../connection/connection.js"
import type { CredentialSource } from "../connection/credentials.js"
import type { CheckoutFailure, PlainFailure } from "../connection/plainFailure.js"
import type { ErrorLocation } from "../connection/statementFailure.js"
import type { MakePoolMetrics, PoolMetrics } from "../observability/poolMetrics.js"
import type { Caller } from "./caller.js"
import { ConnectBackoff, initialPause } from "./connectBackoff.js"
import { Connections } from "./connections.js"
import { PoolEvents } from "./events.js"
import { exhaustedFailure } from "./exhaustedFailure.js"
import { type Demand, Growth } from "./growth.js"
import { type Checkout, LeakDetection } from "./leakDetection.js"
import { LoadShedding } from "./loadShedding.js"
import type { OutageWaiters } from "./outageWaiters.js"
import { PendingConnects } from "./pendingConnects.js"
import { ConnectionTasks, type SessionTask } from "./sessionTasks.js"
import { Validation } from "./validation.js"
import { Waiter, WaitQueue } from "./waitQueue.js"

export type { SessionTask }

/** A callback that receives a connection or a failure, once, unless the checkout was cancelled. */
export type OnCheckout = (failure: CheckoutFailure | undefined, connection: Connection | undefined) => void

/** The tasks that the options define for points of a connection's life. */
export interface SessionTasks {
  /** Runs before a new connection is checked out for the first time. */
  readonly onConnect?: SessionTask | undefined
  /** Runs before each checkout. */
  readonly onCheckout?: SessionTask | undefined
  /** Runs after each checkin. */
  readonly onReturn?: SessionTask | undefined
}

/** The options of a pool. */
export interface PoolOptions {
  readonly database: string
  readonly server: ServerConfig
  readonly pool: PoolConfig
  readonly session: SessionConfig
  readonly credentials: CredentialSource
  readonly tasks: SessionTasks
  /** True if the sessions refuse writes. */
  readonly readOnly: boolean
  readonly observer: Observer
  /** Makes the metrics of the pool. */
  readonly makeMetrics: MakePoolMetrics
  /** @internal The callers of the database that wait while a server is away. */
  readonly outageWaiters: OutageWaiters
  /** Called after each successful or failed connect. */
  readonly onHealth?: ((healthy: boolean, message: string) => void) | undefined
}

/** The connections that an invalidation closes. */
export interface Invalidation {
  /**
   * `"soft"`: closes them at their next checkout or checkin. `"hard"`: closes them now, also those
   * in use.
   */
  readonly mode: "soft" | "hard"
  /** Limits it to connections opened before this moment of `performance.now()`. */
  readonly before: number
  /** Limits it to the connection of this server process. */
  readonly processId?: number | undefined
}

const nothing = () => {}

/** The connections to one server for one purpose. */
export class Pool {
  private readonly connections: Connections
  private readonly waiters: WaitQueue<OnCheckout>
  private readonly growth: Growth
  private readonly checkouts: LeakDetection | undefined
  private readonly metrics: PoolMetrics
  private readonly pendingConnects: PendingConnects
  private readonly tasks = new ConnectionTasks()
  private readonly validation: Validation
  private readonly backoff = new ConnectBackoff(() => this.grow())
  /** The number of connections that are being validated for a waiter. */
  private validatingCount = 0
  /** The number of new connections that run `onConnect`. */
  private initializingCount = 0
  private onEmpty: (() => void) | undefined
  /** Connects that began before this moment are closed when they are ready. */
  private invalidBefore = Number.NEGATIVE_INFINITY
  private readonly location: ErrorLocation
  private readonly events: PoolEvents

  constructor(readonly options: PoolOptions) {
    const { credentials, pool, readOnly, server, session, tasks } = options
    this.location = { database: options.database, server: server.name }
    const { leakThreshold, maxConnections, queueTarget, strategy } = pool
    this.metrics = options.makeMetrics({
      database: options.database,
      purpose: readOnly ? "reads" : "writes",
      server,
      idleMin: pool.minConnections,
      idleMax: strategy === "none" ? 0 : maxConnections,
      max: this.maxTotal
    })
    this.connections = new Connections(pool, this.metrics)
    this.validation = new Validation(this.connections, this.tasks, pool, session, tasks.onCheckout)
    this.waiters = new WaitQueue(
      new LoadShedding(queueTarget, maxConnections),
      (waiter, reason) => this.failWaiter(waiter, this.exhausted(reason, waiter.since)),
      this.metrics
    )
    this.growth = new Growth(
      () => this.demand,
      () => this.openConnection(),
      strategy === "none"
    )
    this.checkouts =
      Number.isFinite(leakThreshold) || strategy === "assertSingle"
        ? new LeakDetection(leakThreshold, (connection, held, caller) => this.events.leaked(connection, held, caller))
        : undefined
    this.events = new PoolEvents(this.location, options.observer, this.metrics)
    options.outageWaiters.add(() => (this.isInOutage ? this.waiters.size : 0))
    credentials.follow((generation) => this.connections.retireOldCredentials(generation))
    const owner: Owner = {
      refusedWrites: { count: 0 },
      operated: this.metrics.operated,
      usabilityChanged: () => this.connections.countUsable(),
      noticed: (connection, notice) => this.events.noticed(connection, notice),
      lost: (connection, error) => {
        this.connections.suspectAll()
        this.connections.remove(connection)
        this.events.lost(connection, error)
        if (this.connections.openCount === 0) this.waiters.suspendSheddingUntil(clock.now() + initialPause)
      },
      closed: (connection, reason) => {
        this.connections.delete(connection)
        this.checkouts?.remove(connection)
        this.events.closed(connection, reason)
        this.tasks.onConnectionClosed(connection)
        if (reason === "wrongRole") this.connections.retireAll(reason, connection)
        if (this.onEmpty === undefined) this.grow()
        else if (this.connections.all.size === 0) this.onEmpty()
      }
    }
    this.pendingConnects = new PendingConnects(
      { credentials, readOnly, server, session, timeout: pool.connectTimeout },
      owner,
      () => this.growth.expectedConnectTime,
      () => this.growth.openIfNeeded()
    )
  }

  /** Opens the connections that `minConnections` requires. */
  warm(): void {
    this.grow()
  }

  /**
   * Returns the number of connections in use and of waiters. The choice of a server depends on it.
   */
  get load(): number {
    return this.connections.all.size - this.connections.idle.length + this.waiters.size
  }

  /** Returns the figures of this moment. */
  get stats(): PoolStats {
    const { maxConnections, maxOverflow, minConnections } = this.options.pool
    const idle = this.connections.idle.length
    return {
      min: minConnections,
      max: maxConnections,
      maxOverflow,
      total: this.connections.all.size,
      // a connection that is closing is still open, but has no caller
      active: this.connections.openCount - idle,
      idle,
      connecting: this.pendingConnects.size,
      waiting: this.waiters.size,
      overloaded: this.waiters.isOverloaded,
      lastConnectFailure: this.backoff.lastFailure?.error.message
    }
  }

  /**
   * Checks out a connection: in this call if one is idle and valid, otherwise when one is
   * available.
   *
   * `deadline` is a moment of `performance.now()`. `holding` are the connections that the caller
   * holds already: if all connections of the pool are held by callers that wait for another one,
   * waiting would never end, so the checkout fails. A checkout without `caller` belongs to the
   * library itself, and `assertSingle` ignores it. The returned function cancels the checkout and
   * leaks nothing.
   */
  checkout(
    deadline: number,
    holding: ReadonlyArray<Connection>,
    callback: OnCheckout,
    caller?: Caller | undefined
  ): () => void {
    if (this.onEmpty !== undefined) {
      callback({ _tag: "DatabaseClosed", ...this.location }, undefined)
      return nothing
    }
    const now = clock.now()
    if (this.waiters.size === 0) {
      const connection = this.connections.peekIdle(now)
      if (connection !== undefined && this.validation.isReady(connection, now)) {
        this.connections.remove(connection)
        this.waiters.onImmediateCheckout()
        this.assign(connection, now, 0, caller, callback)
        return nothing
      }
    }
    const failure = this.rejectionReason(holding, caller, now)
    if (failure !== undefined) {
      callback(failure, undefined)
      return nothing
    }
    const waiter = new Waiter(now, deadline, holding, caller, callback)
    this.waiters.add(waiter)
    // an idle connection is assigned before one that is still being validated for a cancelled
    // caller, because validation may take long
    this.matchWaiters(1)
    return () => void this.waiters.remove(waiter)
  }

  /**
   * Checks in a connection. It is assigned to the next waiter, kept idle, or closed if it is not in
   * the state in which it was checked out; after an interruption this is decided when the
   * interrupted statement has stopped.
   */
  checkin(connection: Connection): void {
    const now = clock.now()
    this.checkouts?.remove(connection)
    this.events.checkedIn(connection, now - connection.checkedOutAt)
    if (!connection.isStopping) return this.finishCheckin(connection, now)
    connection.onStopped = () => this.finishCheckin(connection, clock.now())
  }

  /**
   * Runs `onReturn` and releases the connection, or closes it if it is broken, busy or in a
   * transaction.
   */
  private finishCheckin(connection: Connection, now: number): void {
    if (connection.broken !== undefined) {
      // a cancelled connection is still busy, and closes itself when the server has answered
      if (!connection.busy) connection.destroy(connection.broken)
      return
    }
    // the server is asked to cancel a statement that no caller waits for
    if (connection.busy || connection.status !== "I") return connection.abort("dirty")
    const { onReturn } = this.options.tasks
    if (onReturn === undefined || this.onEmpty !== undefined) return this.release(connection, now)
    this.tasks.run(onReturn, connection, this.options.pool.connectTimeout, (failure) => {
      if (failure !== undefined) return connection.destroy("dirty")
      this.events.reset(connection)
      this.release(connection, clock.now())
    })
  }

  /** Invalidates connections that are open. Returns the number of matches. */
  invalidate({ before, mode, processId }: Invalidation): number {
    if (processId === undefined) this.invalidBefore = Math.max(this.invalidBefore, before)
    const matches = this.connections.invalidate(mode, before, processId)
    this.events.invalidated(mode, matches)
    return matches
  }

  /**
   * Refuses new checkouts, waits up to `timeout` ms for connections in use, then aborts them.
   * `callback` is called when all connections are closed.
   */
  close(timeout: number, callback: () => void): void {
    const cutOff = clock.timer(timeout, () => {
      for (const connection of this.connections.all) connection.abort("shutdown")
    })
    this.onEmpty = () => {
      clock.clear(cutOff)
      this.onEmpty = nothing
      this.metrics.close()
      callback()
    }
    this.growth.stop()
    this.connections.stop()
    this.checkouts?.stop()
    this.backoff.stop()
    this.pendingConnects.cancelAll()
    for (const waiter of this.waiters.clear()) waiter.callback({ _tag: "DatabaseClosed", ...this.location }, undefined)
    this.tasks.shutDown()
    this.connections.endIdle()
    if (this.connections.all.size === 0) this.onEmpty()
  }

  /** Returns the limit for the number of connections. */
  private get maxTotal(): number {
    return this.options.pool.maxConnections + this.options.pool.maxOverflow
  }

  /**
   * Checks if the server is away and no connection is left, so that callers wait for nothing but
   * its return.
   */
  private get isInOutage(): boolean {
    return this.backoff.isAway && this.connections.openCount === 0
  }

  private get demand(): Demand {
    const waiting = this.waiters.size
    const connecting = this.pendingConnects.size
    const room = this.maxTotal - this.connections.all.size - connecting
    // evaluated for each waiter, so a full pool returns early
    if (room <= 0) return { waiting, wanted: 0, room, active: 0, pending: 0, isEmpty: false }
    const { openCount } = this.connections
    const active = openCount - this.connections.idle.length
    const pending = this.initializingCount + connecting - this.pendingConnects.lateCount
    const isPaused = this.backoff.isPausing && (openCount > 0 ? this.backoff.isRejecting : this.backoff.isAway)
    const wanted = isPaused ? 0 : waiting - this.validatingCount - pending
    return { waiting, wanted, room, active, pending, isEmpty: openCount <= this.initializingCount }
  }

  /** Returns the failure for a caller that must not be queued, or `undefined`. */
  private rejectionReason(
    holding: ReadonlyArray<Connection>,
    caller: Caller | undefined,
    now: number
  ): CheckoutFailure | undefined {
    const { maxConnections, strategy } = this.options.pool
    if (strategy === "assertSingle" && caller !== undefined && this.soleCheckout !== undefined) {
      return this.exhausted("single", now)
    }
    if (this.wouldDeadlock(holding)) return { _tag: "PoolSelfDeadlock", ...this.location, maxConnections }
    if (this.isInOutage && !this.options.outageWaiters.hasRoom) {
      return this.exhausted("outage", now)
    }
    return this.waiters.rejectsArrival(now) ? this.exhausted("shed", now) : undefined
  }

  private wouldDeadlock(holding: ReadonlyArray<Connection>): boolean {
    const { all, idle } = this.connections
    if (holding.length === 0 || idle.length > 0 || all.size < this.maxTotal) return false
    const stuck = new Set(holding)
    for (const waiter of this.waiters) for (const held of waiter.holding) stuck.add(held)
    for (const connection of all) if (!stuck.has(connection)) return false
    return true
  }

  private exhausted(reason: PlainFailure<"PoolExhausted">["reason"], since: number): PlainFailure<"PoolExhausted"> {
    const { active, idle, lastConnectFailure, total, waiting } = this.stats
    const waited = clock.now() - since
    this.events.exhausted(reason, waited)
    return exhaustedFailure(
      { ...this.location, reason, waitedMillis: waited, total, active, idle, waiting },
      this.pendingConnects.progress,
      lastConnectFailure,
      reason === "single" ? this.soleCheckout : this.checkouts?.oldest
    )
  }

  /**
   * Returns the checkout in progress, else the first waiter: `assertSingle` allows one caller at a
   * time.
   */
  private get soleCheckout(): Checkout | undefined {
    const checkout = this.checkouts?.oldest
    if (checkout?.caller !== undefined) return checkout
    for (const waiter of this.waiters) if (waiter.caller !== undefined) return waiter
    return undefined
  }

  private failWaiter(waiter: Waiter<OnCheckout>, failure: CheckoutFailure): void {
    if (this.waiters.remove(waiter)) waiter.callback(failure, undefined)
  }

  private assign(
    connection: Connection,
    now: number,
    waited: number,
    caller: Caller | undefined,
    callback: OnCheckout
  ): void {
    connection.checkedOutAt = now
    this.checkouts?.add(connection, now, caller)
    this.events.checkedOut(connection, waited, caller?.label)
    callback(undefined, connection)
  }

  /**
   * Assigns a validated connection to the waiter that has waited longest, or releases it if none is
   * left.
   */
  private assignToNextWaiter(connection: Connection, now: number): void {
    const waiter = this.waiters.removeFirst(now)
    if (waiter === undefined) return this.release(connection, now)
    // the first use of a new connection is no measure of how soon the connections in use are
    // checked in
    if (connection.checkedOutAt > 0) this.growth.onServed()
    this.assign(connection, now, now - waiter.since, waiter.caller, waiter.callback)
  }

  /**
   * Returns a connection to the pool: assigns it to the next waiter, keeps it idle, or closes it if
   * it is excess or due for retirement.
   */
  private release(connection: Connection, now: number, isNew = false): void {
    if (connection.broken !== undefined) return
    if (this.onEmpty !== undefined) return connection.end("shutdown")
    const { maxConnections, strategy } = this.options.pool
    const reason = this.connections.retirementReason(connection, now)
    if (reason !== undefined) return connection.end(reason)
    if (strategy === "none" && connection.checkedOutAt > 0) return connection.end("excess")
    if (this.waiters.size > 0) return this.validateThenAssign(connection, now, isNew)
    if (strategy === "none" || this.connections.exceeds(maxConnections)) return connection.end("excess")
    this.connections.addIdle(connection)
  }

  /**
   * Matches idle connections with waiters, at least `minimum` of them if as many are idle, and
   * opens connections for the rest.
   */
  private matchWaiters(minimum = 0): void {
    for (let count = 0; count < minimum || this.waiters.size > this.validatingCount; count++) {
      const now = clock.now()
      const connection = this.connections.peekIdle(now)
      if (connection === undefined) break
      this.connections.remove(connection)
      this.validateThenAssign(connection, now, false)
    }
    this.grow()
  }

  /**
   * Assigns a connection to a waiter: at once, or after it was validated and `onCheckout` has run.
   */
  private validateThenAssign(connection: Connection, now: number, isNew: boolean): void {
    if (this.validation.isReady(connection, now, isNew)) return this.assignToNextWaiter(connection, now)
    this.validatingCount++
    this.validation.validate(connection, now, isNew, (result) => {
      this.validatingCount--
      if (result._tag === "valid") {
        const now = clock.now()
        const reason = this.connections.retirementReason(connection, now)
        // the connection may have been invalidated meanwhile
        if (connection.broken === undefined) {
          if (reason === undefined) return this.assignToNextWaiter(connection, now)
          connection.end(reason)
        }
      } else if (result._tag === "dead") {
        // a connection that was closed on request is no sign of a fault of the others
        if (connection.broken === undefined || connection.broken === "broken") this.connections.discardSilent(now)
        connection.destroy("invalid")
      } else if (isNew) this.rejectNew(connection, result.error, connection.createdAt)
      else connection.destroy("vetoed")
      this.matchWaiters()
    })
  }

  /** Opens connections for the waiters and for `minConnections`. */
  private grow(): void {
    if (this.onEmpty !== undefined) return
    this.growth.openIfNeeded()
    const { minConnections } = this.options.pool
    while (!this.backoff.isPausing && this.connections.all.size + this.pendingConnects.size < minConnections)
      this.openConnection()
  }

  private openConnection(): void {
    const { pool, tasks } = this.options
    this.pendingConnects.begin((start, failure, connection) => {
      if (failure !== undefined) return this.onConnectFailed(failure, start)
      if (connection === undefined) return
      this.connections.add(connection)
      if (tasks.onConnect === undefined) return this.onConnected(connection, start)
      this.initializingCount++
      this.tasks.run(tasks.onConnect, connection, pool.connectTimeout, (error) => {
        this.initializingCount--
        if (error === undefined) this.onConnected(connection, start)
        else this.rejectNew(connection, error, start)
      })
    })
  }

  private onConnected(connection: Connection, start: number): void {
    const now = clock.now()
    if (this.backoff.isAway) this.waiters.suspendSheddingUntil(now + initialPause)
    this.backoff.onSuccess()
    this.growth.onConnected(now - start)
    this.events.connected(connection, now - start)
    this.options.onHealth?.(true, "connected")
    // this connect began before the invalidation, or with the old credentials
    if (start < this.invalidBefore) connection.end("invalidated")
    else if (connection.generation < this.options.credentials.generation) connection.end("oldCredentials")
    else this.release(connection, now, true)
  }

  /**
   * Closes a new connection that cannot be used. The next connection would fail as well, so this
   * fails the waiters. It does not if the connection was lost, because another attempt may succeed.
   * A connection that was invalidated, or closed with the pool, counts as no failure.
   */
  private rejectNew(connection: Connection, error: Error, start: number): void {
    const { broken } = connection
    connection.destroy("vetoed")
    if (broken === "broken") this.onConnectFailed({ reason: "unreachable", error }, start)
    else if (broken === "wrongRole") this.onConnectFailed({ reason: "wrongRole", error }, start)
    else if (broken !== "invalidated" && broken !== "shutdown") this.onConnectFailed({ reason: "setup", error })
  }

  /**
   * Fails the waiters that a failed connect was made for. `start` is when the connect began: it was
   * not made for callers that arrived later.
   */
  private onConnectFailed(failure: ConnectFailure, start = Number.POSITIVE_INFINITY): void {
    if (this.onEmpty !== undefined) return
    const { reason } = failure
    const now = clock.now()
    // the name leads to another server now, so open connections may be on one that is no longer the
    // primary
    if (reason === "wrongRole") this.connections.retireAll(reason)
    const isEmpty = this.connections.openCount === 0
    const checkoutFailure = connectFailed(this.location, failure)
    this.backoff.onFailure(failure, now - start < this.growth.expectedConnectTime, isEmpty ? "needed" : "spare")
    this.events.connectFailed(failure)
    // waiters can use the open connections, so no waiter fails if the server only rejects further
    // ones
    if (this.backoff.isRejecting && !isEmpty) return
    this.options.onHealth?.(false, failure.error.message)
    if (isEmpty) this.waiters.suspendSheddingUntil(now + initialPause)
    // a permanent failure fails all waiters; another failure fails those that waited when the
    // connect began, or only the first of them if connections are open
    const isPermanent = !mayPass(failure)
    for (const waiter of [...this.waiters]) {
      if (!isPermanent && waiter.since > start) break
      this.failWaiter(waiter, checkoutFailure)
      if (!isPermanent && !isEmpty) break
    }
    this.growth.openIfNeeded()
  }
}
