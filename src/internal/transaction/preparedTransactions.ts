/**
 * The prepared transactions of one database: the check that its server takes them, their end, and the
 * recovery of those that a process has left, for example because it was killed.
 */
import type { Observer } from "../../Observation.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import { CommitMarker } from "../consistency/commitMarker.js"
import {
  type DatabaseIdentity,
  type Decision,
  endPrepared,
  listPrepared,
  type PreparedTransaction,
  queryIdentity
} from "../consistency/preparedTransaction.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import type { CommitMarkers } from "./commitMarkers.js"
import { type OnOutcome, resolveOutcome } from "./resolution.js"

/** The interval of the recovery, in ms; it is shorter if outcomes are to be proved sooner. */
const longestInterval = 10_000
/** The age of a prepared transaction that is reported, in ms. */
const alarmAge = 60_000

const nothing = () => {}

/**
 * The open databases of the process by their identities: a database ends the transactions that another
 * one has decided.
 */
const open = new Map<string, Set<PreparedTransactions>>()

/** Dependencies of the prepared transactions of one database. */
interface Dependencies {
  readonly database: string
  readonly observer: Observer
  readonly markers: CommitMarkers
  /** The longest time of one attempt to decide or to end a transaction, in ms. */
  readonly timeout: number
  readonly source: () => ConnectionSource
}

/** Prepared transactions of one database. */
export class PreparedTransactions {
  private identity: DatabaseIdentity | undefined
  private cancelTimer = nothing
  private isStarted = false
  private isStopped = false
  /** The transactions that were reported, each once. */
  private readonly reported = new Set<string>()

  constructor(private readonly dependencies: Dependencies) {}

  /** The longest time of one attempt to end a transaction, in ms. */
  get timeout(): number {
    return this.dependencies.timeout
  }

  /**
   * Calls back with the identity of the database, which it queries if it is not known, or with the
   * reason why the server takes no prepared transactions. Then it starts the recovery.
   */
  identify(connection: Connection, callback: (identity: DatabaseIdentity | undefined, error?: Error) => void): void {
    if (this.identity !== undefined) return callback(this.identity)
    queryIdentity(connection, (failure, identity) => {
      if (identity === undefined) return callback(undefined, failure?.error)
      if (!(identity.maxPrepared > 0)) {
        return callback(
          undefined,
          new Error("max_prepared_transactions is 0 on the server: raise it and restart the server")
        )
      }
      this.identity = identity
      this.start(identity)
      callback(identity)
    })
  }

  /** Ends the recovery. */
  stop(): void {
    this.isStopped = true
    this.cancelTimer()
    if (this.identity !== undefined) open.get(this.identity.key)?.delete(this)
  }

  /**
   * Ends a transaction on any connection, for up to `timeout` ms. Calls back with false if it is still
   * prepared: then the recovery ends it.
   */
  end(gid: string, decision: Decision, timeout: number, callback: (isEnded: boolean) => void): void {
    const query = (connection: Connection, done: (status: "committed" | "open" | "unproved") => void) =>
      endPrepared(connection, gid, decision, (result) => {
        if (typeof result === "object") this.report(gid, 0, result.refused.message)
        done(result === "ended" ? "committed" : result === "lost" ? "open" : "unproved")
      })
    resolveOutcome(this.dependencies.source(), timeout, query, (outcome) => callback(outcome === "committed"))
  }

  private start(identity: DatabaseIdentity): void {
    if (this.isStarted || this.isStopped) return
    this.isStarted = true
    const databases = open.get(identity.key) ?? new Set()
    open.set(identity.key, databases.add(this))
    // after the start of the process, those that an earlier one has left
    this.schedule(0)
  }

  private schedule(pause: number): void {
    if (this.isStopped) return
    const next = Math.min(longestInterval, 10 * this.timeout) * (0.9 + 0.2 * clock.random())
    this.cancelTimer = clock.later(pause, () => this.recover(() => this.schedule(next)))
  }

  /** Ends the prepared transactions that are old enough, one after the other. */
  private recover(done: () => void): void {
    const { source, timeout } = this.dependencies
    let isDone = false
    const finish = () => {
      if (!isDone) done()
      isDone = true
    }
    source().checkout(clock.now() + timeout, [], (_, connection) => {
      if (connection === undefined) return finish()
      listPrepared(connection, (all = []) => {
        source().checkin(connection)
        const next = (i: number): void => {
          const prepared = all[i]
          if (prepared === undefined || this.isStopped) return finish()
          this.recoverOne(prepared, () => next(i + 1))
        }
        next(0)
      })
    })
  }

  private recoverOne({ age, decider, gid, marker }: PreparedTransaction, done: () => void): void {
    const { timeout } = this.dependencies
    // its unit is still at its end
    if (age < 2 * timeout) return done()
    const [deciding] = open.get(decider) ?? []
    if (deciding === undefined) {
      this.report(gid, age, "the database that decides about it is not open in this process, with twoPhase")
      return done()
    }
    deciding.decide(marker, age, (outcome) => {
      if (outcome === undefined) {
        this.report(gid, age, "the database that decides about it does not answer, or the decision is too old")
        return done()
      }
      this.end(gid, outcome === "committed" ? "commit" : "rollback", timeout, (isEnded) => {
        const { database, observer, source } = this.dependencies
        const { name: server } = source().options.server
        const recovered = { _tag: "PreparedRecovered", database, server, gid, outcome, ageMillis: age } as const
        if (isEnded) observer.observe(recovered)
        done()
      })
    })
  }

  /** Proves the decision by its marker. If there is none, the unit cannot commit any more after that. */
  private decide(id: string, age: number, callback: OnOutcome): void {
    this.dependencies.markers.resolve(new CommitMarker(false, true, id, clock.now() - age), callback)
  }

  private report(gid: string, age: number, message: string): void {
    if (age > 0 && age < alarmAge) return
    if (this.reported.has(gid)) return
    this.reported.add(gid)
    const { database, observer, source } = this.dependencies
    observer.observe({
      _tag: "PreparedLeft",
      database,
      server: source().options.server.name,
      gid,
      ageMillis: age,
      message
    })
  }
}
