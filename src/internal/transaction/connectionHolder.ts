/**
 * The connection of a transaction. It is checked out with the first statement, and checked in at
 * the end of the transaction.
 */
import type { Session } from "../../Consistency.js"
import type { Connection, Failure } from "../connection/connection.js"
import type { StatementFailure } from "../connection/failure.js"
import { type ErrorLocation, statementFailure } from "../connection/statementFailure.js"
import { TokenRecorder } from "../consistency/tokenRecorder.js"
import { CommitMarker } from "../outcome/commitMarker.js"
import type { Step } from "../protocol/frontendMessages.js"
import { restoreSearchPath, type SearchPath } from "../sql/searchPath.js"
import type { OnCheckout } from "../topology/connectionSource.js"
import { IdTracker } from "./idTracker.js"
import type { CommitMarkers } from "./outcomesByMarker.js"
import type { CommitOutcomes } from "./outcomesByStatus.js"
import type { Prove } from "./resolution.js"

/** Source of the connection of a transaction. */
export interface ConnectionProvider {
  readonly location: ErrorLocation
  /** The longest wait of a statement for a nested transaction to end, in ms. */
  readonly busyTimeout: number
  /** The COMMITs without an answer, if their outcomes are to be proved by status. */
  readonly outcomes?: CommitOutcomes | undefined
  /** The markers of COMMITs, if their outcomes are to be proved by them. */
  readonly markers?: CommitMarkers | undefined
  readonly checkout: (callback: OnCheckout) => () => void
  readonly checkin: (connection: Connection) => void
}

const none: ReadonlyArray<never> = []
const notifyWord = /notify/i

/** The connection that the levels of one transaction share. */
export class ConnectionHolder {
  connection: Connection | undefined = undefined
  /** The failure of all further statements, after which the transaction can only end. */
  lost: StatementFailure | undefined = undefined
  /**
   * True if `abort` has ended the transaction, for example because ROLLBACK was not possible
   * in time. This is no reason for a retry.
   */
  private isAborted = false
  /**
   * The first serialization failure or deadlock, also in a savepoint that was undone since: only
   * the whole transaction can be retried.
   */
  private conflict: StatementFailure | undefined
  /**
   * True if a statement may have stored the work before it, so that the work must not be repeated.
   */
  mayHaveStored = false
  /** The causal sessions that have written in the transaction, and get a token from its COMMIT. */
  private sessions: Set<Session> | undefined
  /** Callbacks of the waiters for a lock, called when the transaction cannot go on. */
  private lossCallbacks: Set<(failure: StatementFailure) => void> | undefined
  /** True if a statement on this connection had a search path of its own. */
  private hasSearchPath = false

  /** The id of the transaction. */
  readonly idTracker: IdTracker
  /** The marker of the COMMIT that was sent, if it had one. */
  marker: CommitMarker | undefined = undefined
  /** The step that stores the key of a request with the COMMIT, if there is one. */
  keyStep: Step | undefined = undefined
  /** The marker to use for the COMMIT, if that decides about prepared transactions. */
  decision: CommitMarker | undefined = undefined
  /** True if a statement may have notified. */
  private mayNotify = false

  constructor(readonly provider: ConnectionProvider) {
    this.idTracker = new IdTracker(provider.outcomes)
  }

  get location(): ErrorLocation {
    return this.provider.location
  }

  /**
   * Returns the steps that set the search path of a statement. After the first statement with a
   * search path, each statement sets its own again, because a statement or the end of a savepoint
   * may have changed it. No step is necessary if the server has reported the same path.
   */
  searchPathSteps(path: SearchPath | undefined): ReadonlyArray<Step> {
    const { connection, hasSearchPath } = this
    // an aborted transaction would refuse these steps, and the server would then skip a ROLLBACK TO
    // SAVEPOINT in the same exchange
    if (connection?.status === "E") return none
    if (path === undefined) return hasSearchPath ? restoreSearchPath : none
    this.hasSearchPath = true
    // the first step also saves the earlier path, so it is necessary even if both paths are the
    // same
    return hasSearchPath && connection?.hasSearchPath(path) === true ? none : path.forTransaction
  }

  /** Records the text of a statement of a transaction that may write. */
  recordText(text: string): void {
    if (this.provider.markers !== undefined && !this.mayNotify) this.mayNotify = notifyWord.test(text)
  }

  /** Creates the marker of a COMMIT, if its outcome is to be proved by one. */
  makeMarker(): CommitMarker | undefined {
    this.marker = this.decision ?? (this.provider.markers === undefined ? undefined : new CommitMarker(this.mayNotify))
    return this.marker
  }

  /** Returns the function that proves the outcome of the COMMIT, if it can be proved. */
  get prove(): Prove | undefined {
    const { idTracker, marker, provider } = this
    const { markers, outcomes } = provider
    const { id } = idTracker
    if (marker !== undefined && markers !== undefined) return (callback) => markers.resolve(marker, callback)
    if (id !== undefined && outcomes !== undefined) return (callback) => outcomes.resolve(id, callback)
    return undefined
  }

  /** Adds a causal session that has written in the transaction. */
  addSession(session: Session): void {
    this.sessions ??= new Set()
    this.sessions.add(session)
  }

  /**
   * Creates a recorder for the causal sessions of the transaction, if it has any. This must be
   * called before the WAL position is queried.
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

  /** Forgets the conflict of an earlier transaction in a sandbox. */
  forgetConflict(): void {
    this.conflict = undefined
  }

  /** Records a lost connection, so that later statements fail with its reason. */
  recordLoss(failure: Failure): void {
    if (failure._tag === "lost") this.markLost(statementFailure(this.location, failure, "undone"))
  }

  /** Adds a callback for the loss of the transaction. The returned function removes it. */
  onLost(callback: (failure: StatementFailure) => void): () => void {
    this.lossCallbacks ??= new Set()
    const { lossCallbacks } = this
    lossCallbacks.add(callback)
    return () => {
      lossCallbacks.delete(callback)
    }
  }

  /**
   * Records the failure of all further statements, unless there is one already, and fails the
   * waiters.
   */
  markLost(failure: StatementFailure): void {
    this.lost ??= failure
    const { lossCallbacks } = this
    if (lossCallbacks === undefined) return
    // a callback may remove others, which must not be called then
    for (const callback of [...lossCallbacks]) if (lossCallbacks.has(callback)) callback(this.lost)
  }

  /** Stores a connection that was checked out, and registers a callback for its loss. */
  hold(connection: Connection): void {
    this.idTracker.reset()
    this.marker = undefined
    this.keyStep = undefined
    this.decision = undefined
    this.mayNotify = false
    this.connection = connection
    connection.onLost = (error) => this.recordLoss({ _tag: "lost", error, sent: true, acknowledged: 0 })
  }

  /** Gives up the transaction: cancels its statement and closes the connection. */
  abort(reason: string, failure?: StatementFailure | undefined): void {
    this.isAborted ||= this.lost === undefined
    this.markLost(failure ?? { _tag: "Disconnected", ...this.location, cause: new Error(reason), outcome: "undone" })
    this.connection?.abort("cancelled")
  }

  /** Checks in the connection, if there is one. */
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
