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
  | { readonly _tag: "Failed"; readonly failure: ConnectFailure }

/** Settings of a probe. */
export interface ProbeOptions {
  /**
   * The server, with the one host that is probed. A probe fails with `wrongRole` if the host, at none
   * of its addresses, has the role that the server requires.
   */
  readonly server: ServerConfig
  readonly session: SessionConfig
  readonly credentials: CredentialSource
  /** True if the connection stays open between two probes. */
  readonly staysOpen: boolean
  /** Called when the open connection is lost between two probes. */
  readonly onLost: (error: Error) => void
}

type OnProbed = (result: ProbeResult) => void

const silent = (timeout: number): ProbeResult => ({
  _tag: "Failed",
  failure: { reason: "unresponsive", error: new Error(`no answer within ${Math.round(timeout)} ms`) }
})

const notPostgres: ProbeResult = {
  _tag: "Failed",
  failure: { reason: "protocol", error: new Error("the answer is not that of a PostgreSQL server") }
}

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

  /** Asks the server for its report, and fails if it does not answer within `timeout` ms. */
  ask(timeout: number, callback: OnProbed): void {
    if (this.callbacks.push(callback) > 1) return
    const deadline = clock.now() + timeout
    const { connection } = this
    if (connection?.broken === undefined && connection !== undefined) return this.query(connection, timeout, deadline)
    this.connect(timeout, deadline)
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

  private connect(timeout: number, deadline: number): void {
    const { credentials, server, session } = this.options
    this.cancelConnect = connect(
      { server, session, credentials, readOnly: false, timeout },
      this.owner,
      (failure, connection) => {
        this.cancelConnect = nothing
        if (connection === undefined) {
          return this.finish(failure === undefined ? silent(timeout) : { _tag: "Failed", failure })
        }
        this.sockets.add(connection)
        if (this.isClosed) return connection.destroy("shutdown")
        this.connection = connection
        this.query(connection, timeout, deadline)
      }
    )
  }

  private query(connection: Connection, timeout: number, deadline: number): void {
    const startedAt = clock.now()
    let isTimedOut = false
    const cancelTimer = clock.later(deadline - startedAt, () => {
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
      if (isTimedOut) return this.finish(silent(timeout))
      const { error } = failure
      if (failure._tag !== "lost") {
        return this.finish({ _tag: "Failed", failure: { reason: connectReason(codeOf(error), error.message), error } })
      }
      this.connection = undefined
      // the old connection says nothing about the server of today, which may have been restarted
      if (this.isClosed || clock.now() >= deadline) return this.finish(silent(timeout))
      this.connect(Math.max(1, deadline - clock.now()), deadline)
    })
  }

  private finish(result: ProbeResult): void {
    const { callbacks } = this
    this.callbacks = []
    for (const callback of callbacks) callback(result)
  }
}
