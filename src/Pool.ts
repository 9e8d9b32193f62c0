/**
 * The connections to one server for one purpose: who gets one, how many there are, when they live and die.
 *
 * Callbacks, not fibers: a checkout of an idle connection is a few plain function calls.
 *
 * @since 0.1.0
 */
import type { ConnectFailure, Connection, Owner } from "./Connection.js"
import type { PoolConfig, ServerConfig, SessionConfig } from "./DatabaseConfig.js"
import { ConnectFailed, DatabaseClosed, PoolExhausted, PoolSelfDeadlock } from "./DatabaseError.js"
import type { CredentialSource } from "./internal/credentials.js"
import { later } from "./internal/later.js"
import { type Meter, makeMeter } from "./internal/meter.js"
import { open } from "./internal/opening.js"
import type { Borrower } from "./internal/pool/borrower.js"
import { type Demand, Growth } from "./internal/pool/growth.js"
import { type Loan, Loans } from "./internal/pool/loans.js"
import { Overload } from "./internal/pool/overload.js"
import { Stock } from "./internal/pool/stock.js"
import { type Waiter, Waiters } from "./internal/pool/waiters.js"
import { Observation, type Observer } from "./Observation.js"
import { isTransient } from "./SqlState.js"

/**
 * Why a checkout failed. Nothing was sent in any of them.
 *
 * @since 0.1.0
 * @category models
 */
export type CheckoutError = ConnectFailed | PoolExhausted | PoolSelfDeadlock | DatabaseClosed

/**
 * Called once with a connection or a failure, unless the checkout was given up.
 *
 * @since 0.1.0
 * @category models
 */
export type OnCheckout = (error: CheckoutError | undefined, connection: Connection | undefined) => void

/**
 * A pool's figures at one moment.
 *
 * @since 0.1.0
 * @category models
 */
export interface Figures {
  /** How many connections are kept open though they are idle. */
  readonly min: number
  readonly max: number
  /** How many there may be beyond `max`, for as long as they are in use. */
  readonly maxOverflow: number
  readonly total: number
  readonly active: number
  readonly idle: number
  readonly connecting: number
  readonly waiting: number
  /** Whether those who wait for longer than `queueTarget` are sent away, because more come than can be served. */
  readonly overloaded: boolean
  /** The last failure to connect, if there was one since the last success. */
  readonly lastConnectFailure: string | undefined
}

/**
 * Something to be done with a connection at a point of its life. It calls back once; after a failure the connection is closed. The returned
 * function stops it, when it has taken too long or its connection is gone.
 *
 * @since 0.1.0
 * @category models
 */
export type SessionTask = (connection: Connection, done: (failure: Error | undefined) => void) => () => void

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

const longestTimer = 2_147_483_647

/** How long a connection may take for a sign of life, in ms. */
const longestPing = 1000

/** Asks for a sign of life. */
const ping: SessionTask = (connection, done) => {
  connection.ping((failure) => done(failure?.error))
  return nothing
}

/** After how long a server that let in no more is asked again, in ms. */
const pauses = { shortest: 100, longest: 1000 }

/**
 * The connections to one server for one purpose.
 *
 * @since 0.1.0
 * @category models
 */
export class Pool {
  private readonly stock: Stock
  private readonly waiters: Waiters<OnCheckout>
  private readonly growth: Growth
  private readonly loans: Loans | undefined
  private readonly meter: Meter
  /** How to give up each connect that is under way, and when it was begun. */
  private readonly connecting = new Map<() => void, number>()
  /** Connections in the hands of a task, and how to end it. */
  private readonly inTask = new Map<Connection, (failure: Error) => void>()
  /** How many of them are on their way to a waiter. */
  private preparing = 0
  /** How many of them are new. */
  private arriving = 0
  private onEmpty: (() => void) | undefined
  private lastConnectFailure: ConnectFailure | undefined
  private failures = 0
  private retry: NodeJS.Timeout | undefined
  /** Whether the server lets in no more, so that waiters have to do with what is open. */
  private isShut = false
  /** What was begun before this moment does not join. */
  private invalidBefore = Number.NEGATIVE_INFINITY
  private hasConnected = false
  private readonly owner: Owner

  constructor(readonly options: PoolOptions) {
    const { leakThreshold, maxConnections, queueTarget, strategy } = options.pool
    this.stock = new Stock(options.pool)
    this.waiters = new Waiters(new Overload(queueTarget, maxConnections), (waiter, why) =>
      this.fail(waiter, this.exhausted(why, waiter.since))
    )
    this.growth = new Growth(
      () => this.demand,
      () => this.open(),
      strategy === "none"
    )
    this.loans =
      Number.isFinite(leakThreshold) || strategy === "assertSingle"
        ? new Loans(leakThreshold, ({ processId }, held, who) =>
            options.observer.observe(
              Observation.Leaked({ ...this.place, processId, held, fiber: who?.fiber, place: who?.place })
            )
          )
        : undefined
    this.meter = makeMeter(
      {
        database: options.database,
        purpose: options.readOnly ? "reads" : "writes",
        server: options.server,
        idleMin: options.pool.minConnections,
        idleMax: strategy === "none" ? 0 : maxConnections
      },
      () => ({ ...this.figures, max: this.limit })
    )
    options.credentials.follow((generation) => this.stock.retireOlder(generation))
    this.owner = {
      operated: this.meter.operated,
      lost: (connection, error) => {
        this.stock.suspectAll()
        this.stock.take(connection)
        this.observe(() => Observation.Lost({ ...this.place, processId: connection.processId, message: error.message }))
      },
      closed: (connection, reason) => {
        this.stock.take(connection)
        this.stock.all.delete(connection)
        this.loans?.remove(connection)
        this.observe(() => Observation.Closed({ ...this.place, processId: connection.processId, reason }))
        this.inTask.get(connection)?.(new Error("its connection was closed"))
        if (this.onEmpty === undefined) this.grow()
        else if (this.stock.all.size === 0) this.onEmpty()
      }
    }
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
  get figures(): Figures {
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
      connecting: this.connecting.size,
      waiting: this.waiters.size,
      overloaded: this.waiters.isOverloaded,
      lastConnectFailure: this.lastConnectFailure?.error.message
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
    const now = performance.now()
    if (this.waiters.size === 0 && this.options.tasks.onCheckout === undefined) {
      const connection = this.stock.next(now)
      if (connection !== undefined && !this.stock.isSuspect(connection, now)) {
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
    const waiter = { since: now, settle, holding, who }
    this.waiters.add(waiter, deadline)
    this.serve()
    return () => void this.waiters.remove(waiter)
  }

  /** Takes a connection back: the next waiter's, or idle, or closed where it is not as it was handed out. */
  checkin(connection: Connection): void {
    const now = performance.now()
    const { observer } = this.options
    const used = now - connection.takenAt
    this.loans?.remove(connection)
    this.meter.used(used)
    if (observer.active) {
      observer.observe(Observation.CheckedIn({ ...this.place, processId: connection.processId, used }))
    }
    if (connection.broken !== undefined) {
      // a cancelled one is still busy: it closes itself when the server has answered
      if (!connection.busy) connection.destroy(connection.broken)
      return
    }
    if (connection.busy || connection.status !== "I") return connection.destroy("dirty")
    const { onReturn } = this.options.tasks
    if (onReturn === undefined || this.onEmpty !== undefined) return this.offer(connection, now)
    this.perform(onReturn, connection, this.options.pool.connectTimeout, (failure) => {
      if (failure !== undefined) return connection.destroy("dirty")
      this.observe(() => Observation.Reset({ ...this.place, processId: connection.processId }))
      this.offer(connection, performance.now())
    })
  }

  /** Closes connections that are open; gives how many it meant. */
  invalidate({ before, mode, processId }: Invalidation): number {
    if (processId === undefined) this.invalidBefore = Math.max(this.invalidBefore, before)
    const meant = [...this.stock.all].filter(
      (connection) =>
        connection.broken === undefined &&
        connection.createdAt <= before &&
        (processId === undefined || connection.processId === processId)
    )
    for (const connection of meant) {
      connection.retireAt = Number.NEGATIVE_INFINITY
      connection.retireAs = "invalidated"
      if (mode === "soft") continue
      if (this.stock.idle.includes(connection)) {
        this.stock.take(connection)
        connection.end("invalidated")
      } else connection.abort("invalidated")
    }
    this.observe(() => Observation.Invalidated({ ...this.place, mode, connections: meant.length }))
    return meant.length
  }

  /** No new checkouts; waits for what is in use until `timeout` ms have passed, then cuts it off. `done` is called when all is closed. */
  close(timeout: number, done: () => void): void {
    const cutOff = setTimeout(
      () => {
        for (const connection of this.stock.all) connection.abort("shutdown")
      },
      Math.min(timeout, longestTimer)
    )
    this.onEmpty = () => {
      clearTimeout(cutOff)
      this.onEmpty = nothing
      this.meter.close()
      done()
    }
    this.growth.stop()
    this.stock.stop()
    this.loans?.stop()
    clearTimeout(this.retry)
    for (const giveUp of this.connecting.keys()) giveUp()
    this.connecting.clear()
    for (const waiter of this.waiters.clear()) waiter.settle(new DatabaseClosed(this.place), undefined)
    // nobody waits for what is being made ready
    for (const connection of this.inTask.keys()) connection.destroy("shutdown")
    for (const connection of this.stock.idle.splice(0)) connection.end("shutdown")
    if (this.stock.all.size === 0) this.onEmpty()
  }

  private get place(): { readonly database: string; readonly server: string } {
    return { database: this.options.database, server: this.options.server.name }
  }

  /** The most connections that there may ever be. */
  private get limit(): number {
    return this.options.pool.maxConnections + this.options.pool.maxOverflow
  }

  private get demand(): Demand {
    const waiting = this.waiters.size
    const { open } = this.stock
    const busy = open - this.stock.idle.length
    const connecting = this.connecting.size
    const coming = this.arriving + connecting - this.lateConnects
    const room = this.limit - this.stock.all.size - connecting
    const wanted = this.isShut && open > 0 ? 0 : Math.min(waiting - this.preparing - coming, room)
    return { waiting, wanted, busy, coming, isEmpty: open === this.arriving }
  }

  /** How many connects have taken so long that nobody counts on them. */
  private get lateConnects(): number {
    const since = performance.now() - this.growth.hope
    let late = 0
    for (const start of this.connecting.values()) if (start <= since) late++
    return late
  }

  private observe(make: () => Observation): void {
    if (this.options.observer.active) this.options.observer.observe(make())
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
    const waited = performance.now() - since
    const oldest = reason === "single" ? this.first : this.loans?.oldest
    if (reason !== "single") this.meter.timedOut()
    this.observe(() => Observation.Exhausted({ ...this.place, reason, waited }))
    // under overload these are many, and the stack of a callback tells nobody anything
    const { stackTraceLimit } = Error
    Error.stackTraceLimit = 0
    const error = new PoolExhausted(
      {
        ...this.place,
        reason,
        waited,
        total,
        active,
        idle,
        waiting,
        ...(lastConnectFailure === undefined ? {} : { lastConnectFailure }),
        ...(oldest === undefined
          ? {}
          : {
              oldestLoan: { held: performance.now() - oldest.since, fiber: oldest.who?.fiber, place: oldest.who?.place }
            })
      },
      // the values are our own
      { disableValidation: true }
    )
    Error.stackTraceLimit = stackTraceLimit
    return error
  }

  /** Who has the connection that only one may have, or is about to. */
  private get first(): Loan | undefined {
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
    const { observer } = this.options
    connection.takenAt = now
    this.loans?.add(connection, now, who)
    this.meter.waited(waited)
    if (observer.active) {
      observer.observe(Observation.CheckedOut({ ...this.place, processId: connection.processId, waited }))
    }
    settle(undefined, connection)
  }

  /** Gives a connection that is known to be good to the waiter who waited longest, or makes it idle. */
  private give(connection: Connection, now: number): void {
    const waiter = this.waiters.take(now)
    if (waiter === undefined) return this.offer(connection, now)
    this.growth.serve()
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

  /** Brings idle connections and waiters together, and opens connections for the rest. */
  private serve(): void {
    while (this.waiters.size > this.preparing) {
      const now = performance.now()
      const connection = this.stock.next(now)
      if (connection === undefined) break
      this.stock.take(connection)
      this.hand(connection, now, false)
    }
    this.grow()
  }

  /** Gives a connection to a waiter, at once or when it has shown that it is fit for that. */
  private hand(connection: Connection, now: number, isNew: boolean): void {
    const { onCheckout } = this.options.tasks
    const isSuspect = !isNew && this.stock.isSuspect(connection, now)
    if (onCheckout === undefined && !isSuspect) return this.give(connection, now)
    this.preparing++
    const ready = () => {
      this.preparing--
      const now = performance.now()
      const due = this.stock.due(connection, now)
      if (connection.broken === undefined) {
        if (due === undefined) return this.give(connection, now)
        connection.end(due)
      }
      // it was invalidated meanwhile
      this.serve()
    }
    const admit = () => {
      if (onCheckout === undefined) return ready()
      this.perform(onCheckout, connection, this.options.pool.connectTimeout, (failure) => {
        if (failure === undefined) return ready()
        this.preparing--
        if (isNew) this.reject(connection, failure, connection.createdAt)
        else connection.destroy("vetoed")
        this.serve()
      })
    }
    if (!isSuspect) return admit()
    const { pool, session } = this.options
    // a pooler answers when it has a server free
    const patience = session.mode === "session" ? Math.min(pool.connectTimeout, longestPing) : pool.connectTimeout
    this.perform(ping, connection, patience, (failure) => {
      if (failure === undefined) return admit()
      this.preparing--
      // one that was closed on request says nothing of the others
      if (connection.broken === undefined || connection.broken === "broken") this.discardOlder(now)
      connection.destroy("invalid")
      this.serve()
    })
  }

  /** What has been silent since then is not asked one by one. */
  private discardOlder(moment: number): void {
    this.stock.suspectAll()
    for (const connection of [...this.stock.idle]) {
      if (connection.lastAnswer > moment) continue
      this.stock.take(connection)
      connection.destroy("invalid")
    }
  }

  /** Lets a task have a connection. `done` is called once, in time; a connection that is closed meanwhile is a failure. */
  private perform(
    task: SessionTask,
    connection: Connection,
    limit: number,
    done: (failure: Error | undefined) => void
  ): void {
    let stop = nothing
    const end = (failure: Error | undefined) => {
      if (this.inTask.get(connection) !== end) return
      this.inTask.delete(connection)
      takeBack()
      done(failure)
      if (failure !== undefined) stop()
    }
    const takeBack = later(limit, () => end(new Error(`it was not done within ${limit} ms`)))
    this.inTask.set(connection, end)
    stop = task(connection, end)
  }

  /** Opens connections for those who wait, and those that are kept warm. */
  private grow(): void {
    if (this.onEmpty !== undefined) return
    this.growth.ask()
    const { minConnections } = this.options.pool
    while (this.retry === undefined && this.stock.all.size + this.connecting.size < minConnections) this.open()
  }

  private open(): void {
    const { credentials, pool, readOnly, server, session, tasks } = this.options
    const start = performance.now()
    const giveUp = open(
      { credentials, readOnly, server, session, timeout: pool.connectTimeout },
      this.owner,
      (failure, connection) => {
        clearTimeout(late)
        this.connecting.delete(giveUp)
        if (failure !== undefined) return this.failed(failure, start)
        if (connection === undefined) return
        this.stock.add(connection)
        if (tasks.onConnect === undefined) return this.opened(connection, start)
        this.arriving++
        this.perform(tasks.onConnect, connection, pool.connectTimeout, (error) => {
          this.arriving--
          if (error === undefined) this.opened(connection, start)
          else this.reject(connection, error, start)
        })
      }
    )
    this.connecting.set(giveUp, start)
    // one that takes for ever holds up nobody, not even the one for whom it was begun; where all do, more of them would be no help
    const late = setTimeout(() => {
      if (this.lateConnects === 1) this.growth.ask()
    }, this.growth.hope + 1)
    late.unref()
  }

  private opened(connection: Connection, start: number): void {
    const now = performance.now()
    const isFirst = !this.hasConnected
    this.hasConnected = true
    this.lastConnectFailure = undefined
    this.failures = 0
    this.isShut = false
    this.growth.connected(now - start)
    this.meter.created(now - start)
    this.observe(() =>
      Observation.Connected({ ...this.place, processId: connection.processId, took: now - start, isFirst })
    )
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
    else if (broken !== "invalidated" && broken !== "shutdown") this.failed({ reason: "setup", error })
  }

  /** `start` is when the connect was begun: who came after that is not the one for whom it was tried. */
  private failed(failure: ConnectFailure, start = Number.POSITIVE_INFINITY): void {
    if (this.onEmpty !== undefined) return
    const { reason } = failure
    const error = new ConnectFailed({ ...this.place, reason, cause: failure.error })
    this.lastConnectFailure = failure
    this.observe(() => Observation.ConnectFailed({ ...this.place, reason, message: failure.error.message }))
    this.retryLater()
    // where connections are open, a server that lets in no more, and says so soon, is no reason to fail those whom they can serve
    const isSoon = performance.now() - start < this.growth.hope
    this.isShut = isSoon || (reason !== "unreachable" && reason !== "unresponsive")
    if (this.isShut && this.stock.open > 0) return
    this.options.onHealth?.(false, failure.error.message)
    // what a person must mend fails all who wait; anything else the one for whom it was tried
    const all = !isTransient(reason)
    for (const waiter of [...this.waiters]) {
      if (!all && waiter.since > start) break
      this.fail(waiter, error)
      if (!all) break
    }
    this.growth.ask()
  }

  private retryLater(): void {
    if (this.retry !== undefined) return
    const pause = Math.min(pauses.shortest * 2 ** this.failures++, pauses.longest)
    this.retry = setTimeout(() => {
      this.retry = undefined
      this.isShut = false
      this.grow()
    }, pause)
    this.retry.unref()
  }
}
