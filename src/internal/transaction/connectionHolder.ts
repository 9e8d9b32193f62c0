/**
 * The one connection of a transaction: borrowed with its first statement, given back with its end, or lost in between.
 */

import type { Session } from "../../Consistency.js"
import { Disconnected, type StatementError } from "../../DatabaseError.js"
import type { Connection, Failure } from "../connection/connection.js"
import type { ErrorLocation } from "../connection/statementFailure.js"
import { TokenRecorder } from "../consistency/walPosition.js"
import { toStatementError } from "../edge/statementError.js"
import type { Step } from "../protocol/messages.js"
import { restoreSearchPath, type SearchPath } from "../sql/searchPath.js"

/** Where a transaction gets its connection from, and gives it back to. */
export interface ConnectionLender {
  readonly place: ErrorLocation
  /** How long a statement waits for a nested transaction to end, in ms. */
  readonly patience: number
  readonly checkout: (
    settle: (error: StatementError | undefined, connection: Connection | undefined) => void
  ) => () => void
  readonly checkin: (connection: Connection) => void
}

const none: ReadonlyArray<never> = []

/** The connection that the levels of one transaction share. */
export class ConnectionHolder {
  connection: Connection | undefined = undefined
  /** Why the transaction cannot go on; everything it did is undone. */
  lost: StatementError | undefined = undefined
  /** Whether it cannot go on because this side has given it up, as when a statement is interrupted. */
  private isGivenUp = false
  /** The first collision with another transaction, also one in a savepoint that was undone since: only the whole can be run again. */
  private collision: StatementError | undefined
  /** Whether a statement of it has, or may have, stored what was done before, so that it must not be run again. */
  mayHaveStored = false
  /** The sessions that something was written in: they want to know where the server is when it is stored. */
  private sessions: Set<Session> | undefined
  /** Those who wait for a turn: they are told at once when there will be none. */
  private waiting: Set<(error: StatementError) => void> | undefined
  /** Whether any of its statements was one of a schema scope. */
  private isScoped = false

  constructor(readonly lender: ConnectionLender) {}

  get place(): ErrorLocation {
    return this.lender.place
  }

  /**
   * What comes before a statement, for its names to be looked up where they are to be. Once there was a scope nobody can tell what a
   * statement or a savepoint has made of it, so each says it again, but where the server tells.
   */
  pathTo(path: SearchPath | undefined): ReadonlyArray<Step> {
    const { connection, isScoped } = this
    // it would be refused, and with it what may mend that; so is any other statement
    if (connection?.status === "E") return none
    if (path === undefined) return isScoped ? restoreSearchPath : none
    this.isScoped = true
    // the first keeps what was there before, which may have the same text
    return isScoped && connection?.looksUpIn(path) === true ? none : path.forTransaction
  }

  /** What is written here is a session's own. */
  witness(session: Session): void {
    this.sessions ??= new Set()
    this.sessions.add(session)
  }

  /** Who is to be told where the server is, if anybody: whoever asks it asks now. */
  get asking(): TokenRecorder | undefined {
    return this.sessions === undefined ? undefined : new TokenRecorder(this.place.database, this.sessions)
  }

  /** Why the transaction may have been undone, for all that its statements know. */
  get failures(): ReadonlyArray<StatementError> {
    const { collision, isGivenUp, lost } = this
    return [collision, isGivenUp ? undefined : lost].filter((error) => error !== undefined)
  }

  /** Takes down that the server has aborted a level for a failure. */
  noteAborted(error: StatementError): void {
    if (error._tag === "SerializationFailure" || error._tag === "DeadlockDetected") this.collision ??= error
  }

  /** Takes a failure of the connection down, so that what follows says why. */
  note(failure: Failure): void {
    if (failure._tag === "lost") this.die(toStatementError(this.place, failure, "undone"))
  }

  /** Calls `tell` when the transaction cannot go on; the returned function takes that back. */
  whenLost(tell: (error: StatementError) => void): () => void {
    this.waiting ??= new Set()
    const { waiting } = this
    waiting.add(tell)
    return () => {
      waiting.delete(tell)
    }
  }

  /** The transaction cannot go on. */
  die(error: StatementError): void {
    this.lost ??= error
    const { waiting } = this
    if (waiting === undefined) return
    // one that is told may give up others, which are not to be told as well
    for (const tell of [...waiting]) if (waiting.has(tell)) tell(this.lost)
  }

  take(connection: Connection): void {
    this.connection = connection
    connection.onLost = (error) => this.note({ _tag: "lost", error, sent: true, acknowledged: 0 })
  }

  /** Gives up on the transaction: the server is told to stop, the connection closes. */
  abort(why: string, error?: StatementError | undefined): void {
    this.isGivenUp ||= this.lost === undefined
    this.die(error ?? new Disconnected({ ...this.place, cause: new Error(why), outcome: "undone" }))
    this.connection?.abort("cancelled")
  }

  giveBack(): void {
    const connection = this.connection
    this.connection = undefined
    // a transaction that is begun again has none
    this.isScoped = false
    if (connection === undefined) return
    connection.onLost = undefined
    connection.transaction = undefined
    this.lender.checkin(connection)
  }
}
