/**
 * The pool of the connections to one server for one purpose: their checkout, their checkin and
 * their assignment to waiters.
 *
 * The states of a connection are connecting, initializing (`onConnect`), idle, validating, active,
 * returning (`onReturn`) and closed.
 *
 * Checkouts use callbacks, not fibers, so that the checkout of an idle connection is a few plain
 * function calls.
 */

import type { CloseReason } from "../../Observation.js"
import type { PoolStats } from "../../Pool.js"
import * as clock from "../concurrency/clock.js"
import type { Connection, Owner } from "../connection/connection.js"
import type { CheckoutFailure } from "../connection/failure.js"
import type { ErrorLocation } from "../connection/statementFailure.js"
import type { PoolMetrics } from "../observability/poolMetrics.js"
import type { Caller, OnCheckout } from "./caller.js"
import { sheddingPause } from "./connectBackoff.js"
import { ConnectionOpener } from "./connectionOpener.js"
import { Connections, type HostActivity } from "./connections.js"
import { PoolEvents } from "./events.js"
import type { Invalidation } from "./invalidation.js"
import { type LeakDetection, makeLeakDetection } from "./leakDetection.js"
import { RunningTasks } from "./lifecycleTasks.js"
import { LoadShedding } from "./loadShedding.js"
import { makeMetrics, type PoolDependencies } from "./poolDependencies.js"
import type { PoolState } from "./poolState.js"
import { poolStats } from "./poolStats.js"
import { closedFailure, exhausted, rejectionOf } from "./rejection.js"
import { shutDown } from "./shutDown.js"
import { Validation } from "./validation.js"
import { Waiter, WaitQueue } from "./waitQueue.js"

const nothing = () => {}

/** Pool of the connections to one server for one purpose: writes or reads. */
export class Pool implements PoolState {
  readonly location: ErrorLocation
  readonly connections: Connections
  readonly waiters: WaitQueue<OnCheckout>
  readonly tasks = new RunningTasks()
  readonly validation: Validation
  readonly leakDetection: LeakDetection | undefined
  readonly events: PoolEvents
  private readonly metrics: PoolMetrics
  private readonly opener: ConnectionOpener
  private readonly leaveOutageWaiters: () => void
  /** True while checkouts are held back: callers wait in the queue. */
  isPaused = false
  /** Called after each checkin, and each close of a connection, while the pool is paused. */
  private onReturned: (() => void) | undefined
  /** The failure of a caller after the pool was closed. */
  private closed: CheckoutFailure | undefined
  /** Called when the last connection is closed; set while the pool is closing or closed. */
  private onEmpty: (() => void) | undefined

  constructor(readonly options: PoolDependencies) {
    const { credentials, database, observer, outageWaiters, pool, server, session, tasks } = options
    this.location = { database, server: server.name }
    this.metrics = makeMetrics(options)
    this.events = new PoolEvents(this.location, observer, this.metrics)
    this.connections = new Connections(pool, this.metrics)
    this.validation = new Validation(this.connections, this.tasks, pool, session, tasks.onCheckout)
    this.waiters = new WaitQueue(
      new LoadShedding(pool.queueTarget, pool.maxConnections),
      (waiter, reason) => {
        const isHeldBack = this.isPaused && reason === "timeout"
        const failure = exhausted(this, this.opener, isHeldBack ? "paused" : reason, waiter.since)
        if (this.waiters.remove(waiter)) waiter.callback(failure, undefined)
      },
      this.metrics
    )
    this.leakDetection = makeLeakDetection(pool, (connection, held, caller) =>
      this.events.leaked(connection, held, caller)
    )
    const owner: Owner = {
      refusedWrites: { count: 0 },
      operated: this.metrics.operated,
      noticed: (connection, notice) => this.events.noticed(connection, notice),
      usabilityChanged: () => this.connections.countUsable(),
      lost: (connection, error) => this.onLost(connection, error),
      closed: (connection, reason) => this.onClosed(connection, reason)
    }
    this.opener = new ConnectionOpener(this, owner, (connection, now) => this.release(connection, now, true))
    this.leaveOutageWaiters = outageWaiters.add(() => (this.isPaused || this.opener.isInOutage ? this.waiters.size : 0))
    credentials.follow((generation) => this.connections.retireOldCredentials(generation))
  }

  /** Opens the connections that `minConnections` requires. */
  warm(): void {
    this.opener.openIfNeeded()
  }

  /** Returns the number of connections in use plus waiters, for replica selection. */
  get load(): number {
    return this.connections.all.size - this.connections.idle.length + this.waiters.size
  }

  /** Returns the figures of this moment. */
  get stats(): PoolStats {
    return poolStats(this, this.opener)
  }

  /**
   * Checks out a connection: in this call if one is idle and valid, otherwise when one is
   * available.
   *
   * `deadline` is a moment of `performance.now()`. `holding` are the connections that the caller
   * holds already. If all connections of the pool are held by callers that wait for another one, no
   * wait would end, so the checkout fails. `assertSingle` ignores a checkout without `caller`, such
   * as one of the library itself. An urgent checkout comes before the waiters, and is not rejected
   * because of them. The returned function cancels the checkout while it waits.
   */
  checkout(
    deadline: number,
    holding: ReadonlyArray<Connection>,
    callback: OnCheckout,
    caller?: Caller,
    isUrgent = false
  ): () => void {
    if (this.onEmpty !== undefined) {
      callback(this.closed ?? closedFailure(this), undefined)
      return nothing
    }
    const now = clock.now()
    if (this.waiters.size === 0 && !this.isPaused) {
      const connection = this.connections.peekIdle(now)
      if (connection !== undefined && this.validation.isReady(connection, now)) {
        this.connections.remove(connection)
        this.waiters.onImmediateCheckout()
        this.assign(connection, now, 0, caller, callback)
        return nothing
      }
    }
    const failure = isUrgent ? undefined : rejectionOf(this, this.opener, holding, caller, now)
    if (failure !== undefined) {
      callback(failure, undefined)
      return nothing
    }
    const waiter = new Waiter(now, deadline, holding, caller, callback, isUrgent)
    this.waiters.add(waiter)
    // at least one idle connection is assigned, even if a connection is still being validated for a
    // caller that has cancelled, because validation may take long
    this.matchWaiters(1)
    return () => void this.waiters.remove(waiter)
  }

  /**
   * Checks in a connection: assigns it to the next waiter, keeps it idle, or closes it, for example
   * if it is in a transaction. After an interruption this happens when the interrupted statement
   * has stopped.
   */
  checkin(connection: Connection): void {
    const now = clock.now()
    this.leakDetection?.remove(connection)
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
      // a busy connection is being cancelled, and closes itself when the server has answered
      if (!connection.busy) connection.destroy(connection.broken)
      return
    }
    // no caller waits for a statement in progress, so it is cancelled
    if (connection.busy || connection.status !== "I") return connection.abort("dirty")
    const { onReturn } = this.options.tasks
    if (onReturn === undefined || this.onEmpty !== undefined) return this.release(connection, now)
    this.tasks.run(onReturn, connection, this.options.pool.connectTimeout, (failure) => {
      if (failure !== undefined) return connection.destroy("dirty")
      this.events.reset(connection)
      this.release(connection, clock.now())
    })
  }

  private assign(
    connection: Connection,
    now: number,
    waited: number,
    caller: Caller | undefined,
    callback: OnCheckout
  ): void {
    connection.checkedOutAt = now
    this.leakDetection?.add(connection, now, caller)
    this.events.checkedOut(connection, waited, caller?.label)
    callback(undefined, connection)
  }

  /** Assigns a validated connection to the first waiter, or releases it. */
  private assignToNextWaiter(connection: Connection, now: number): void {
    const waiter = this.isPaused ? undefined : this.waiters.removeFirst(now)
    if (waiter === undefined) return this.release(connection, now)
    // the first use of a new connection does not show how fast connections are checked in
    if (connection.checkedOutAt > 0) this.opener.growth.onServed()
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
    if (this.waiters.size > 0 && !this.isPaused) return this.validateThenAssign(connection, now, isNew)
    if (strategy === "none" || this.connections.exceeds(maxConnections)) return connection.end("excess")
    this.connections.addIdle(connection)
    this.onReturned?.()
  }

  /**
   * Validates and assigns an idle connection for each waiter without one, and opens connections if
   * too few are idle. Uses at least `minimum` idle connections, if there are as many.
   */
  private matchWaiters(minimum = 0): void {
    for (let count = 0; !this.isPaused && (count < minimum || this.waiters.size > this.validation.count); count++) {
      const now = clock.now()
      const connection = this.connections.peekIdle(now)
      if (connection === undefined) break
      this.connections.remove(connection)
      this.validateThenAssign(connection, now, false)
    }
    this.opener.openIfNeeded()
  }

  /**
   * Assigns a connection to a waiter: at once, or after it was validated and `onCheckout` has run.
   */
  private validateThenAssign(connection: Connection, now: number, isNew: boolean): void {
    if (this.validation.isReady(connection, now, isNew)) return this.assignToNextWaiter(connection, now)
    this.validation.validate(connection, now, isNew, (result) => {
      if (result._tag === "valid") return this.assignToNextWaiter(connection, clock.now())
      if (result._tag === "vetoed") {
        if (isNew) this.opener.reject(connection, result.error, connection.createdAt)
        else connection.destroy("vetoed")
      }
      this.matchWaiters()
    })
  }

  /** Holds checkouts back. `onReturned` is called when fewer connections are in use. */
  pause(onReturned: () => void): void {
    this.isPaused = true
    this.onReturned = onReturned
    this.waiters.suspendSheddingUntil(Number.POSITIVE_INFINITY)
    // a connect in progress would fail the callers that are held back, or run `onConnect` on a
    // server that is about to stop
    this.opener.restart()
  }

  /** Serves the callers that were held back. */
  resume(): void {
    if (!this.isPaused) return
    this.isPaused = false
    this.onReturned = undefined
    // the queue of the pause does not show the throughput of the pool
    this.waiters.suspendSheddingUntil(clock.now() + sheddingPause)
    this.matchWaiters()
  }

  private onLost(connection: Connection, error: Error): void {
    this.connections.suspectAll()
    this.connections.remove(connection)
    this.events.lost(connection, error)
    this.options.locator?.doubt(connection.server.name)
    if (this.connections.openCount === 0) this.waiters.suspendSheddingUntil(clock.now() + sheddingPause)
  }

  private onClosed(connection: Connection, reason: CloseReason): void {
    this.connections.delete(connection)
    this.leakDetection?.remove(connection)
    this.events.closed(connection, reason)
    this.tasks.onConnectionClosed(connection)
    this.onReturned?.()
    if (reason === "wrongRole") this.connections.retireAll(reason, connection)
    if (this.onEmpty === undefined) this.opener.openIfNeeded()
    else if (this.connections.all.size === 0) this.onEmpty()
  }

  /**
   * Invalidates open connections, and returns their number. Without `processId` it invalidates
   * connects in progress, too.
   */
  invalidate({ before, mode, processId }: Invalidation): number {
    if (processId === undefined) this.opener.invalidate(before)
    const matches = this.connections.invalidate(mode, before, processId)
    this.events.invalidated(mode, matches)
    return matches
  }

  /**
   * Retires the connections to all hosts but one, after that host has become the writer. With an
   * error, the connections in use are given up at once.
   */
  retireOtherHosts(host: string, error: Error | undefined): void {
    this.connections.retireOtherHosts(host, error)
    this.opener.restart()
  }

  /** Returns the activity of the connections to a host, and of the connects to it. */
  activityOf(host: string): HostActivity {
    const activity = this.connections.activityOf(host)
    return { ...activity, waitsSince: Math.min(activity.waitsSince, this.opener.pendingConnects.oldestStart) }
  }

  /**
   * Gives up all connections to a host that does not answer, those in use included. Waiters wait for
   * another host, if there is a locator, and fail otherwise.
   */
  giveUpHost(host: string, error: Error): void {
    this.connections.giveUpHost(host, error)
    if (this.options.locator === undefined) this.opener.giveUp(error)
    else this.opener.restart()
  }

  /**
   * Closes the pool: fails the waiters and all later checkouts, waits up to `timeout` ms for
   * connections in use, then aborts them. `callback` is called when all connections are closed. A
   * second call may shorten the wait.
   */
  close(timeout: number, callback: () => void, failure = closedFailure(this)): void {
    const cutOff = clock.timer(timeout, () => this.connections.abortAll("shutdown"))
    const before = this.onEmpty
    this.onEmpty = () => {
      clock.clear(cutOff)
      this.onEmpty = nothing
      if (before === undefined) this.metrics.close()
      else before()
      callback()
    }
    if (before === undefined) {
      this.closed = failure
      this.leaveOutageWaiters()
      shutDown(this, this.opener, failure)
    }
    if (this.connections.all.size === 0) this.onEmpty()
  }
}
