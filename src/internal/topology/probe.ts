/**
 * The probe of one host: a connection of its own, on which the server is asked for its report.
 */

import type { ServerConfig, SessionConfig } from "../../DatabaseConfig.js"
import { connectReason } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import { connect } from "../connection/connect.js"
import type { ConnectFailure } from "../connection/connectFailure.js"
import type { Connection, Owner } from "../connection/connection.js"
import type { CredentialSource } from "../connection/credentials.js"
import { checkAlive } from "../connection/secondSocket.js"
import { codeOf } from "../connection/statementFailure.js"
import { readReport, reportQuery, type ServerReport, withoutHistory } from "./probeReport.js"

/** Result of a probe. */
export type ProbeResult =
  | {
      readonly _tag: "Answered"
      readonly report: ServerReport
      /** The time of the query. */
      readonly askedAt: number
      /** The time from the query to its answer, in ms; `undefined` for the first one of a connection. */
      readonly latency: number | undefined
    }
  | {
      readonly _tag: "Failed"
      readonly failure: ConnectFailure
      /** The time since which a silent server has not answered: neither this probe, nor on another socket. */
      readonly silentSince: number | undefined
    }

/** Settings of a probe. */
export interface ProbeOptions {
  /** The server, with the one host that is probed, and the role that it requires. */
  readonly server: ServerConfig
  readonly session: SessionConfig
  readonly credentials: CredentialSource
  /** The timeout of a connect, in ms. */
  readonly connectTimeout: number
  /**
   * The timeout of a connect to a server that has answered before, in ms. It is doubled after each
   * connect without an answer, up to `connectTimeout`, because a login may be slow.
   */
  readonly reconnectTimeout: number
  /** The time after which the connection is replaced, in ms, as the connections of the pools are. */
  readonly maxAge: number
  /** True if the connection stays open between two probes. */
  readonly staysOpen: boolean
  /** Called when the open connection is lost between two probes. */
  readonly onLost: (error: Error) => void
  /** Checks if a connection of the pools has received something since a moment. */
  readonly hasHeard: (since: number) => boolean
}

/** The most checks on another socket after a question without an answer. */
const mostChecks = 3

type OnProbed = (result: ProbeResult) => void

const failed = (failure: ConnectFailure, silentSince?: number | undefined): ProbeResult => ({
  _tag: "Failed",
  failure,
  silentSince
})

/**
 * The time after which a connection without the required role is replaced, in ms: the name of its
 * host may lead to another server by then.
 */
const maxMismatchAge = 60_000

const unresponsive = (timeout: number): ConnectFailure => ({
  reason: "unresponsive",
  error: new Error(`no answer within ${Math.round(timeout)} ms`)
})

const notPostgres = failed({
  reason: "protocol",
  error: new Error("the answer is not that of a PostgreSQL server")
})

const closed = failed({ reason: "unreachable", error: new Error("the database is closed") })

const nothing = () => {}

/** Open connection of a probe. */
interface OpenConnection {
  readonly connection: Connection
  /**
   * The reason why its server does not have the required role, if the host has that at no address.
   */
  mismatch: ConnectFailure | undefined
  /** True before its first answer. */
  isNew: boolean
}

/** Probe of one host. Callers that ask at the same time share one exchange. */
export class Probe {
  private open: OpenConnection | undefined
  /** The last connection: its server is checked on another socket when a connect has no answer. */
  private last: Connection | undefined
  private callbacks: Array<OnProbed> = []
  private cancelConnect = nothing
  /** True while a connection is opened that is to replace the open one. */
  private isRenewing = false
  /** True if the server has ever answered. */
  private hasAnswered = false
  /** The number of connects without an answer since the last answer. */
  private timeouts = 0
  private isClosed = false
  private onAllClosed = nothing
  private readonly sockets = new Set<Connection>()
  private readonly owner: Owner

  constructor(private readonly options: ProbeOptions) {
    this.owner = {
      lost: (connection, error) => {
        if (this.open?.connection !== connection) return
        this.open = undefined
        if (this.callbacks.length === 0) options.onLost(error)
      },
      closed: (connection) => {
        this.sockets.delete(connection)
        if (this.sockets.size === 0) this.onAllClosed()
      }
    }
  }

  /** Checks if a connection is open, so that the next probe needs no login. */
  get isOpen(): boolean {
    return this.open !== undefined
  }

  /**
   * Asks the server for its report, and fails if it does not answer within `timeout` ms. A connect,
   * if no connection is open, has its own timeout.
   */
  ask(timeout: number, callback: OnProbed): void {
    if (this.isClosed) return callback(closed)
    if (this.callbacks.push(callback) > 1) return
    this.askOnce(timeout)
  }

  /** Closes the connection; `callback` is called when its socket is closed. */
  close(callback: () => void): void {
    this.isClosed = true
    this.cancelConnect()
    this.callbacks = []
    this.onAllClosed = callback
    for (const connection of this.sockets) connection.destroy("shutdown")
    if (this.sockets.size === 0) callback()
  }

  private get connectLimit(): number {
    const { connectTimeout, reconnectTimeout } = this.options
    return this.hasAnswered ? Math.min(connectTimeout, reconnectTimeout * 2 ** this.timeouts) : connectTimeout
  }

  /** Checks if a connection is to be replaced, because the name of its host may lead to another server. */
  private isAged({ connection, mismatch }: OpenConnection): boolean {
    const { maxAge } = this.options
    return clock.now() - connection.createdAt > (mismatch === undefined ? maxAge : Math.min(maxMismatchAge, maxAge))
  }

  private askOnce(timeout: number): void {
    const { open } = this
    if (open === undefined || open.connection.broken !== undefined) return this.connect(timeout)
    if (this.isAged(open)) this.renew()
    this.query(open, timeout)
  }

  /**
   * Opens a connection to replace one that is aged. Meanwhile the server is asked on the aged one:
   * a connect without an answer may only be slow, but a query without an answer shows a silent
   * server.
   */
  private renew(): void {
    if (this.isRenewing) return
    this.isRenewing = true
    this.login(this.options.connectTimeout, (_, connection, mismatch) => {
      this.isRenewing = false
      // the next probe tries again
      if (connection === undefined) return
      const aged = this.open
      this.open = { connection, mismatch, isNew: true }
      aged?.connection.end("aged")
    })
  }

  private connect(timeout: number): void {
    this.open?.connection.end("aged")
    this.open = undefined
    this.cancelConnect()
    this.isRenewing = false
    const since = clock.now()
    const limit = this.connectLimit
    this.login(limit, (failure, connection, mismatch) => {
      if (connection === undefined) return this.onNoConnection(failure ?? unresponsive(limit), timeout, since)
      this.open = { connection, mismatch, isNew: true }
      this.query(this.open, timeout)
    })
  }

  /**
   * Connects to the address of the host that has the role. A connection that stays open may have
   * another role, so that a standby is not logged in to at each probe.
   */
  private login(
    timeout: number,
    callback: (
      failure: ConnectFailure | undefined,
      connection: Connection | undefined,
      mismatch: ConnectFailure | undefined
    ) => void
  ): void {
    const { credentials, server, session, staysOpen } = this.options
    const isPreference = staysOpen && server.target !== "prefer-standby"
    const role = isPreference
      ? { server: { ...server, target: "any" as const }, preferred: server.target }
      : { server, preferred: undefined }
    this.cancelConnect = connect(
      { ...role, session, credentials, readOnly: false, timeout },
      this.owner,
      (failure, connection) => {
        this.cancelConnect = nothing
        if (connection === undefined) return callback(failure, undefined, undefined)
        this.sockets.add(connection)
        // only the callers of the pools keep the process alive
        connection.keepProcess(false)
        if (this.isClosed) return connection.destroy("shutdown")
        this.last = connection
        callback(undefined, connection, failure)
      }
    )
  }

  private query(open: OpenConnection, timeout: number): void {
    const { connection, isNew } = open
    const startedAt = clock.now()
    let isTimedOut = false
    // a login may be slow, and so may the first query after it
    const limit = isNew ? this.connectLimit : timeout
    const cancelTimer = clock.later(limit, () => {
      isTimedOut = true
      if (isNew) this.timeouts++
      this.drop(open)
      connection.destroy("invalid")
    })
    connection.run([], reportQuery, [], (failure, exchange) => {
      cancelTimer()
      if (failure === undefined) {
        const report = readReport(exchange)
        if (report?.isStandby === false && open.mismatch !== undefined) {
          if (!this.hasBecomeWriter(connection)) return this.onMismatch(open, timeout, open.mismatch)
          open.mismatch = undefined
        }
        open.isNew = false
        if (!this.options.staysOpen) {
          this.drop(open)
          connection.end("excess")
        }
        const latency = isNew ? undefined : clock.now() - startedAt
        return this.finish(
          report === undefined ? notPostgres : { _tag: "Answered", report, askedAt: startedAt, latency }
        )
      }
      this.drop(open)
      if (isTimedOut) return this.onSilent(open, timeout, startedAt)
      const { error } = failure
      if (failure._tag === "lost") {
        // an old connection may have been lost long ago, and the server runs again
        if (!isNew && !this.isClosed) return this.askOnce(timeout)
        return this.finish(failed({ reason: connectReason(codeOf(error), error.message), error }))
      }
      connection.end("invalid")
      // some services refuse the functions of the query; the login has checked the role
      const isStandby = open.mismatch !== undefined || connection.takesNoWrites
      this.finish({
        _tag: "Answered",
        report: { ...withoutHistory, isStandby },
        askedAt: startedAt,
        latency: undefined
      })
    })
  }

  /** Forgets a connection, unless another one has replaced it. */
  private drop(open: OpenConnection): void {
    if (this.open === open) this.open = undefined
  }

  /**
   * Checks if the server of an open connection, which is no standby any more, has the required role.
   * PostgreSQL 14 and later report a promotion, and sessions that are read-only by default.
   */
  private hasBecomeWriter(connection: Connection): boolean {
    const { target } = this.options.server
    if (target === "primary") return true
    return target === "read-write" && connection.parameter("in_hot_standby") === "off" && !connection.takesNoWrites
  }

  /** Handles a connection to a server that is no standby, and is not known to have the required role. */
  private onMismatch(open: OpenConnection, timeout: number, mismatch: ConnectFailure): void {
    this.drop(open)
    open.connection.end("wrongRole")
    // another login may show that it has the role now
    if (!open.isNew && !this.isClosed) return this.askOnce(timeout)
    this.finish(failed(mismatch))
  }

  /**
   * Checks on another socket if the server answers, because the network may have dropped only this
   * connection, and then asks on a new connection.
   */
  private onSilent({ connection, isNew }: OpenConnection, timeout: number, since: number): void {
    if (isNew || this.isClosed) return this.finish(failed(unresponsive(timeout), since))
    this.checkOtherSocket(connection, timeout, since, mostChecks)
  }

  /**
   * Checks on another socket if the server answers. If a caller has received something since the
   * question, the server may have become silent after that, so it is checked once more: another login
   * would take longer to show that.
   */
  private checkOtherSocket(connection: Connection, timeout: number, since: number, checks: number): void {
    const startedAt = clock.now()
    checkAlive(connection.server, connection.secondSocket, timeout, (isAlive) => {
      const isReachable = isAlive || this.open !== undefined
      if (isReachable && !this.isClosed) return this.askOnce(timeout)
      if (checks > 1 && !this.isClosed && this.options.hasHeard(since))
        return this.checkOtherSocket(connection, timeout, startedAt, checks - 1)
      this.finish(failed(unresponsive(timeout), since))
    })
  }

  /**
   * Handles a failed connect. If it had no answer, another socket shows if the server is silent or
   * if only its logins are slow. Statements in flight are given up only if it is silent. A host
   * that has never answered counts as silent after two connects.
   */
  private onNoConnection(failure: ConnectFailure, timeout: number, since: number): void {
    if (failure.reason !== "unresponsive" || !this.options.staysOpen) return this.finish(failed(failure))
    this.timeouts++
    const { last } = this
    if (last === undefined) return this.finish(failed(failure, this.timeouts > 1 ? since : undefined))
    checkAlive(last.server, last.secondSocket, timeout, (isAlive) =>
      this.finish(failed(failure, isAlive ? undefined : since))
    )
  }

  private finish(result: ProbeResult): void {
    if (result._tag === "Answered") {
      this.hasAnswered = true
      this.timeouts = 0
    }
    const { callbacks } = this
    this.callbacks = []
    for (const callback of callbacks) callback(result)
  }
}
