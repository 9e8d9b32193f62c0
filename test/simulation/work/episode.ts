/**
 * One episode: a program with two databases works for a virtual time, while faults happen; then all
 * faults end, and the episode checks that nothing is left.
 */
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as FiberRef from "effect/FiberRef"
import * as HashSet from "effect/HashSet"
import * as Layer from "effect/Layer"
import * as RandomService from "effect/Random"
import * as Scope from "effect/Scope"
import { DatabaseError } from "effect-db"
import { real, seedGlobals } from "../loop/globals.js"
import { loop } from "../loop/loop.js"
import { Random } from "../loop/random.js"
import { network } from "../network/socket.js"
import { Cluster } from "../postgres/cluster.js"
import { PostgresServer, type Reports } from "../postgres/server.js"
import type { Session } from "../postgres/session.js"
import { Call } from "./call.js"
import { App, Audit, type Databases } from "./databases.js"
import { inject, type PlannedFault, planFaults, type Scene } from "./faults.js"
import { type Knowledge, workOf } from "./kinds.js"
import { Ledger } from "./ledger.js"
import { type Period, planPeriods, untilNext } from "./periods.js"
import { type ClusterSettings, clustersOf, type EpisodeOptions, maxConnections, password } from "./settings.js"
import { Trace } from "./trace.js"

/** Violation of an invariant. */
export interface Violation {
  readonly invariant: string
  readonly message: string
  /** The number of the event. */
  readonly step: number
  /** The virtual time, in ms. */
  readonly at: number
}

/** Result of an episode. */
export interface EpisodeResult {
  readonly seed: string
  readonly hash: string
  readonly steps: number
  /** The virtual time, in ms. */
  readonly millis: number
  readonly calls: number
  readonly outcomes: Readonly<Record<string, number>>
  readonly faults: Readonly<Record<string, number>>
  /** The number of planned faults, also of those that are left out. */
  readonly planned: number
  readonly violation: Violation | undefined
  readonly trace: ReadonlyArray<string>
}

/** The time after the work in which everything comes to rest, in ms. */
const restTime = 180_000

/**
 * The time that a call without a limit of its own has beside the timeouts of a checkout and a statement,
 * in ms. A statement on a server that was restarted without a sign to the program is given up after 30 s
 * of silence, which are checked every 10 s, each time by a login and a query of 5 s at most.
 */
const spareTime = 55_000

/** The checkouts and statements of a call with several of them that may last until their timeouts. */
const slowStatements = 6

/** The most checkouts of a call with one statement that may last until their timeouts. */
const checkouts = 4

/** The pause between two checks of a call that waits, in ms. */
const recheck = 500

/** The kinds of calls with one statement. */
const singleKinds: ReadonlySet<string> = new Set(["mark", "insert", "sleep", "strong"])

/** The time that a call takes after its limit or interruption: its statement is cancelled and rolled back. */
const stopTime = 2500

/** The time for which a former primary may still be written to, beside the interval of the monitor, in ms. */
const staleTime = 4000

/** The number of events in one turn of the real event loop. */
const turnsAtOnce = 64

/** The time after the end of a call from which on none of its statements may run on an open connection, in ms. */
const lateStatement = 3000

/** The most callers of one pool that are parts of the library. */
const ownWaiters = 2

/** Running call. */
interface Running {
  readonly call: Call
  readonly fiber: Fiber.RuntimeFiber<unknown, unknown>
  readonly cancelDeadline: () => void
}

/** Episode of a simulation. */
export class Episode {
  readonly trace = new Trace()
  private readonly random: Random
  private readonly outcomes = new Map<string, number>()
  private readonly faultCounts = new Map<string, number>()
  private readonly running = new Map<number, Running>()
  /** The calls of which a server has received a statement. */
  private readonly served = new Set<number>()
  /** The times at which the calls have ended. */
  private readonly endedAt = new Map<number, number>()
  private readonly settings: readonly [ClusterSettings, ClusterSettings]
  private readonly clusters: readonly [Cluster, Cluster]
  private readonly byName: ReadonlyMap<string, Cluster>
  private readonly ledger: Ledger
  private readonly knowledge: Knowledge
  private readonly reports: Reports
  /** The last statement of each session: its call. */
  private readonly lastCall = new Map<Session, number>()
  private readonly effectRandom: RandomService.Random
  private violation: Violation | undefined
  private callCount = 0
  /** The number of planned faults, also of those that are left out. */
  private planned = 0
  private context: Context.Context<Databases> | undefined
  /** The time that the process of the program has stood still. */
  private stalled = 0

  constructor(private readonly options: EpisodeOptions) {
    this.random = new Random(options.seed)
    loop.reset()
    seedGlobals(this.random.fork("globals"))
    network.reset(this.random.fork("network"))
    this.effectRandom = RandomService.make(options.seed)
    this.reports = {
      violated: (invariant, message) => this.violated(invariant, message),
      broken: (cause) =>
        this.violated("simulation", cause instanceof Error ? (cause.stack ?? cause.message) : String(cause)),
      onStatement: (session, tag) => this.onStatement(session, tag),
      onCommit: (server, record) => {
        this.trace.add(`${server.name} commits ${record.xid} with ${record.changes.length} changes`)
        this.ledger.onCommit(server, record)
      },
      trace: (line) => this.trace.add(line)
    }
    this.settings = clustersOf(this.random.fork("settings"))
    const [app, audit] = this.settings
    this.clusters = [this.makeCluster(app), this.makeCluster(audit)]
    this.byName = new Map(this.settings.map(({ name }, i) => [name, this.clusters[i === 0 ? 0 : 1]]))
    this.ledger = new Ledger(this.byName, this.reports.violated)
    this.knowledge = { failovers: (database) => this.byName.get(database)?.failovers ?? 0 }
  }

  /** Runs the episode. It must be the only one at a time. */
  async run(): Promise<EpisodeResult> {
    const { isDense = false, millis, until = millis } = this.options
    const scope = Effect.runSync(Scope.make())
    let isOpen = false
    const [app, audit] = this.settings
    const layer = Layer.mergeAll(App.layer(app.options), Audit.layer(audit.options))
    this.fork(Layer.buildWithScope(layer, scope)).addObserver((exit) => {
      if (Exit.isFailure(exit)) return this.violated("startup", String(exit.cause))
      this.context = exit.value
      isOpen = true
    })
    await this.drive(() => isOpen, 60_000, "the layers are not built")
    const busy = isDense ? [{ from: 0, to: millis }] : planPeriods(this.random.fork("periods"), millis)
    this.planWork(busy, until)
    const faults = planFaults(this.random.fork("faults"), busy)
    for (const fault of faults) {
      if (fault.at < until && (this.options.faults?.includes(fault.number) ?? true)) this.planFault(fault)
    }
    this.planned = faults.filter(({ at }) => at < until).length
    await this.drive(() => loop.now >= until, until + 1, "the work does not end")
    const restsAt = until + restTime
    await this.drive(() => loop.now >= restsAt && this.running.size === 0, restTime * 2, "a call does not end")
    if (this.violation === undefined) this.ledger.check()
    // connections that are too old are replaced at rest, too
    await this.drive(
      () => this.inUse() === undefined,
      10_000,
      () => `at rest: ${this.inUse()}`,
      "leak"
    )
    let isClosed = false
    this.fork(Scope.close(scope, Exit.void)).addObserver((exit) => {
      if (Exit.isFailure(exit)) this.violated("shutdown", String(exit.cause))
      isClosed = true
    })
    await this.drive(() => isClosed, 10_000, "the layers are not released in time")
    const closedAt = loop.now
    await this.drive(() => loop.now >= closedAt + 20_000, 20_001, "nothing is scheduled")
    if (this.violation === undefined) this.checkClosed()
    return this.result()
  }

  /** Runs an effect with the random numbers of the episode, because those of Effect belong to the process. */
  private fork<A, E>(self: Effect.Effect<A, E>): Fiber.RuntimeFiber<A, E> {
    const quiet = Effect.locally(self, FiberRef.currentLoggers, HashSet.empty())
    return Effect.runFork(Effect.withRandom(quiet, this.effectRandom))
  }

  private makeCluster(settings: ClusterSettings): Cluster {
    const random = this.random.fork(`cluster ${settings.name}`)
    const [first, ...others] = settings.addresses.map((address, i) => {
      const server = new PostgresServer(
        {
          name: `${settings.name}${i + 1}`,
          systemId: settings.name === "app" ? "7300000000000000001" : "7300000000000000002",
          version: settings.version,
          authentication: settings.authentication,
          password,
          workMean: settings.workMean,
          maxConnections: 100
        },
        network.addHost(address, settings.latency, settings.jitter),
        random.fork(address),
        this.reports
      )
      server.serializationFailures = settings.serializationFailures
      return server
    })
    if (first === undefined) throw new Error("a cluster needs a server")
    loop.schedule(1, () => this.trace.add(`${settings.name}: ${JSON.stringify(describeSettings(settings))}`))
    return new Cluster([first, ...others], settings.replicationDelay, random.fork("replication"))
  }

  /** Plans the calls of the busy times, and a few between them. */
  private planWork(busy: ReadonlyArray<Period>, until: number): void {
    const { firstCall = 0, lastCall = Number.POSITIVE_INFINITY } = this.options
    const arrivals = this.random.fork("arrivals")
    let number = 0
    const next = () => {
      const isBusy = busy.some(({ from, to }) => loop.now >= from && loop.now < to)
      const pause = isBusy ? arrivals.pick([20, 200, 1000, 2000]) : 30_000
      const delay = Math.min(arrivals.exponential(pause), untilNext(busy, loop.now))
      if (loop.now + delay >= until) return
      loop.schedule(delay, () => {
        const id = number++
        if (id >= firstCall && id < lastCall) this.startCall(id)
        next()
      })
    }
    next()
  }

  private planFault(fault: PlannedFault): void {
    const scene: Scene = {
      network,
      clusters: this.clusters,
      trace: (line) => this.trace.add(line),
      onStall: (millis) => {
        this.stalled += millis
      }
    }
    loop.schedule(fault.at - loop.now, () => {
      this.faultCounts.set(fault.kind, (this.faultCounts.get(fault.kind) ?? 0) + 1)
      inject(scene, fault)
    })
  }

  private startCall(id: number): void {
    const { context } = this
    if (context === undefined) return
    this.callCount++
    const random = this.random.fork(`call ${id}`)
    const call = new Call(id, random, this.ledger, this.reports)
    const [kind, work] = workOf(call, this.knowledge)
    const way = random.weighted([
      ["free", 5],
      ["timeout", 3],
      ["interrupt", 2]
    ])
    const limit = random.exponential(random.pick([20, 300, 2000]))
    this.trace.add(`call ${id} ${kind} ${way} ${limit.toFixed(0)}`)
    const stop = Effect.sync(() => {
      call.isStopped = true
    })
    const limited =
      way === "timeout"
        ? Effect.timeout(
            Effect.onInterrupt(work, () => stop),
            limit
          )
        : work
    const fiber = this.fork(Effect.provide(DatabaseError.refine(limited), context))
    if (way === "interrupt") {
      loop.schedule(limit, () => {
        if (call.isEnded) return
        call.isStopped = true
        fiber.unsafeInterruptAsFork(fiber.id())
      })
    }
    const allowed = way === "free" ? this.longest(kind) : limit + stopTime
    const cancelDeadline = this.watchDeadline(call, kind, allowed)
    this.running.set(id, { call, fiber, cancelDeadline })
    if (way === "free" && singleKinds.has(kind)) this.watchCheckout(call)
    fiber.addObserver((exit) => {
      call.isEnded = true
      cancelDeadline()
      this.running.delete(id)
      this.endedAt.set(id, loop.now)
      const outcome = call.judge(exit)
      call.settle(exit)
      this.trace.add(`call ${id} ends: ${outcome}`)
      const name = `${kind} ${outcome}`
      this.outcomes.set(name, (this.outcomes.get(name) ?? 0) + 1)
      this.checkPools()
    })
  }

  /**
   * Fails if a call with one statement waits for a connection beyond `acquireTimeout`: no server has its
   * statement, and the program awaits no answer. A checkout is repeated if the connection was lost before
   * the statement was sent.
   */
  private watchCheckout(call: Call): void {
    const longest = Math.max(...this.settings.map(({ options }) => Number(options.acquireTimeout)))
    const before = this.stalled
    let counted = 0
    const watch = (delay: number) =>
      loop.schedule(delay, () => {
        if (call.isEnded || this.served.has(call.id)) return
        const more = this.stalled - before - counted
        counted += more
        if (more > 0) return void watch(more)
        const isAwaited = [...network.links].some((link) => link.isOpen && link.isAwaitingAnswer)
        if (isAwaited) watch(recheck)
        else this.violated("deadline", `call ${call.id} waits for a connection beyond its acquireTimeout`)
      })
    watch(longest * checkouts + stopTime)
  }

  /** Returns the longest time of a call without a limit of its own, in ms. */
  private longest(kind: string): number {
    const once = Math.max(
      ...this.settings.map(({ options }) => Number(options.acquireTimeout) + Number(options.statementTimeout))
    )
    return singleKinds.has(kind) ? once + spareTime : once * slowStatements + spareTime
  }

  /** Fails if a call has not ended in time. The time that the process stood still does not count. */
  private watchDeadline(call: Call, kind: string, allowed: number): () => void {
    const before = this.stalled
    let cancel = () => {}
    const watch = (left: number, counted: number) => {
      cancel = loop.schedule(left, () => {
        const more = this.stalled - before - counted
        if (more > 0) return watch(more, this.stalled - before)
        if (!call.isEnded)
          this.violated("deadline", `call ${call.id} (${kind}) has not ended after ${allowed.toFixed(0)} ms`)
      })
    }
    watch(allowed, 0)
    return () => cancel()
  }

  private onStatement(session: Session, tag: string): void {
    const { server } = session
    this.trace.add(`${server.name} ${session.processId} runs ${tag}`)
    const id = Number(tag.split(".")[0])
    this.served.add(id)
    this.lastCall.set(session, id)
    const [cluster, settings] = server.settings.name.startsWith("app")
      ? [this.clusters[0], this.settings[0]]
      : [this.clusters[1], this.settings[1]]
    this.checkStale(cluster, settings, session)
    this.checkLimit(settings, session)
    // an interrupted statement may arrive late, but its connection is closed by then
    const isLate = loop.now - (this.endedAt.get(id) ?? loop.now) > lateStatement
    if (isLate && session.link.isOpen) this.violated("crossing", `${tag} runs long after its call has ended`)
  }

  /** Checks that a session which may write is not on a former primary for long. */
  private checkStale(cluster: Cluster, { options }: ClusterSettings, { isReadOnlyByDefault, server }: Session): void {
    if (server.isStandby || server === cluster.primary || isReadOnlyByDefault) return
    const interval = Number(options.monitorInterval ?? 5000)
    if (cluster.primary.isHealthyFor(interval + staleTime)) {
      this.violated("stale writer", `${server.name} on timeline ${server.timeline} is written to`)
    }
  }

  /** Checks the number of sessions of one pool that serve calls which have not ended. */
  private checkLimit(settings: ClusterSettings, { isReadOnlyByDefault, server }: Session): void {
    let count = 0
    for (const session of server.sessions.values()) {
      if (session.isReadOnlyByDefault !== isReadOnlyByDefault || !session.link.isOpen || session.link.isDead) continue
      const running = this.running.get(this.lastCall.get(session) ?? -1)
      if (running !== undefined && !running.call.isStopped) count++
    }
    // a former replica may have a pool as a reader, and another one as the writer
    const pools = isReadOnlyByDefault && settings.addresses.length > 1 ? 2 : 1
    const limit = maxConnections(settings) * pools
    if (count > limit) {
      this.violated("limit", `${server.name} has ${count} sessions of one pool in use, and the limit is ${limit}`)
    }
  }

  /** Checks the figures of the pools. */
  private checkPools(): void {
    for (const [i, { servers }] of this.status().entries()) {
      const settings = this.settings[i === 0 ? 0 : 1]
      for (const { name, reads, writes } of servers) {
        for (const { idle, total, waiting } of writes === undefined ? [reads] : [reads, writes]) {
          if (total > maxConnections(settings)) this.violated("limit", `${name} has ${total} connections in one pool`)
          if (idle > total) this.violated("limit", `${name} has ${idle} idle of ${total} connections`)
          // questions of the library for the position of a server are callers as well
          if (waiting > this.running.size + ownWaiters) {
            this.violated("leak", `${name} has ${waiting} waiters for ${this.running.size} calls`)
          }
        }
      }
    }
  }

  private status() {
    const { context } = this
    return context === undefined ? [] : Effect.runSync(Effect.provide(Effect.all([App.status, Audit.status]), context))
  }

  /** Returns what is in use, if anything is. */
  private inUse(): string | undefined {
    for (const { servers, transactions } of this.status()) {
      if (transactions.length > 0) return `${transactions.length} transactions are open`
      for (const { name, reads, writes } of servers) {
        for (const { active, connecting, waiting } of writes === undefined ? [reads] : [reads, writes]) {
          if (active + connecting + waiting > 0) {
            return `${name} has ${active} connections in use, ${connecting} connecting, ${waiting} callers waiting`
          }
        }
      }
    }
    for (const { servers } of this.clusters) {
      for (const { locks, name, sessions } of servers) {
        for (const { processId, status } of sessions.values()) {
          if (status !== "I") return `session ${processId} of ${name} is in a transaction`
        }
        if (locks.size > 0) return `${name} has ${locks.size} locks`
      }
    }
    return undefined
  }

  /** Checks after the release of the layers that no socket and no timer is left. */
  private checkClosed(): void {
    const open = [...network.links].filter((link) => link.isOpen).length
    if (open + network.connecting > 0) this.violated("leak", `${open} sockets are open after the release`)
    if (loop.timers.size > 0) this.violated("leak", `${loop.timers.size} timers are set after the release`)
  }

  private violated(invariant: string, message: string): void {
    if (this.violation !== undefined) return
    this.violation = { invariant, message, step: loop.steps, at: loop.now }
    this.trace.add(`VIOLATION ${invariant}: ${message}`)
  }

  /** Runs events until a condition holds, or an invariant is violated. */
  private drive(
    until: () => boolean,
    limit: number,
    message: string | (() => string),
    invariant = "progress"
  ): Promise<void> {
    const deadline = loop.now + limit
    const isOver = (): boolean => {
      if (this.violation !== undefined || until()) return true
      if (loop.now > deadline) this.violated(invariant, typeof message === "string" ? message : message())
      return this.violation !== undefined
    }
    return new Promise((resolve) => {
      let hasEnded = false
      // microtasks and ticks run after each immediate callback of the real loop; several of them cost
      // one turn of it
      const turn = () => {
        if (hasEnded) return
        hasEnded = isOver()
        if (hasEnded) return resolve()
        // without any event the time may pass
        if (!loop.step()) loop.stall(1000)
      }
      const turns = () => {
        if (hasEnded) return
        for (let i = 0; i < turnsAtOnce; i++) real.setImmediate(turn)
        real.setImmediate(turns)
      }
      turns()
    })
  }

  private result(): EpisodeResult {
    this.trace.add(`end ${loop.steps}`)
    return {
      seed: this.options.seed,
      hash: this.trace.hash,
      steps: loop.steps,
      millis: loop.now,
      calls: this.callCount,
      outcomes: Object.fromEntries(this.outcomes),
      faults: Object.fromEntries(this.faultCounts),
      planned: this.planned,
      violation: this.violation,
      trace: this.violation === undefined ? [] : this.trace.last(60)
    }
  }
}

/** Returns settings as the trace shows them, without addresses and passwords. */
const describeSettings = ({ addresses, options, ...rest }: ClusterSettings): unknown => {
  const { hosts: _, readers: __, writer: ___, ...shown } = options as unknown as Record<string, unknown>
  return { ...rest, hosts: addresses.length, ...shown }
}
