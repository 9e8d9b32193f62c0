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
import { codeOf } from "../connection/statementFailure.js"
import { readReport, reportQuery, type ServerReport } from "./serverReport.js"

/** Result of a probe. */
export type ProbeResult =
  | { readonly _tag: "Answered"; readonly report: ServerReport; readonly latencyMillis: number }
  | {
      readonly _tag: "Failed"
      readonly failure: ConnectFailure
      /** True if the server did not answer on a connection that was open. */
      readonly isSilent: boolean
    }

/** Settings of a probe. */
export interface ProbeOptions {
  /**
   * The server, with the one host that is probed. A probe fails with `wrongRole` if the host, at none
   * of its addresses, has the role that the server requires.
   */
  readonly server: ServerConfig
  readonly session: SessionConfig
  readonly credentials: CredentialSource
  /** The timeout of a connect, in ms. */
  readonly connectTimeout: number
  /** True if the connection stays open between two probes. */
  readonly staysOpen: boolean
  /** Called when the open connection is lost between two probes. */
  readonly onLost: (error: Error) => void
}

type OnProbed = (result: ProbeResult) => void

const failed = (failure: ConnectFailure, isSilent = false): ProbeResult => ({ _tag: "Failed", failure, isSilent })

const unresponsive = (timeout: number): ConnectFailure => ({
  reason: "unresponsive",
  error: new Error(`no answer within ${Math.round(timeout)} ms`)
})

const notPostgres = failed({
  reason: "protocol",
  error: new Error("the answer is not that of a PostgreSQL server")
})

const nothing = () => {}

/** Probe of one host. Callers that ask at the same time share one exchange. */
export class Probe {
  private connection: Connection | undefined
  private callbacks: Array<OnProbed> = []
  private cancelConnect = nothing
  private isClosed = false
  private onAllClosed = nothing
  private readonly sockets = new Set<Connection>()
  private readonly owner: Owner

  constructor(private readonly options: ProbeOptions) {
    this.owner = {
      lost: (connection, error) => {
        if (this.connection !== connection) return
        this.connection = undefined
        if (this.callbacks.length === 0) options.onLost(error)
      },
      closed: (connection) => {
        this.sockets.delete(connection)
        if (this.sockets.size === 0) this.onAllClosed()
      }
    }
  }

  /**
   * Asks the server for its report, and fails if it does not answer within `timeout` ms. A connect,
   * if none is open, has its own timeout.
   */
  ask(timeout: number, callback: OnProbed): void {
    if (this.callbacks.push(callback) > 1) return
    const { connection } = this
    if (connection === undefined || connection.broken !== undefined) this.connect(timeout)
    else this.query(connection, timeout, false)
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

  private connect(timeout: number): void {
    const { connectTimeout, credentials, server, session } = this.options
    this.cancelConnect = connect(
      { server, session, credentials, readOnly: false, timeout: connectTimeout },
      this.owner,
      (failure, connection) => {
        this.cancelConnect = nothing
        if (connection === undefined) {
          return this.finish(failed(failure ?? unresponsive(connectTimeout)))
        }
        this.sockets.add(connection)
        // only the callers of the pools keep the process alive
        connection.keepProcess(false)
        if (this.isClosed) return connection.destroy("shutdown")
        this.connection = connection
        this.query(connection, timeout, true)
      }
    )
  }

  private query(connection: Connection, timeout: number, isNew: boolean): void {
    const startedAt = clock.now()
    let isTimedOut = false
    const cancelTimer = clock.later(timeout, () => {
      isTimedOut = true
      this.connection = undefined
      connection.destroy("invalid")
    })
    connection.run([], reportQuery, [], (failure, exchange) => {
      cancelTimer()
      if (failure === undefined) {
        const report = readReport(exchange)
        if (!this.options.staysOpen) {
          this.connection = undefined
          connection.end("excess")
        }
        return this.finish(
          report === undefined
            ? notPostgres
            : { _tag: "Answered", report, latencyMillis: connection.lastAnswer - startedAt }
        )
      }
      if (isTimedOut) return this.finish(failed(unresponsive(timeout), true))
      const { error } = failure
      if (failure._tag === "lost") {
        this.connection = undefined
        // an old connection may have been lost long ago, and the server runs again
        if (!isNew && !this.isClosed) return this.connect(timeout)
      }
      this.finish(failed({ reason: connectReason(codeOf(error), error.message), error }))
    })
  }

  private finish(result: ProbeResult): void {
    const { callbacks } = this
    this.callbacks = []
    for (const callback of callbacks) callback(result)
  }
}
