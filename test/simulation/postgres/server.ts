/**
 * A scripted PostgreSQL server: its state, its sessions and its data.
 */
import { epoch, loop } from "../loop/loop.js"
import type { Random } from "../loop/random.js"
import type { Host } from "../network/network.js"
import { SqlFailure } from "./commands.js"
import { Locks } from "./locks.js"
import { Session } from "./session.js"
import type { CommitFault } from "./sessionState.js"
import { type Change, type CommitRecord, Store } from "./store.js"

/** Receiver of what happens on the servers, for the checks. */
export interface Reports {
  readonly violated: (invariant: string, message: string) => void
  /** The simulation itself is broken, for example by a command that the server does not know. */
  readonly broken: (cause: unknown) => void
  readonly onStatement: (session: Session, tag: string) => void
  readonly onCommit: (server: PostgresServer, record: CommitRecord) => void
  readonly trace: (line: string) => void
}

/** Settings of a server. */
export interface ServerSettings {
  readonly name: string
  readonly systemId: string
  readonly version: number
  readonly authentication: "trust" | "cleartext" | "md5"
  readonly password: string
  /** The mean time of a command, in ms. */
  readonly workMean: number
  readonly maxConnections: number
}

/** The time after which the log of an asynchronous commit is written to the disk, in ms. */
const walWriterDelay = 200

/** Scripted server. */
export class PostgresServer {
  readonly store = new Store()
  locks = new Locks()
  /** The sessions that have logged in, by their process numbers. */
  readonly sessions = new Map<number, Session>()
  /** All connections that were accepted. */
  readonly open = new Set<Session>()
  /** The ids of the open transactions. */
  readonly openIds = new Set<number>()
  state: "stopped" | "starting" | "running" = "stopped"
  timeline = 1
  isStandby = false
  /** True while a standby receives the log of a primary. */
  isStreaming = false
  receivedTimeline = 1
  /** The time of the last replay of a standby, in ms. */
  replayedAt = 0
  /** The end of the last recovery. */
  recoveredTo: number | undefined = undefined
  /** The start of the postmaster, in microseconds since 1970. */
  startedAt = 0
  /** The time since which the server takes writes and no fault has hindered it. */
  healthySince = 0
  /** The number of faults that hinder it now. */
  hindrances = 0
  /** The number of cuts between it and the program. */
  cuts = 0
  /** The factor of the time of commands. */
  slowness = 1
  /** Returns the fault of the next COMMIT, if there is one. */
  commitFault: () => CommitFault | undefined = () => undefined
  /** The probability of a serialization failure at the COMMIT of a serializable transaction. */
  serializationFailures = 0
  private frozenUntil = 0
  private nextProcessId: number
  private cancelFlush: (() => void) | undefined = undefined
  private onFlush: () => void = () => {}

  constructor(
    readonly settings: ServerSettings,
    readonly host: Host,
    private readonly random: Random,
    readonly reports: Reports
  ) {
    this.nextProcessId = random.whole(1000, 30_000)
  }

  get name(): string {
    return this.settings.name
  }

  get systemId(): string {
    return this.settings.systemId
  }

  get version(): number {
    return this.settings.version
  }

  get authentication(): ServerSettings["authentication"] {
    return this.settings.authentication
  }

  get password(): string {
    return this.settings.password
  }

  get isRunning(): boolean {
    return this.state === "running"
  }

  get isFrozen(): boolean {
    return loop.now < this.frozenUntil
  }

  /** Calls `onFlush` when a part of the log is on disk. */
  followFlush(onFlush: () => void): void {
    this.onFlush = onFlush
  }

  /** Starts the server. It refuses logins until its recovery is over. */
  start(recoveryTime: number, onRunning: () => void = () => {}): void {
    if (this.state !== "stopped" || !this.host.isUp) return
    this.state = "starting"
    this.startedAt = Math.floor((epoch + loop.now) * 1000)
    this.host.listen = (link) => {
      const session = new Session(this, link)
      this.open.add(session)
      return session
    }
    loop.schedule(recoveryTime, () => {
      if (this.state !== "starting") return
      this.state = "running"
      this.touch()
      this.reports.trace(
        `${this.name} runs as a ${this.isStandby ? "standby" : `primary on timeline ${this.timeline}`}`
      )
      onRunning()
    })
  }

  /** Ends the server at once, without a message to its sessions, and loses the log that is not on disk. */
  crash(): void {
    if (this.state === "stopped") return
    this.end((session) => session.close(true))
    const { flushedLsn } = this.store
    this.store.truncate(flushedLsn, loop.now)
    this.recoveredTo = flushedLsn
  }

  /** Shuts the server down: sessions are terminated, and the whole log is written. */
  stop(): void {
    if (this.state === "stopped") return
    this.end((session) => session.terminate("57P01", "terminating connection due to administrator command"))
    this.flush()
    if (!this.isStandby) this.recoveredTo = undefined
  }

  private end(endSession: (session: Session) => void): void {
    this.state = "stopped"
    this.isStreaming = false
    this.host.listen = undefined
    this.frozenUntil = 0
    for (const session of [...this.open]) endSession(session)
    this.sessions.clear()
    this.open.clear()
    this.openIds.clear()
    this.locks = new Locks()
    this.cancelFlush?.()
    this.cancelFlush = undefined
  }

  /** Stands still: no session runs for a time, but the system accepts connections. */
  freeze(millis: number): void {
    this.frozenUntil = loop.now + millis
    loop.schedule(millis, () => {
      if (this.isFrozen) return
      this.touch()
      for (const session of this.open) session.wake()
    })
  }

  /** Returns the time until the server runs again, in ms. */
  thawIn(): number {
    return Math.max(0, this.frozenUntil - loop.now)
  }

  /** Checks if the server runs, and no fault has hindered it for a time. */
  isHealthyFor(millis: number): boolean {
    const isReachable = this.isRunning && !this.isFrozen && this.host.isUp && this.hindrances === 0
    return isReachable && loop.now - this.healthySince > millis
  }

  /** Records that a fault has hindered the server until now. */
  touch(): void {
    this.healthySince = loop.now
  }

  /** Returns the reason for the refusal of a login, if there is one. */
  refusal(): readonly [code: string, message: string] | undefined {
    if (this.state === "starting") return ["57P03", "the database system is starting up"]
    if (this.sessions.size >= this.settings.maxConnections) return ["53300", "sorry, too many clients already"]
    return undefined
  }

  /** Passes a cancel request on. */
  cancel(processId: number, secretKey: number): void {
    const session = this.sessions.get(processId)
    if (session?.secretKey === secretKey) session.cancel()
  }

  nextKey(): readonly [processId: number, secretKey: number] {
    this.nextProcessId += this.random.whole(1, 3)
    return [this.nextProcessId, this.random.whole(1, 2 ** 31 - 1)]
  }

  salt(): Buffer {
    return Buffer.from([1, 2, 3, 4].map(() => this.random.whole(0, 255)))
  }

  /** Returns the time of the next commands of a session. */
  workTime(): number {
    return this.random.exponential(this.settings.workMean) * this.slowness
  }

  slowCommit(): number {
    return this.random.exponential(1500)
  }

  failsSerialization(): boolean {
    return this.random.chance(this.serializationFailures)
  }

  /** Stores a transaction. */
  append(xid: number, changes: ReadonlyArray<Change>, isSynchronous: boolean): void {
    const record = this.store.commit(xid, this.timeline, changes, loop.now)
    this.reports.onCommit(this, record)
    if (isSynchronous) this.flush()
    else this.flushLater()
  }

  /** Writes the log to the disk after a while. */
  flushLater(): void {
    this.cancelFlush ??= loop.schedule(walWriterDelay, () => this.flush())
  }

  private flush(): void {
    this.cancelFlush?.()
    this.cancelFlush = undefined
    this.store.flushedLsn = this.store.insertLsn
    this.onFlush()
  }

  /** Returns the status of a transaction, as `pg_xact_status`. */
  statusOf(xid: number): string {
    if (xid >= this.store.nextXid) throw new SqlFailure("22023", `transaction ID ${xid} is in the future`)
    if (this.openIds.has(xid)) return "in progress"
    return this.store.isCommitted(xid) ? "committed" : "aborted"
  }

  /** Runs a part of a session. An exception is a fault of the simulation, not of the library. */
  guard(act: () => void): void {
    try {
      act()
    } catch (cause) {
      this.reports.broken(cause)
    }
  }
}
