/**
 * The one connection of a transaction: checked out with its first statement and checked in at its
 * end, or lost in between.
 */
import type { Session } from "../../Consistency.js"
import type { Connection, Failure } from "../connection/connection.js"
import type { StatementFailure } from "../connection/plainFailure.js"
import { type ErrorLocation, statementFailure } from "../connection/statementFailure.js"
import { TokenRecorder } from "../consistency/walPosition.js"
import type { Step } from "../protocol/messages.js"
import { restoreSearchPath, type SearchPath } from "../sql/searchPath.js"
import type { OnCheckout } from "../topology/connectionSource.js"

/** Source of the connection of a transaction. */
export interface ConnectionProvider {
  readonly location: ErrorLocation
  /** The longest wait of a statement for a nested transaction to end, in ms. */
  readonly busyTimeout: number
  readonly checkout: (callback: OnCheckout) => () => void
  readonly checkin: (connection: Connection) => void
}

const none: ReadonlyArray<never> = []

/** The connection that the levels of one transaction share. */
export class ConnectionHolder {
  connection: Connection | undefined = undefined
  /** The reason why the transaction cannot go on; everything in it is undone. */
  lost: StatementFailure | undefined = undefined
  /** True if this side has given the transaction up, for example after an interrupted statement. */
  private isAborted = false
  /**
   * The first collision with another transaction, also in a savepoint that was undone since: only
   * the whole transaction can be retried.
   */
  private conflict: StatementFailure | undefined
  /**
   * True if a statement has, or may have, stored the work before it, so that the work must not be
   * repeated.
   */
  mayHaveStored = false
  /** The causal sessions that have written in the transaction: its COMMIT gives them a token. */
  private sessions: Set<Session> | undefined
  /** Callbacks of the waiters for a lock, called when the transaction cannot go on. */
  private lossCallbacks: Set<(failure: StatementFailure) => void> | undefined
  /** True if any of its statements had a search path of its own. */
  private hasSearchPath = false

  constructor(readonly provider: ConnectionProvider) {}

  get location(): ErrorLocation {
    return this.provider.location
  }

  /**
   * Returns the steps before a statement that set its search path. After the first search path,
   * each statement sets its own again, because the setting that a statement or savepoint has left
   * is unknown, unless the server reports it.
   */
  searchPathSteps(path: SearchPath | undefined): ReadonlyArray<Step> {
    const { connection, hasSearchPath } = this
    // a failed transaction would refuse it, and then skip a ROLLBACK TO SAVEPOINT in the same
    // exchange
    if (connection?.status === "E") return none
    if (path === undefined) return hasSearchPath ? restoreSearchPath : none
    this.hasSearchPath = true
    // the first one also saves the earlier setting, which may have the same text
    return hasSearchPath && connection?.hasSearchPath(path) === true ? none : path.forTransaction
  }

  /** Adds a causal session that has written in the transaction. */
  addSession(session: Session): void {
    this.sessions ??= new Set()
    this.sessions.add(session)
  }

  /**
   * Creates a recorder for the causal sessions of the transaction, if it has any. Its tokens count
   * from this moment.
   */
  recordTokens(): TokenRecorder | undefined {
    return this.sessions === undefined ? undefined : new TokenRecorder(this.location.database, this.sessions)
  }

  /** The failures of statements that may have undone the transaction. */
  get failures(): ReadonlyArray<StatementFailure> {
    const { conflict, isAborted, lost } = this
    return [conflict, isAborted ? undefined : lost].filter((failure) => failure !== undefined)
  }

  /**
   * Records the failure that has aborted a level, if it is a collision with another transaction.
   */
  recordConflict(failure: StatementFailure): void {
    if (failure._tag === "SerializationFailure" || failure._tag === "DeadlockDetected") this.conflict ??= failure
  }

  /** Records a lost connection, so that later statements fail with its reason. */
  recordLoss(failure: Failure): void {
    if (failure._tag === "lost") this.markLost(statementFailure(this.location, failure, "undone"))
  }

  /** Calls back when the transaction cannot go on; the returned function cancels that. */
  onLost(callback: (failure: StatementFailure) => void): () => void {
    this.lossCallbacks ??= new Set()
    const { lossCallbacks } = this
    lossCallbacks.add(callback)
    return () => {
      lossCallbacks.delete(callback)
    }
  }

  /** Marks the transaction as one that cannot go on. */
  markLost(failure: StatementFailure): void {
    this.lost ??= failure
    const { lossCallbacks } = this
    if (lossCallbacks === undefined) return
    // a callback may cancel others, which must not be called any more
    for (const callback of [...lossCallbacks]) if (lossCallbacks.has(callback)) callback(this.lost)
  }

  /** Holds a connection that was checked out. */
  hold(connection: Connection): void {
    this.connection = connection
    connection.onLost = (error) => this.recordLoss({ _tag: "lost", error, sent: true, acknowledged: 0 })
  }

  /** Gives the transaction up: its statement is cancelled and the connection closed. */
  abort(reason: string, failure?: StatementFailure | undefined): void {
    this.isAborted ||= this.lost === undefined
    this.markLost(failure ?? { _tag: "Disconnected", ...this.location, cause: new Error(reason), outcome: "undone" })
    this.connection?.abort("cancelled")
  }

  /** Checks the connection in, if it is held. */
  checkIn(): void {
    const connection = this.connection
    this.connection = undefined
    // a transaction that begins again has no search path yet
    this.hasSearchPath = false
    if (connection === undefined) return
    connection.onLost = undefined
    connection.transaction = undefined
    this.provider.checkin(connection)
  }
}
