/**
 * The connections to one server for one purpose: who gets one, how many there are, when they live and die.
 *
 * Callbacks, not fibers: a checkout of an idle connection is a few plain function calls.
 *
 * @since 0.1.0
 */

import type { PoolConfig, ServerConfig, SessionConfig } from "../../DatabaseConfig.js"
import { ConnectFailed, DatabaseClosed, type PoolExhausted, PoolSelfDeadlock } from "../../DatabaseError.js"
import type { Observer } from "../../Observation.js"
import type { CheckoutError, PoolStats } from "../../Pool.js"
import * as clock from "../concurrency/clock.js"
import { mayPass, permanence } from "../connection/connectFailure.js"
import type { ConnectFailure, Connection, Owner } from "../connection/connection.js"
import type { CredentialSource } from "../connection/credentials.js"
import type { ErrorLocation } from "../connection/statementError.js"
import { makePoolMetrics, type PoolMetrics } from "../observability/poolMetrics.js"
import type { Borrower } from "./borrower.js"
import { ConnectBackoff, initialPause } from "./connectBackoff.js"
import { Connections } from "./connections.js"
import { ConnectionTasks, type SessionTask } from "./connectionTasks.js"
import { PoolEvents } from "./events.js"
import { exhaustedError } from "./exhaustedError.js"
import { type Demand, Growth } from "./growth.js"
import { type Checkout, LeakDetection } from "./leakDetection.js"
import { LoadShedding } from "./loadShedding.js"
import type { OutageWaiters } from "./outageWaiters.js"
import { PendingConnects } from "./pendingConnects.js"
import { Validation } from "./validation.js"
import { Waiter, WaitQueue } from "./waitQueue.js"

export type { SessionTask }

/**
 * Called once with a connection or a failure, unless the checkout was given up.
 *
 * @since 0.1.0
 * @category models
 */
export type OnCheckout = (error: CheckoutError | undefined, connection: Connection | undefined) => void

/**
 * What is done with connections where the settings ask for it.
 *
 * @since 0.1.0
 * @category models
 */
export interface SessionTasks {
  /** Before a new connection is handed out for the first time. */
  readonly onConnect?: SessionTask | undefined
  /** Before each checkout. */
  readonly onCheckout?: SessionTask | undefined
  /** After each checkin. */
  readonly onReturn?: SessionTask | undefined
}

/**
 * What a pool is made of.
 *
 * @since 0.1.0
 * @category models
 */
export interface PoolOptions {
  readonly database: string
  readonly server: ServerConfig
  readonly pool: PoolConfig
  readonly session: SessionConfig
  readonly credentials: CredentialSource
  readonly tasks: SessionTasks
  /** Whether its sessions refuse writes. */
  readonly readOnly: boolean
  readonly observer: Observer
  /** @internal The callers of the database that wait while a server is away. */
  readonly outageWaiters: OutageWaiters
  /** Told whenever a connection was made, or could not be made. */
  readonly onHealth?: ((healthy: boolean, message: string) => void) | undefined
}

/**
 * Which connections an invalidation means.
 *
 * @since 0.1.0
 * @category models
 */
export interface Invalidation {
  /** `"soft"`: closed at their next checkout, or when they come back. `"hard"`: now, also those in use. */
  readonly mode: "soft" | "hard"
  /** Only those opened before this moment of `performance.now()`. */
  readonly before: number
  /** Only the one of this server process. */
  readonly processId?: number | undefined
}

const nothing = () => {}

/**
 * The connections to one server for one purpose.
 *
 * @since 0.1.0
 * @category models
 */
export class Pool {
  private readonly stock: Connections
  private readonly waiters: WaitQueue<OnCheckout>
  private readonly growth: Growth
  private readonly loans: LeakDetection | undefined
  private readonly meter: PoolMetrics
  private readonly connects: PendingConnects
  private readonly tasks = new ConnectionTasks()
  private readonly fitness: Validation
  private readonly outage = new ConnectBackoff(() => this.grow())
  /** How many connections are on their way to a waiter, but are looked at first. */
  private preparing = 0
  /** How many are new, and have something done with them first. */
  private arriving = 0
  private onEmpty: (() => void) | undefined
  /** What was begun before this moment does not join. */
  private invalidBefore = Number.NEGATIVE_INFINITY
  private readonly place: ErrorLocation
  private readonly journal: PoolEvents

  constructor(readonly options: PoolOptions) {
    const { credentials, pool, readOnly, server, session, tasks } = options
    this.place = { database: options.database, server: server.name }
    const { leakThreshold, maxConnections, queueTarget, strategy } = pool
    this.stock = new Connections(pool)
    this.fitness = new Validation(this.stock, this.tasks, pool, session, tasks.onCheckout)
    this.waiters = new WaitQueue(new LoadShedding(queueTarget, maxConnections), (waiter, why) =>
      this.fail(waiter, this.exhausted(why, waiter.since))
    )
    this.growth = new Growth(
      () => this.demand,
      () => this.open(),
      strategy === "none"
    )
    this.loans =
      Number.isFinite(leakThreshold) || strategy === "assertSingle"
        ? new LeakDetection(leakThreshold, (connection, held, who) => this.journal.leaked(connection, held, who))
        : undefined
    this.meter = makePoolMetrics(
      {
        database: options.database,
        purpose: readOnly ? "reads" : "writes",
        server,
        idleMin: pool.minConnections,
        idleMax: strategy === "none" ? 0 : maxConnections
      },
      () => ({ ...this.figures, max: this.limit })
    )
    this.journal = new PoolEvents(this.place, options.observer, this.meter)
    options.outageWaiters.add(() => (this.isOut ? this.waiters.size : 0))
    credentials.follow((generation) => this.stock.retireOlder(generation))
    const owner: Owner = {
      operated: this.meter.operated,
      noticed: (connection, notice) => this.journal.noticed(connection, notice),
      lost: (connection, error) => {
        this.stock.suspectAll()
        this.stock.take(connection)
        this.journal.lost(connection, error)
        if (this.stock.open === 0) this.waiters.rest(clock.now() + initialPause)
      },
      closed: (connection, reason) => {
        this.stock.take(connection)
        this.stock.all.delete(connection)
        this.loans?.remove(connection)
        this.journal.closed(connection, reason)
        this.tasks.closed(connection)
        if (reason === "wrongRole") this.stock.retireAll(reason, connection)
        if (this.onEmpty === undefined) this.grow()
        else if (this.stock.all.size === 0) this.onEmpty()
      }
    }
    this.connects = new PendingConnects(
      { credentials, readOnly, server, session, timeout: pool.connectTimeout },
      owner,
      () => this.growth.hope,
      () => this.growth.ask()
    )
  }

  /** Opens what `minConnections` asks for. */
  warm(): void {
    this.grow()
  }

  /** What a choice among servers goes by. */
  get load(): number {
    return this.stock.all.size - this.stock.idle.length + this.waiters.size
  }

  /** The figures of this moment. */
  get figures(): PoolStats {
    const { maxConnections, maxOverflow, minConnections } = this.options.pool
    const idle = this.stock.idle.length
    return {
      min: minConnections,
      max: maxConnections,
      maxOverflow,
      total: this.stock.all.size,
      // one that is on its way out is open still, but nobody's
      active: this.stock.open - idle,
      idle,
      connecting: this.connects.size,
      waiting: this.waiters.size,
      overloaded: this.waiters.isOverloaded,
      lastConnectFailure: this.outage.last?.error.message
    }
  }

  /**
   * Hands out a connection as soon as there is one: at once, in this call, where one is idle and fresh.
   *
   * `deadline` is a moment of `performance.now()`. `holding` are the connections that the caller holds already: where all those of
   * the pool are held by callers who wait for one more, waiting would be for ever. Without `who` it is nobody of the program, of whom
   * `assertSingle` takes no notice. The returned function gives up and leaks nothing.
   */
  checkout(
    deadline: number,
    holding: ReadonlyArray<Connection>,
    settle: OnCheckout,
    who?: Borrower | undefined
  ): () => void {
    if (this.onEmpty !== undefined) {
      settle(new DatabaseClosed(this.place), undefined)
      return nothing
    }
    const now = clock.now()
    if (this.waiters.size === 0) {
      const connection = this.stock.next(now)
      if (connection !== undefined && this.fitness.isKnown(connection, now)) {
        this.stock.take(connection)
        this.waiters.ease()
        this.lend(connection, now, 0, who, settle)
        return nothing
      }
    }
    const refusal = this.refusal(holding, who, now)
    if (refusal !== undefined) {
      settle(refusal, undefined)
      return nothing
    }
    const waiter = new Waiter(now, deadline, holding, who, settle)
    this.waiters.add(waiter)
    // an idle one is better than one that is being looked at for somebody who has left: that may take its time
    this.serve(1)
    return () => void this.waiters.remove(waiter)
  }

  /** Takes a connection back: the next waiter's, or idle, or closed where it is not as it was handed out. */
  checkin(connection: Connection): void {
    const now = clock.now()
    this.loans?.remove(connection)
    this.journal.checkedIn(connection, now - connection.takenAt)
    if (!connection.isStopping) return this.receive(connection, now)
    connection.onStopped = () => this.receive(connection, clock.now())
  }

  /** The next waiter's, or idle, or closed where it is not as it was handed out. */
  private receive(connection: Connection, now: number): void {
    if (connection.broken !== undefined) {
      // a cancelled one is still busy: it closes itself when the server has answered
      if (!connection.busy) connection.destroy(connection.broken)
      return
    }
    // the server is told to stop what nobody waits for any more
    if (connection.busy || connection.status !== "I") return connection.abort("dirty")
    const { onReturn } = this.options.tasks
    if (onReturn === undefined || this.onEmpty !== undefined) return this.offer(connection, now)
    this.tasks.perform(onReturn, connection, this.options.pool.connectTimeout, (failure) => {
      if (failure !== undefined) return connection.destroy("dirty")
      this.journal.reset(connection)
      this.offer(connection, clock.now())
    })
  }

  /** Closes connections that are open; gives how many it meant. */
  invalidate({ before, mode, processId }: Invalidation): number {
    if (processId === undefined) this.invalidBefore = Math.max(this.invalidBefore, before)
    const meant = this.stock.invalidate(mode, before, processId)
    this.journal.invalidated(mode, meant)
    return meant
  }

  /** No new checkouts; waits for what is in use until `timeout` ms have passed, then cuts it off. `done` is called when all is closed. */
  close(timeout: number, done: () => void): void {
    const cutOff = clock.timer(timeout, () => {
      for (const connection of this.stock.all) connection.abort("shutdown")
    })
    this.onEmpty = () => {
      clock.clear(cutOff)
      this.onEmpty = nothing
      this.meter.close()
      done()
    }
    this.growth.stop()
    this.stock.stop()
    this.loans?.stop()
    this.outage.stop()
    this.connects.giveUp()
    for (const waiter of this.waiters.clear()) waiter.settle(new DatabaseClosed(this.place), undefined)
    this.tasks.shutDown()
    for (const connection of this.stock.idle.splice(0)) connection.end("shutdown")
    if (this.stock.all.size === 0) this.onEmpty()
  }

  /** The most connections that there may ever be. */
  private get limit(): number {
    return this.options.pool.maxConnections + this.options.pool.maxOverflow
  }

  /** Checks if the server is away and no connection is left, so that callers wait for nothing but its return. */
  private get isOut(): boolean {
    return this.outage.isAway && this.stock.open === 0
  }

  private get demand(): Demand {
    const waiting = this.waiters.size
    const connecting = this.connects.size
    const room = this.limit - this.stock.all.size - connecting
    // asked for whoever waits, so the answer of a full pool is a short way
    if (room <= 0) return { waiting, wanted: 0, room, busy: 0, coming: 0, isEmpty: false }
    const { open } = this.stock
    const busy = open - this.stock.idle.length
    const coming = this.arriving + connecting - this.connects.late
    const isResting = this.outage.isPausing && (open > 0 ? this.outage.isShut : this.outage.isAway)
    const wanted = isResting ? 0 : waiting - this.preparing - coming
    return { waiting, wanted, room, busy, coming, isEmpty: open <= this.arriving }
  }

  /** Why a caller cannot even wait, if so. */
  private refusal(
    holding: ReadonlyArray<Connection>,
    who: Borrower | undefined,
    now: number
  ): CheckoutError | undefined {
    const { maxConnections, strategy } = this.options.pool
    if (strategy === "assertSingle" && who !== undefined && this.first !== undefined) {
      return this.exhausted("single", now)
    }
    if (this.wouldDeadlock(holding)) return new PoolSelfDeadlock({ ...this.place, maxConnections })
    if (this.isOut && !this.options.outageWaiters.hasRoom) {
      return this.exhausted("outage", now)
    }
    return this.waiters.turnsAway(now) ? this.exhausted("shed", now) : undefined
  }

  private wouldDeadlock(holding: ReadonlyArray<Connection>): boolean {
    const { all, idle } = this.stock
    if (holding.length === 0 || idle.length > 0 || all.size < this.limit) return false
    const stuck = new Set(holding)
    for (const waiter of this.waiters) for (const held of waiter.holding) stuck.add(held)
    for (const connection of all) if (!stuck.has(connection)) return false
    return true
  }

  private exhausted(reason: PoolExhausted["reason"], since: number): PoolExhausted {
    const { active, idle, lastConnectFailure, total, waiting } = this.figures
    const waited = clock.now() - since
    this.journal.exhausted(reason, waited)
    return exhaustedError(
      { ...this.place, reason, waited, total, active, idle, waiting },
      this.connects.progress,
      lastConnectFailure,
      reason === "single" ? this.first : this.loans?.oldest
    )
  }

  /** Who has the connection that only one may have, or is about to. */
  private get first(): Checkout | undefined {
    const loan = this.loans?.oldest
    if (loan?.who !== undefined) return loan
    for (const waiter of this.waiters) if (waiter.who !== undefined) return waiter
    return undefined
  }

  private fail(waiter: Waiter<OnCheckout>, error: CheckoutError): void {
    if (this.waiters.remove(waiter)) waiter.settle(error, undefined)
  }

  private lend(
    connection: Connection,
    now: number,
    waited: number,
    who: Borrower | undefined,
    settle: OnCheckout
  ): void {
    connection.takenAt = now
    this.loans?.add(connection, now, who)
    this.journal.checkedOut(connection, waited, who?.label)
    settle(undefined, connection)
  }

  /** Gives a connection that is known to be good to the waiter who waited longest, or makes it idle. */
  private give(connection: Connection, now: number): void {
    const waiter = this.waiters.take(now)
    if (waiter === undefined) return this.offer(connection, now)
    // what a new connection does at once says nothing of how soon those in use come back
    if (connection.takenAt > 0) this.growth.serve()
    this.lend(connection, now, now - waiter.since, waiter.who, waiter.settle)
  }

  /** A connection that nobody has: the next waiter's, or idle, or closed where it is one too many. */
  private offer(connection: Connection, now: number, isNew = false): void {
    if (connection.broken !== undefined) return
    if (this.onEmpty !== undefined) return connection.end("shutdown")
    const { maxConnections, strategy } = this.options.pool
    const due = this.stock.due(connection, now)
    if (due !== undefined) return connection.end(due)
    if (strategy === "none" && connection.takenAt > 0) return connection.end("excess")
    if (this.waiters.size > 0) return this.hand(connection, now, isNew)
    if (strategy === "none" || this.stock.isOver(maxConnections)) return connection.end("excess")
    this.stock.put(connection)
  }

  /** Brings idle connections and waiters together, at least so many if there are, and opens connections for the rest. */
  private serve(least = 0): void {
    for (let handed = 0; handed < least || this.waiters.size > this.preparing; handed++) {
      const now = clock.now()
      const connection = this.stock.next(now)
      if (connection === undefined) break
      this.stock.take(connection)
      this.hand(connection, now, false)
    }
    this.grow()
  }

  /** Gives a connection to a waiter, at once or when it has shown that it is fit for that. */
  private hand(connection: Connection, now: number, isNew: boolean): void {
    if (this.fitness.isKnown(connection, now, isNew)) return this.give(connection, now)
    this.preparing++
    this.fitness.look(connection, now, isNew, (verdict) => {
      this.preparing--
      if (verdict._tag === "fit") {
        const now = clock.now()
        const due = this.stock.due(connection, now)
        // it may have been invalidated meanwhile
        if (connection.broken === undefined) {
          if (due === undefined) return this.give(connection, now)
          connection.end(due)
        }
      } else if (verdict._tag === "dead") {
        // one that was closed on request says nothing of the others
        if (connection.broken === undefined || connection.broken === "broken") this.stock.discardSilent(now)
        connection.destroy("invalid")
      } else if (isNew) this.reject(connection, verdict.error, connection.createdAt)
      else connection.destroy("vetoed")
      this.serve()
    })
  }

  /** Opens connections for those who wait, and those that are kept warm. */
  private grow(): void {
    if (this.onEmpty !== undefined) return
    this.growth.ask()
    const { minConnections } = this.options.pool
    while (!this.outage.isPausing && this.stock.all.size + this.connects.size < minConnections) this.open()
  }

  private open(): void {
    const { pool, tasks } = this.options
    this.connects.begin((start, failure, connection) => {
      if (failure !== undefined) return this.failed(failure, start)
      if (connection === undefined) return
      this.stock.add(connection)
      if (tasks.onConnect === undefined) return this.opened(connection, start)
      this.arriving++
      this.tasks.perform(tasks.onConnect, connection, pool.connectTimeout, (error) => {
        this.arriving--
        if (error === undefined) this.opened(connection, start)
        else this.reject(connection, error, start)
      })
    })
  }

  private opened(connection: Connection, start: number): void {
    const now = clock.now()
    if (this.outage.isAway) this.waiters.rest(now + initialPause)
    this.outage.over()
    this.growth.connected(now - start)
    this.journal.connected(connection, now - start)
    this.options.onHealth?.(true, "connected")
    // begun before, come after: it is of the old kind all the same
    if (start < this.invalidBefore) connection.end("invalidated")
    else if (connection.generation < this.options.credentials.generation) connection.end("oldCredentials")
    else this.offer(connection, now, true)
  }

  /** A new connection is of no use. The next one would be of none, either, unless it was lost or closed on request. */
  private reject(connection: Connection, error: Error, start: number): void {
    const { broken } = connection
    connection.destroy("vetoed")
    if (broken === "broken") this.failed({ reason: "unreachable", error }, start)
    else if (broken === "wrongRole") this.failed({ reason: "wrongRole", error }, start)
    else if (broken !== "invalidated" && broken !== "shutdown") this.failed({ reason: "setup", error })
  }

  /** `start` is when the connect was begun: it was not tried for a caller that came after that. */
  private failed(failure: ConnectFailure, start = Number.POSITIVE_INFINITY): void {
    if (this.onEmpty !== undefined) return
    const { reason } = failure
    const now = clock.now()
    // its name leads elsewhere now: what is open may be on a server that is the writer no more
    if (reason === "wrongRole") this.stock.retireAll(reason)
    const isEmpty = this.stock.open === 0
    const error = new ConnectFailed({ ...this.place, reason, cause: failure.error, ...permanence(failure) })
    this.outage.failed(failure, now - start < this.growth.hope, isEmpty ? "needed" : "spare")
    this.journal.connectFailed(failure)
    // where connections are open, a server that lets in no more, and says so soon, is no reason to fail those whom they can serve
    if (this.outage.isShut && !isEmpty) return
    this.options.onHealth?.(false, failure.error.message)
    if (isEmpty) this.waiters.rest(now + initialPause)
    // what a person must mend fails all who wait; with nothing open it was tried for all who had come, else for the first of them
    const all = !mayPass(failure)
    for (const waiter of [...this.waiters]) {
      if (!all && waiter.since > start) break
      this.fail(waiter, error)
      if (!all && !isEmpty) break
    }
    this.growth.ask()
  }
}
