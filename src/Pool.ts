/**
 * The connections to one server for one purpose: who gets one, how many there are, when they live and die.
 *
 * Callbacks, not fibers: a checkout of an idle connection is a few plain function calls.
 *
 * @since 0.1.0
 */
import { type ConnectFailure, type Connection, connect, type Owner } from "./Connection.js"
import type { PoolConfig, ServerConfig, SessionConfig } from "./DatabaseConfig.js"
import { ConnectFailed, DatabaseClosed, PoolExhausted, PoolSelfDeadlock } from "./DatabaseError.js"
import { type Meter, makeMeter } from "./internal/meter.js"
import { type CloseReason, Observation, type Observer } from "./Observation.js"
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
  readonly max: number
  readonly total: number
  readonly active: number
  readonly idle: number
  readonly connecting: number
  readonly waiting: number
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
  /** Whether its sessions refuse writes. */
  readonly readOnly: boolean
  readonly observer: Observer
  /** Told whenever a connection was made, or could not be made. */
  readonly onHealth?: ((healthy: boolean, message: string) => void) | undefined
}

interface Waiter {
  readonly since: number
  readonly settle: OnCheckout
  readonly holding: ReadonlyArray<Connection>
  timer: NodeJS.Timeout | undefined
}

const nothing = () => {}

const longestTimer = 2_147_483_647

/** How long a connection may take for a sign of life, in ms. */
const longestPing = 1000

/** After how long a server that had no connection left is asked again, in ms. */
const crowdedPause = 100

/**
 * The connections to one server for one purpose.
 *
 * @since 0.1.0
 * @category models
 */
export class Pool {
  private readonly idle: Array<Connection> = []
  private readonly all = new Set<Connection>()
  private readonly lifetimes = new WeakMap<Connection, number>()
  private readonly waiters = new Set<Waiter>()
  private readonly connecting = new Set<() => void>()
  private validating = 0
  private closing = false
  private onEmpty: () => void = nothing
  private lastConnectFailure: ConnectFailure | undefined
  /** Connections that last answered before this moment are asked for a sign of life before they are handed out. */
  private suspectBefore = 0
  private sweeper: NodeJS.Timeout | undefined
  private readonly meter: Meter
  private readonly owner: Owner

  constructor(readonly options: PoolOptions) {
    const { pool, readOnly, server } = options
    const limits = { idleMin: pool.minConnections, idleMax: pool.maxConnections }
    const purpose = readOnly ? "reads" : "writes"
    this.meter = makeMeter({ database: options.database, server, purpose, ...limits }, () => this.figures)
    this.owner = {
      operated: this.meter.operated,
      lost: (connection, error) => {
        this.suspectBefore = performance.now()
        this.remove(connection)
        this.observe(() => Observation.Lost({ ...this.place, processId: connection.processId, message: error.message }))
      },
      closed: (connection, reason) => {
        this.remove(connection)
        this.all.delete(connection)
        this.observe(() => Observation.Closed({ ...this.place, processId: connection.processId, reason }))
        if (this.closing && this.all.size === 0) this.onEmpty()
        else this.grow()
      }
    }
  }

  /** Opens what `minConnections` asks for. */
  warm(): void {
    this.grow()
  }

  /** What a choice among servers goes by. */
  get load(): number {
    return this.all.size - this.idle.length + this.waiters.size
  }

  /** The figures of this moment. */
  get figures(): Figures {
    const { max } = this
    let open = 0
    // one that is on its way out is open still, but nobody's
    for (const connection of this.all) if (connection.broken === undefined) open++
    return {
      max,
      total: this.all.size,
      active: open - this.idle.length,
      idle: this.idle.length,
      connecting: this.connecting.size,
      waiting: this.waiters.size
    }
  }

  private get max(): number {
    return this.options.pool.maxConnections
  }

  private get place(): { readonly database: string; readonly server: string } {
    return { database: this.options.database, server: this.options.server.name }
  }

  /**
   * Hands out a connection as soon as there is one: at once, in this call, where one is idle and fresh.
   *
   * `deadline` is a moment of `performance.now()`. `holding` are the connections that the caller holds already: where all those of
   * the pool are held by callers who wait for one more, waiting would be for ever. The returned function gives up and leaks nothing.
   */
  checkout(deadline: number, holding: ReadonlyArray<Connection>, settle: OnCheckout): () => void {
    if (this.closing) {
      settle(new DatabaseClosed(this.place), undefined)
      return nothing
    }
    const now = performance.now()
    while (this.waiters.size === 0 && this.idle.length > 0) {
      const connection = this.pick()
      if (connection === undefined) break
      if (this.isAged(connection, now)) {
        connection.end("aged")
        continue
      }
      if (!this.isSuspect(connection, now)) {
        this.handOut(connection, now, now, settle)
        return nothing
      }
      this.idle.push(connection)
      break
    }
    if (this.wouldDeadlock(holding)) {
      settle(new PoolSelfDeadlock({ ...this.place, maxConnections: this.max }), undefined)
      return nothing
    }
    return this.wait(now, deadline, holding, settle)
  }

  /** Takes a connection back: the next waiter's, or idle, or closed where it is not as it was handed out. */
  checkin(connection: Connection): void {
    const now = performance.now()
    if (connection.takenAt > 0) this.meter.used(now - connection.takenAt)
    connection.takenAt = 0
    if (connection.broken !== undefined) {
      // a cancelled one is still busy: it closes itself when the server has answered
      if (!connection.busy) connection.destroy(connection.broken)
      return
    }
    if (connection.busy || connection.status !== "I") return connection.destroy("dirty")
    if (this.closing) return connection.end("shutdown")
    if (this.isAged(connection, now)) return connection.end("aged")
    if (this.give(connection, now)) return
    this.idle.push(connection)
    this.scheduleSweep()
  }

  /** No new checkouts; waits for what is in use until `timeout` ms have passed, then cuts it off. `done` is called when all is closed. */
  close(timeout: number, done: () => void): void {
    this.closing = true
    clearTimeout(this.sweeper)
    for (const give of this.connecting) give()
    this.connecting.clear()
    for (const waiter of [...this.waiters]) this.fail(waiter, new DatabaseClosed(this.place))
    const cutOff = setTimeout(
      () => {
        for (const connection of this.all) connection.abort("shutdown")
      },
      Math.min(timeout, longestTimer)
    )
    this.onEmpty = () => {
      clearTimeout(cutOff)
      this.onEmpty = nothing
      this.meter.close()
      done()
    }
    for (const connection of this.idle.splice(0)) connection.end("shutdown")
    if (this.all.size === 0) this.onEmpty()
  }

  private observe(make: () => Observation): void {
    if (this.options.observer.active) this.options.observer.observe(make())
  }

  /** From here on it is the caller's, until it comes back. */
  private handOut(connection: Connection, since: number, now: number, settle: OnCheckout): void {
    connection.takenAt = now
    this.meter.waited(now - since)
    settle(undefined, connection)
  }

  private pick(): Connection | undefined {
    return this.options.pool.order === "lifo" ? this.idle.pop() : this.idle.shift()
  }

  private isAged(connection: Connection, now: number): boolean {
    return now - connection.createdAt > (this.lifetimes.get(connection) ?? Number.POSITIVE_INFINITY)
  }

  private isSuspect(connection: Connection, now: number): boolean {
    return (
      connection.lastAnswer <= this.suspectBefore || now - connection.lastAnswer > this.options.pool.validateAfterIdle
    )
  }

  private remove(connection: Connection): void {
    const i = this.idle.indexOf(connection)
    if (i >= 0) this.idle.splice(i, 1)
  }

  private wouldDeadlock(holding: ReadonlyArray<Connection>): boolean {
    if (holding.length === 0 || this.idle.length > 0 || this.all.size < this.max) return false
    const stuck = new Set(holding)
    for (const waiter of this.waiters) for (const held of waiter.holding) stuck.add(held)
    for (const connection of this.all) if (!stuck.has(connection)) return false
    return true
  }

  private wait(since: number, deadline: number, holding: ReadonlyArray<Connection>, settle: OnCheckout): () => void {
    const waiter: Waiter = { since, settle, holding, timer: undefined }
    waiter.timer = setTimeout(
      () => {
        this.meter.timedOut()
        const { active, idle, total, waiting } = this.figures
        const last = this.lastConnectFailure
        this.fail(
          waiter,
          new PoolExhausted({
            ...this.place,
            waited: performance.now() - since,
            total,
            active,
            idle,
            waiting,
            ...(last === undefined ? {} : { lastConnectFailure: last.error.message })
          })
        )
      },
      Math.min(Math.max(0, deadline - since), longestTimer)
    )
    this.waiters.add(waiter)
    this.serve()
    return () => {
      clearTimeout(waiter.timer)
      this.waiters.delete(waiter)
    }
  }

  private fail(waiter: Waiter, error: CheckoutError): void {
    clearTimeout(waiter.timer)
    if (this.waiters.delete(waiter)) waiter.settle(error, undefined)
  }

  /** Gives a connection that is known to be good to the waiter who waited longest. */
  private give(connection: Connection, now: number): boolean {
    for (const waiter of this.waiters) {
      clearTimeout(waiter.timer)
      this.waiters.delete(waiter)
      this.observe(() => Observation.Waited({ ...this.place, waited: now - waiter.since }))
      this.handOut(connection, waiter.since, now, waiter.settle)
      return true
    }
    return false
  }

  /** Brings idle connections and waiters together, and opens connections for the rest. */
  private serve(): void {
    while (this.idle.length > 0 && this.waiters.size > this.validating) {
      const connection = this.pick()
      if (connection === undefined) break
      if (this.isSuspect(connection, performance.now())) this.validate(connection)
      else this.give(connection, performance.now())
    }
    this.grow()
  }

  private validate(connection: Connection): void {
    this.validating++
    const impatient = setTimeout(
      () => connection.destroy("invalid"),
      Math.min(this.options.pool.connectTimeout, longestPing)
    )
    const { lastAnswer } = connection
    connection.ping((failure) => {
      clearTimeout(impatient)
      this.validating--
      if (failure === undefined) return this.checkin(connection)
      connection.destroy("invalid")
      // what has been silent for as long is not asked one by one
      for (const other of [...this.idle]) {
        if (other.lastAnswer > lastAnswer) continue
        this.remove(other)
        other.destroy("invalid")
      }
      this.serve()
    })
  }

  /** Opens as many connections as are wanted and allowed. */
  private grow(): void {
    if (this.closing) return
    const { maxConnections, minConnections } = this.options.pool
    while (this.all.size + this.connecting.size < maxConnections) {
      const wanted = this.waiters.size - this.validating - this.connecting.size
      if (wanted <= 0 && this.all.size + this.connecting.size >= minConnections) return
      this.open()
    }
  }

  private open(): void {
    const { pool, readOnly, server, session } = this.options
    const start = performance.now()
    const give = connect(
      server,
      session,
      { timeout: pool.connectTimeout, readOnly, owner: this.owner },
      (failure, connection) => {
        this.connecting.delete(give)
        if (connection !== undefined) return this.opened(connection, start)
        if (failure !== undefined)
          this.failed(new ConnectFailed({ ...this.place, reason: failure.reason, cause: failure.error }), failure)
      }
    )
    this.connecting.add(give)
  }

  private opened(connection: Connection, start: number): void {
    const { maxLifetime } = this.options.pool
    this.lastConnectFailure = undefined
    this.all.add(connection)
    // up to 2.5 % less, so that connections made together do not die together
    this.lifetimes.set(connection, maxLifetime * (1 - Math.random() * 0.025))
    const took = performance.now() - start
    this.meter.created(took)
    this.observe(() => Observation.Connected({ ...this.place, processId: connection.processId, took }))
    this.options.onHealth?.(true, "connected")
    this.checkin(connection)
  }

  private failed(error: ConnectFailed, failure: ConnectFailure): void {
    this.lastConnectFailure = failure
    this.observe(() =>
      Observation.ConnectFailed({ ...this.place, reason: error.reason, message: failure.error.message })
    )
    this.options.onHealth?.(false, failure.error.message)
    if (error.reason === "tooManyConnections" && this.all.size > 0) {
      // one of ours may come free, or one of theirs: those who wait have their own deadline
      setTimeout(() => this.grow(), crowdedPause).unref()
      return
    }
    // what a person must mend fails all who wait; anything else the one for whom it was tried
    const all = !isTransient(error.reason)
    for (const waiter of [...this.waiters]) {
      this.fail(waiter, error)
      if (!all) break
    }
    if (this.waiters.size > 0) this.grow()
  }

  private scheduleSweep(): void {
    const { idleTimeout, maxLifetime } = this.options.pool
    const shortest = Math.min(idleTimeout, maxLifetime)
    if (this.sweeper !== undefined || !Number.isFinite(shortest)) return
    this.sweeper = setTimeout(
      () => {
        this.sweeper = undefined
        this.sweep()
        if (this.idle.length > 0) this.scheduleSweep()
      },
      Math.min(Math.max(shortest / 4, 10), 30_000)
    )
    this.sweeper.unref()
  }

  private sweep(): void {
    const now = performance.now()
    const { idleTimeout, minConnections } = this.options.pool
    // those that are on their way out are in `all` until their sockets are closed
    let spare = -minConnections
    for (const connection of this.all) if (connection.broken === undefined) spare++
    for (const connection of [...this.idle]) {
      const reason: CloseReason | undefined = this.isAged(connection, now)
        ? "aged"
        : spare > 0 && now - connection.lastAnswer > idleTimeout
          ? "idle"
          : undefined
      if (reason === undefined) continue
      spare--
      this.remove(connection)
      connection.end(reason)
    }
  }
}
