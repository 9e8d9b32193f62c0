/**
 * The prepared transactions of one database: the check that its server takes them, their end, and the
 * recovery of those that a process has left, for example because it was killed.
 *
 * They are listed and ended on a connection outside of the pool: all connections of the pool may be
 * in use by callers that wait for the locks of a prepared transaction.
 */
import type { Observer } from "../../Observation.js"
import * as clock from "../concurrency/clock.js"
import type { Connection, Failure } from "../connection/connection.js"
import { CommitMarker } from "../outcome/commitMarker.js"
import {
  type DatabaseIdentity,
  type Decision,
  endPrepared,
  listPrepared,
  type PreparedTransaction,
  queryIdentity,
  takeRoleOfLogin
} from "../outcome/preparedTransactionCommands.js"
import { queryStatus, type TransactionId, type TransactionStatus } from "../outcome/transactionStatus.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import type { UnpooledConnections } from "../topology/unpooledConnections.js"
import { DecidingDatabases } from "./databaseRegistry.js"
import type { CommitMarkers } from "./outcomesByMarker.js"
import { type OnOutcome, resolveOutcome } from "./resolution.js"

/** The interval of the recovery, in ms; it is shorter if outcomes are to be proved sooner. */
const longestInterval = 10_000
/** The age of a prepared transaction that is reported, in ms; it is shorter in the same way. */
const longestAlarmAge = 60_000
/** The shortest time of an attempt, and the least age of a transaction that is ended, in ms. */
const shortestTime = 1000

const nothing = () => {}

/** The open databases of the process, which decide about the prepared transactions of others. */
const open = new DecidingDatabases<PreparedTransactions>()

/** The markers of the units of the process that are at their end. */
const ending = new Set<string>()

/**
 * Keeps the recovery of this process from ending the transactions of a unit until the returned
 * function is called.
 */
export const beginUnit = (marker: string): (() => void) => {
  ending.add(marker)
  return () => ending.delete(marker)
}

/** Dependencies of the prepared transactions of one database. */
interface Dependencies {
  readonly database: string
  readonly observer: Observer
  readonly markers: CommitMarkers
  /** The longest time of one attempt to decide or to end a transaction, in ms. */
  readonly timeout: number
  readonly makeConnections: () => UnpooledConnections
}

/** Work that was prepared, by the id of its transaction; `undefined` if it has written nothing. */
interface PreparedWork {
  readonly id: TransactionId | undefined
}

/** Result of the end of a prepared transaction; `left` if the recovery has to end it. */
type Ended = "ended" | "missing" | "left"

/** Identity of a database, or the reason why the server takes no prepared transactions. */
type Identified = DatabaseIdentity | { readonly refusal: Error } | { readonly failure: Failure }

/** Prepared transactions of one database. */
export class PreparedTransactions {
  private identity: DatabaseIdentity | undefined
  private connections: UnpooledConnections | undefined
  private cancelTimer = nothing
  private isStopped = false
  /** True during a round of the recovery. */
  private isRecovering = false
  /** True if the next round must begin at once. */
  private isHurried = false
  /** True in the first round, when other databases may not be open yet. */
  private isFirst = true
  /** True if the last round could not list the transactions, and that was reported. */
  private hasFailed = false
  /** The transactions that were reported, each once. */
  private readonly reported = new Set<string>()
  /** The databases that decide, and were not open in the last round. */
  private readonly awaited = new Set<string>()
  /** The databases that have not answered in this round. */
  private readonly silent = new Set<string>()

  constructor(private readonly dependencies: Dependencies) {}

  /** The longest time of one attempt to end a transaction, in ms. */
  get timeout(): number {
    return this.dependencies.timeout
  }

  /** Calls back with the identity of the database. If it was not known, this starts the recovery. */
  identify(connection: Connection, callback: (result: Identified) => void): void {
    if (this.identity !== undefined) return callback(this.identity)
    queryIdentity(connection, (failure, identity) => {
      if (failure?._tag === "lost") return callback({ failure })
      if (identity === undefined) {
        return callback({ refusal: failure?.error ?? new Error("the server does not report its identity") })
      }
      if (!(identity.maxPrepared > 0)) {
        const refusal = new Error(
          "true, but max_prepared_transactions is 0 on the server: raise it and restart the server"
        )
        return callback({ refusal })
      }
      this.start(identity)
      callback(identity)
    })
  }

  /** Ends the recovery. `callback` is called when its connection is closed. */
  stop(callback: () => void): void {
    this.isStopped = true
    this.cancelTimer()
    if (this.identity !== undefined) open.remove(this.identity.key, this)
    if (this.connections === undefined) callback()
    else this.connections.close(callback)
  }

  /**
   * Ends a transaction on a connection of its own, for up to `timeout` ms. `untried` is the transaction
   * if no earlier attempt may have ended it, so that it must exist. The returned function gives up, and
   * calls back.
   */
  end(
    gid: string,
    decision: Decision,
    timeout: number,
    untried: PreparedWork | undefined,
    callback: (result: Ended) => void
  ): () => void {
    let expected = decision === "commit" ? untried : undefined
    let ended: Ended = "left"
    const query = (connection: Connection, done: (status: "committed" | "open" | "unproved") => void) =>
      takeRoleOfLogin(connection, () =>
        endPrepared(connection, gid, decision, (result) => {
          if (typeof result === "object") {
            this.reportLeft(gid, 0, result.refused.message)
            return done("unproved")
          }
          if (result === "lost") {
            expected = undefined
            return done("open")
          }
          ended = result
          if (result === "ended" || expected === undefined) return done("committed")
          this.checkMissing(connection, gid, expected, () => done("committed"))
        })
      )
    return resolveOutcome(this.own, timeout, query, () => callback(ended))
  }

  /**
   * Reports that a transaction did not exist at the first attempt to commit it, unless its work is
   * stored: if this process stood still for long, the recovery of another one has committed it.
   */
  checkMissing(connection: Connection, gid: string, { id }: PreparedWork, done: () => void): void {
    const { database, observer } = this.dependencies
    if (id === undefined) return done()
    const report = (status: TransactionStatus) => {
      if (status !== "committed") observer.observe({ _tag: "PreparedMissing", database, server: this.server, gid })
      done()
    }
    queryStatus(connection, id, report, true)
  }

  private get own(): ConnectionSource {
    this.connections ??= this.dependencies.makeConnections()
    return this.connections
  }

  private get server(): string {
    return this.own.options.server.name
  }

  /** The longest time of one attempt of the recovery, in ms: the other transactions wait for it. */
  private get attemptTimeout(): number {
    return Math.max(shortestTime, Math.min(this.timeout, longestInterval))
  }

  /**
   * The age from which the recovery ends a transaction, in ms. The unit of a younger one may still
   * be at its end.
   */
  private get endableAge(): number {
    return Math.max(shortestTime, 2 * this.timeout)
  }

  private start(identity: DatabaseIdentity): void {
    if (this.identity !== undefined || this.isStopped) return
    this.identity = identity
    open.add(identity.key, this)
    for (const other of open.all) if (other.awaited.has(identity.key)) other.hurry()
    // the first round ends the transactions that an earlier process has left
    this.schedule(0)
  }

  /** Begins the next round at once, because a database has been opened that decides. */
  private hurry(): void {
    this.isHurried = true
    if (!this.isRecovering) this.schedule(0)
  }

  private schedule(pause: number): void {
    this.cancelTimer()
    if (!this.isStopped) this.cancelTimer = clock.later(pause, () => this.recover())
  }

  /**
   * Ends a round. The next one begins after the interval, or sooner if a transaction that is too
   * young now can be ended by then.
   */
  private finish(all: ReadonlyArray<PreparedTransaction>): void {
    this.isRecovering = false
    if (this.isHurried) return this.schedule(0)
    const interval = Math.min(longestInterval, 10 * this.timeout) * (0.9 + 0.2 * clock.random())
    const left = all.map(({ age }) => this.endableAge - age).filter((pause) => pause > 0)
    this.schedule(Math.min(interval, ...left))
  }

  /** Ends the prepared transactions that are old enough, one after the other. */
  private recover(): void {
    const { attemptTimeout } = this
    this.isRecovering = true
    this.isHurried = false
    this.awaited.clear()
    this.silent.clear()
    const failed = (error: unknown) => {
      this.reportFailed(error instanceof Error ? error.message : "no connection was opened")
      this.finish([])
    }
    this.own.checkout(clock.now() + attemptTimeout, [], (failure, connection) => {
      if (connection === undefined) return failed(failure !== undefined && "cause" in failure ? failure.cause : failure)
      const stop = clock.later(attemptTimeout, () => connection.destroy("invalid"))
      listPrepared(connection, (failure, all) => {
        stop()
        this.own.checkin(connection)
        if (failure !== undefined) return failed(failure.error)
        this.hasFailed = false
        const gids = new Set(all.map(({ gid }) => gid))
        for (const gid of this.reported) if (!gids.has(gid)) this.reported.delete(gid)
        const next = (i: number): void => {
          const prepared = all[i]
          if (this.isStopped) return
          if (prepared !== undefined) return this.recoverOne(prepared, () => next(i + 1))
          this.isFirst = false
          this.finish(all)
        }
        next(0)
      })
    })
  }

  private recoverOne(prepared: PreparedTransaction, done: () => void): void {
    const { age, decider, gid, marker } = prepared
    const leave = (message: string) => {
      this.reportLeft(gid, age, message)
      done()
    }
    if (age < this.endableAge || ending.has(marker)) return leave("its unit may still be at its end")
    const deciding = open.of(decider)
    if (deciding.length === 0) {
      this.awaited.add(decider)
      return leave("the database that decides about it is not open in this process, with twoPhase")
    }
    if (this.silent.has(decider)) return leave("the database that decides about it does not answer")
    const ask = (i: number): void => {
      const one = deciding[i]
      if (one === undefined) {
        this.silent.add(decider)
        return leave("the database that decides about it does not answer")
      }
      if (one.dependencies.markers.mayBeDeleted(age)) return leave("it is too old for a decision: end it by hand")
      one.decide(marker, age, (outcome) => {
        if (outcome === undefined) return ask(i + 1)
        this.end(gid, outcome === "committed" ? "commit" : "rollback", this.attemptTimeout, undefined, (result) => {
          if (result === "left") return leave("it could not be ended in time")
          const { database, observer } = this.dependencies
          const recovered = { _tag: "PreparedRecovered", database, server: this.server, gid, outcome } as const
          if (result === "ended") observer.observe({ ...recovered, ageMillis: age })
          done()
        })
      })
    }
    ask(0)
  }

  /** Proves the decision by its marker. If there is none, the unit cannot commit any more after that. */
  private decide(id: string, age: number, callback: OnOutcome): void {
    const { attemptTimeout: timeout, dependencies, own: source } = this
    const marker = new CommitMarker(false, true, id, clock.now() - age)
    dependencies.markers.resolve(marker, callback, { source, timeout })
  }

  private reportFailed(message: string): void {
    const { database, observer } = this.dependencies
    if (this.hasFailed || this.isStopped) return
    this.hasFailed = true
    observer.observe({ _tag: "RecoveryFailed", database, server: this.server, message })
  }

  /** Reports a transaction that is left; the age is 0 if the server has refused to end it. */
  private reportLeft(gid: string, age: number, message: string): void {
    const isYoung = age < Math.min(longestAlarmAge, 12 * this.timeout) || this.isFirst
    if ((age > 0 && isYoung) || this.reported.has(gid)) return
    this.reported.add(gid)
    const { database, observer } = this.dependencies
    observer.observe({ _tag: "PreparedLeft", database, server: this.server, gid, ageMillis: age, message })
  }
}
