/**
 * One transaction of one database as the server sees it, and the savepoints inside of it: callbacks, no fibers.
 *
 * A session has levels: the transaction itself and, inside of it, savepoints. At each level one thing happens at a time: a statement,
 * or a nested level from its first statement to its end. Nothing is sent before the first statement.
 */

import {
  CommitFailed,
  CommitOutcomeUnknown,
  RolledBackAtCommit,
  type StatementError,
  TransactionBusy,
  TransactionEnded,
  type TransactionError,
  TransactionInterrupted
} from "../../DatabaseError.js"
import * as clock from "../concurrency/clock.js"
import { FifoLock } from "../concurrency/fifoLock.js"
import type { Connection, Exchange, Failure, OnExchange, Request } from "../connection/connection.js"
import { isStaleRefusal, textOf } from "../connection/statementFailure.js"
import { commitAndQueryPosition } from "../consistency/walPosition.js"
import { afterFirst, toStatementError, wrongRole } from "../edge/statementError.js"
import type { Copy } from "../protocol/copyData.js"
import * as wire from "../protocol/messages.js"
import { isCopy } from "../sql/copy.js"
import type { ConnectionHolder } from "./connectionHolder.js"
import { type EndingStatement, endingStatementOf, mayCommit } from "./endingStatement.js"
import type { NestedGate } from "./nestedGate.js"

// An interruption waits for the end of a transaction and, where there are several, for one to be committed and the others to be undone. All
// that is to be over within a second, on a dead network too.

/** How long the answer to a COMMIT may take that nobody waits for any more, in ms. */
const longestCommit = 500

/** What keeps a statement from touching what is around it. */
export type StatementIsolation = "none" | "savepoint" | "readOnly"

/** How a level stands. */
export type LevelState = "open" | "committed" | "rolledBack" | "failed" | "unknown"

/** A part of a transaction that ended in rollback, and why; what it has done in there must not be kept. */
export interface UndoneReason {
  readonly part: string
  readonly cause?: unknown
}

/** What a level needs before its first statement can run; a class, for the reason that `cancellable` gives. */
class PendingBegin {
  constructor(
    readonly level: Level,
    readonly steps: ReadonlyArray<wire.Step>
  ) {}
}

type Ready = (
  error: StatementError | undefined,
  connection: Connection | undefined,
  /** From the outside in. */
  opening: ReadonlyArray<PendingBegin>
) => void

/** What was undone on the server after a statement had failed: nothing, the statement by its fence, or all that was opened with it. */
type Undoing = "nothing" | "statement" | "opening"

type OnStatement = (error: StatementError | undefined, flight: Exchange | undefined) => void

const none: ReadonlyArray<never> = []
const nothing = () => {}

const commit = [wire.constantStep("COMMIT")]
const rollback = [wire.constantStep("ROLLBACK")]
const checkNow = [wire.constantStep("SET CONSTRAINTS ALL IMMEDIATE")]
const readOnlyStep = wire.constantStep("SET LOCAL transaction_read_only = on")

/** All that comes before a statement. Most often there is one list of steps, or none, and that is it. */
const stepsOf = (opening: ReadonlyArray<PendingBegin>, before: ReadonlyArray<wire.Step>): ReadonlyArray<wire.Step> => {
  const [outermost] = opening
  if (outermost === undefined) return before
  if (opening.length === 1 && before.length === 0) return outermost.steps
  return [...opening.flatMap((_) => _.steps), ...before]
}

/** Whether a transaction begins here. */
const isOutermost = ([first]: ReadonlyArray<PendingBegin>): boolean =>
  first !== undefined && first.level.parent === undefined && !first.level.isOpened

/** Builds the failure of a transaction whose connection goes: on another server it may go better. */
const undoneWith = ({ acknowledged, error }: Failure): Failure => ({
  _tag: "lost",
  error,
  sent: true,
  undone: true,
  acknowledged
})

let savepoints = 0

const savepoint = () => {
  const name = `effect_db_${++savepoints}`
  return {
    set: wire.step(`SAVEPOINT ${name}`),
    release: wire.step(`RELEASE SAVEPOINT ${name}`),
    undo: [wire.step(`ROLLBACK TO SAVEPOINT ${name}`), wire.step(`RELEASE SAVEPOINT ${name}`)]
  }
}

/** The beginning of a level. */
export interface LevelSettings {
  /** The steps that open it: BEGIN and the settings of the transaction; of a savepoint only the settings. */
  readonly begin: ReadonlyArray<wire.Step>
  /** The steps that put the settings back when a savepoint is released. */
  readonly restore: ReadonlyArray<wire.Step>
  readonly readOnly: boolean
  readonly limit: number | undefined
}

/** A transaction, or a savepoint inside of one. */
export class Level {
  state: LevelState = "open"
  /** The first failure that made the server refuse what follows. */
  failedBy: StatementError | undefined = undefined
  /** The interruption of a statement after which it can only be undone, and what is around it goes on. */
  private interrupted: StatementError | undefined = undefined
  /** The first part of it that ended in rollback: it cannot be kept. */
  undone: UndoneReason | undefined = undefined
  /** Whether the server has ever known of it. */
  touched = false
  /** Set while all that was ever in it is undone, and the server knows nothing of it any more, as before its first statement. */
  isVacated = false
  /** The gate of a nested part, at which it waits before its first statement. */
  gate: NestedGate | undefined = undefined
  private opened = false
  private ending = false
  /** Set once anything was done in it that stays when a nested level is undone. */
  private used = false
  private readonly turns = new FifoLock()
  /** Whether the caller of the statement under way has left. */
  private isLeft = false
  /** Gives up the statement that is about to open it, which waits for a turn or a connection: nothing of it was sent. */
  private giveUpOpening: ((error: StatementError) => void) | undefined = undefined
  /** The nested level that has the turn, from its first statement to its end. */
  private nested: Level | undefined = undefined
  private readonly mark: ReturnType<typeof savepoint> | undefined

  constructor(
    readonly link: ConnectionHolder,
    readonly parent: Level | undefined,
    private opening: LevelSettings
  ) {
    this.mark = parent === undefined ? undefined : savepoint()
  }

  /** Whether the server refuses writes in it. */
  get readOnly(): boolean {
    return this.opening.readOnly
  }

  /** The server's limit for a statement in it, in ms: 0 is none, `undefined` the session's. */
  get limit(): number | undefined {
    return this.opening.limit
  }

  /** Tells whether nothing of it was sent, nor is about to be. */
  get isUnsent(): boolean {
    return !this.opened && !this.turns.isHeld && this.state === "open"
  }

  /** Has it begin otherwise, before anything of it was sent. */
  plan(opening: LevelSettings): void {
    this.opening = opening
  }

  /** Whether the server knows of it. */
  get isOpened(): boolean {
    return this.opened
  }

  /** Has it end in rollback, for a part of it that is undone. */
  markUndone(undone: UndoneReason): void {
    if (this.state === "open") this.undone ??= undone
  }

  /** Runs a statement; the returned function gives it up, and the transaction with it if it was sent. */
  run(request: Request, fence: StatementIsolation, done: OnStatement, onSent = nothing): () => void {
    return this.enter(request, fence, done, onSent, (connection, opening, settle) => {
      const guard = fence === "none" ? undefined : savepoint()
      const before = guard === undefined ? none : fence === "readOnly" ? [guard.set, readOnlyStep] : [guard.set]
      const path = this.link.pathTo(request.path)
      const after = guard === undefined ? none : fence === "readOnly" ? guard.undo : [guard.release]
      const first = stepsOf(opening, path.length === 0 ? before : [...path, ...before])
      let isAgain = false
      const guarded = (
        failure: Failure | undefined,
        flight: Exchange,
        // if only its rows could not be read, the steps after the statement have been done, too
        isSet = flight.acknowledged > first.length - before.length &&
          !(failure?._tag === "unsendable" && flight.acknowledged > first.length)
      ): void => {
        if (failure === undefined || failure._tag === "lost") return settle(failure, flight)
        const opened = opening[0]?.level.undo ?? guard?.undo
        // refused before it was bound, so nothing has run in what was opened with it
        if (opened !== undefined && !isAgain && isStaleRefusal(failure) && flight.bound === first.length) {
          isAgain = true
          const undone = opening.length > 0 ? "opening" : "statement"
          return connection.undo(opened, (undoFailure) => {
            if (undoFailure === undefined && !this.isLeft) connection.run(first, request, after, guarded)
            else settle(failure, flight, undoFailure === undefined ? undone : "nothing")
          })
        }
        if (guard === undefined || !isSet) return settle(failure, flight)
        // the failure is the statement's own affair: what is around it goes on
        connection.undo(guard.undo, (undoFailure) =>
          settle(failure, flight, undoFailure === undefined ? "statement" : "nothing")
        )
      }
      // messages behind a COPY would be taken for its data
      const isAlone = request.simple || (after.length > 0 && isCopy(request.text))
      if (!isAlone) return connection.run(first, request, after, guarded)
      // several commands in one text are a message of their own kind, with an answer of its own
      const plain = () =>
        connection.run(none, request, none, (failure, flight) => {
          if (failure !== undefined || after.length === 0) return guarded(failure, flight, true)
          connection.steps(after, (afterFailure) => guarded(afterFailure, flight, true))
        })
      if (first.length === 0) return plain()
      connection.steps(first, (failure, flight) => {
        this.acknowledge(opening, flight.acknowledged)
        if (failure === undefined && !this.isLeft) plain()
        else settle(failure, flight)
      })
    })
  }

  /** Runs a COPY, whose data goes by way of `copy`; the returned function gives it up, and the transaction with it if it was sent. */
  copy(request: Request, copy: Copy, done: OnStatement): () => void {
    return this.enter(request, "none", done, nothing, (connection, opening, settle) => {
      const first = stepsOf(opening, this.link.pathTo(request.path))
      if (!request.simple || first.length === 0) return connection.copy(first, request, copy, settle)
      connection.steps(first, (failure, flight) => {
        this.acknowledge(opening, flight.acknowledged)
        if (failure === undefined && !this.isLeft) connection.copy(none, request, copy, settle)
        else settle(failure, flight)
      })
    })
  }

  /** Opens a portal and fetches its first rows. */
  openPortal(
    request: Request,
    size: number,
    done: (error: StatementError | undefined, portal: Portal | undefined) => void,
    onSent: () => void
  ): () => void {
    let name = ""
    return this.enter(
      request,
      "none",
      (error, flight) => done(error, flight === undefined ? undefined : new Portal(this, name, flight, size, request)),
      onSent,
      (connection, opening, settle) => {
        name = connection.nextPortal()
        connection.openPortal(stepsOf(opening, this.link.pathTo(request.path)), name, request, size, settle)
      }
    )
  }

  /** @internal */
  inPortal(
    request: Request,
    action: (connection: Connection, settle: OnExchange) => void,
    done: OnStatement
  ): () => void {
    return this.enter(request, "none", done, nothing, (connection, _, settle) => action(connection, settle))
  }

  /** Has the server check now what it would check at COMMIT; the returned function gives up. A savepoint has no late checks. */
  check(done: (error: TransactionError | undefined) => void): () => void {
    let sent = false
    let settled = false
    const refuse = (error: TransactionError) => {
      settled = true
      done(error)
    }
    const finish = (error: TransactionError | undefined) => {
      settled = true
      this.turns.release()
      done(error)
    }
    const leave = this.takeLast(refuse, () => {
      const { gone } = this
      const { connection, place } = this.link
      if (gone !== undefined) return finish(gone)
      if (!this.opened || connection === undefined) return finish(undefined)
      if (connection.status === "E" || this.undone !== undefined) return finish(this.rolledBackAtCommit())
      if (this.mark !== undefined) return finish(undefined)
      sent = true
      connection.steps(checkNow, (failure) => {
        if (failure === undefined) return finish(undefined)
        this.link.note(failure)
        finish(failure._tag === "lost" ? toStatementError(place, failure, "undone") : this.commitFailure(failure)[1])
      })
    })
    return () => {
      if (settled) return
      if (sent) this.link.abort("a check before COMMIT was interrupted")
      else leave()
    }
  }

  /**
   * Keeps what was done. The returned function is for a caller who cannot wait: before COMMIT was sent it gives up, after that it
   * waits for the answer within a bound; it calls back when `state` is known. `takesBack` is for one that takes a savepoint for undone then.
   */
  commit(done: (error: TransactionError | undefined) => void): (settled: () => void, takesBack: boolean) => void {
    this.ending = true
    let sent = false
    let answered = false
    let isTakenBack = false
    let onAnswer = nothing
    const finish = (state: LevelState, error: TransactionError | undefined) => {
      this.state = state
      answered = true
      // before the turn passes: a COMMIT may wait for it
      if (isTakenBack) this.takeBack()
      this.leave()
      done(error)
      onAnswer()
    }
    const refuse = (error: TransactionError) => {
      answered = true
      done(error)
    }
    const leaveQueue = this.takeLast(refuse, () => {
      const { gone } = this
      const { connection, place } = this.link
      // somebody else has ended it, perhaps otherwise
      if (this.state !== "open") {
        answered = true
        this.turns.release()
        return done(new TransactionEnded(place))
      }
      sent = gone !== undefined || this.opened
      if (gone !== undefined) return this.revert(this, () => finish("failed", gone))
      if (!this.opened || connection === undefined) return finish("committed", undefined)
      if (this.undone !== undefined) this.revert(this, () => finish("failed", this.rolledBackAtCommit()))
      else if (this.mark === undefined) {
        // what is aborted stores nothing
        const asking = this.readOnly || connection.status === "E" ? undefined : this.link.asking
        const refused = (failure: Failure) => {
          const [state, error] = this.commitFailure(failure)
          if (state === "unknown") asking?.recordCommit(undefined)
          finish(state, error)
        }
        const ended = (isKept: boolean) =>
          finish(isKept ? "committed" : "failed", isKept ? undefined : this.rolledBackAtCommit())
        if (asking === undefined) {
          connection.steps(commit, (failure, flight) => {
            // whatever comes after its answer cannot undo it
            if (failure !== undefined && flight.acknowledged === 0) return refused(failure)
            ended(flight.result.command !== "ROLLBACK")
          })
        } else {
          commitAndQueryPosition(connection, (failure, { status, isCommitted }) => {
            if (failure !== undefined) return refused(failure)
            if (isCommitted) asking.recordCommit(status)
            ended(isCommitted)
          })
        }
      } else {
        connection.steps([this.mark.release, ...this.opening.restore], (failure) => {
          if (failure === undefined) {
            if (this.parent !== undefined) this.parent.used = true
            return finish("committed", undefined)
          }
          this.link.note(failure)
          this.revert(this, () => finish("failed", this.link.lost ?? this.rolledBackAtCommit()))
        })
      }
    })
    return (settled, takesBack) => {
      isTakenBack = takesBack
      if (answered) {
        if (takesBack) this.takeBack()
        return settled()
      }
      if (!sent) {
        leaveQueue()
        return settled()
      }
      const stop = clock.later(longestCommit, () => this.link.connection?.destroy("broken"))
      onAnswer = () => {
        stop()
        settled()
      }
    }
  }

  /** Has what is around a savepoint end in rollback, for it is released, cannot be undone alone any more, and is taken for undone. */
  takeBack(): void {
    const { link, parent, state } = this
    if (state !== "committed" || !this.touched || this.readOnly) return
    parent?.interrupt(new TransactionInterrupted({ ...link.place, statement: "RELEASE SAVEPOINT" }))
  }

  /**
   * Undoes the nested levels that are open in it, the innermost first. A statement that is under way in them is waited for, by what is to
   * come after it as well.
   */
  leaveNested(): void {
    const open: Array<Level> = []
    for (let level = this.nested; level !== undefined; level = level.nested) open.unshift(level)
    for (const level of open) level.rollback(nothing, "unbounded")
  }

  /** Undoes what was done. It does not fail: where the server does not answer in time, the connection is closed, which undoes it too. */
  rollback(done: () => void, pace: keyof typeof clock.rollbackTimeout = "default"): void {
    this.ending = true
    if (this.state !== "open") return done()
    let isOver = false
    const over = () => {
      if (isOver) return
      isOver = true
      stop()
      done()
    }
    const finish = () => {
      if (this.state === "open") {
        this.state = "rolledBack"
        this.leave()
      }
      over()
    }
    let stop = nothing
    // a nested level that has the turn has lost its connection, and may keep the turn for long
    if (this.link.lost !== undefined && this.nested !== undefined) return finish()
    this.leaveNested()
    // what has not come to the server yet, as at the gate of its part, may wait for long, and must not run any more
    this.giveUpOpening?.(new TransactionEnded(this.link.place))
    stop = clock.later(clock.rollbackTimeout[pace], () => {
      // whoever has the turn, in flight or in a nested level, has lost its connection
      this.link.abort("ROLLBACK was not possible in time", this.interrupted)
      finish()
    })
    this.turns.acquire(() => {
      // somebody else has ended it
      if (this.state !== "open") {
        this.turns.release()
        return over()
      }
      this.revert(this.outermostUndone(), finish)
    })
  }

  /** What undoes it on the server. */
  private get undo(): ReadonlyArray<wire.Step> {
    return this.mark === undefined ? rollback : this.mark.undo
  }

  /** Undoes what the server has of it, and of the levels around it up to one, as far as the connection can: losing one undoes all. */
  private revert(outermost: Level, done: () => void): void {
    const { connection, lost } = this.link
    const isGone = connection === undefined || connection.broken !== undefined || connection.status === "I"
    // what is around it is undone, too
    if (!this.opened || isGone || (this.mark !== undefined && lost !== undefined)) return done()
    connection.undo(outermost.undo, (failure) => {
      if (failure !== undefined) this.link.abort("ROLLBACK was refused", this.interrupted)
      else if (outermost !== this) this.vacate(outermost)
      done()
    })
  }

  /** The connections that this transaction holds. */
  get held(): ReadonlyArray<Connection> {
    return this.link.connection === undefined ? none : [this.link.connection]
  }

  /** Why no statement of it can follow. */
  private get gone(): StatementError | undefined {
    return this.link.lost ?? this.interrupted
  }

  /** Builds the failure of an end that keeps nothing. */
  rolledBackAtCommit(): RolledBackAtCommit {
    const cause = this.failedBy === undefined ? {} : { cause: this.failedBy }
    return new RolledBackAtCommit({ ...this.link.place, ...(this.undone ?? cause) })
  }

  private commitFailure(failure: Failure): [LevelState, TransactionError] {
    const { place } = this.link
    if (failure._tag === "lost") {
      return failure.sent && !failure.undone && !this.readOnly
        ? ["unknown", new CommitOutcomeUnknown({ ...place, cause: failure.error })]
        : ["failed", toStatementError(place, failure, "undone")]
    }
    const cause = toStatementError(place, failure, "undone")
    const sqlState = failure._tag === "refused" ? (failure.error.code ?? "") : ""
    return ["failed", new CommitFailed({ ...place, sqlState, cause })]
  }

  /** Ends it for those around it: the connection goes back, or the next at the level above has its turn. */
  private leave(): void {
    const wasOpened = this.opened
    this.opened = false
    this.turns.release()
    if (this.parent === undefined) this.link.giveBack()
    else if (wasOpened) this.parent.passFromNested()
  }

  /**
   * Takes a turn at this level, opening it and those above it if need be, for one exchange with the server. The returned function
   * leaves the queue, or, once something was sent, cancels it: then this level can only be undone, unless a fence was around the statement.
   */
  private enter(
    request: Request,
    fence: StatementIsolation,
    done: OnStatement,
    onSent: () => void,
    exchange: (
      connection: Connection,
      opening: ReadonlyArray<PendingBegin>,
      settle: (failure: Failure | undefined, flight: Exchange, undone?: Undoing) => void
    ) => void
  ): () => void {
    let sent: Connection | undefined
    let settled = false
    let interruption: TransactionInterrupted | undefined
    const leave = this.reach((error, connection, opening) => {
      if (error !== undefined || connection === undefined) {
        settled = true
        return done(error, undefined)
      }
      sent = connection
      this.isLeft = false
      this.used = true
      onSent()
      connection.transaction = this
      exchange(connection, opening, (failure, flight, undone = "nothing") => {
        settled = true
        // what has ended it may have begun another one
        if (flight.result.command === "COMMIT" || flight.results.length > 0) this.link.asking?.recordCommit(undefined)
        const all = opening.length
        // the refusal of what was to read only says nothing of the server's role
        const expectsRefusal = this.readOnly || (fence === "readOnly" && connection.broken === undefined)
        const isMisled = failure !== undefined && !expectsRefusal && connection.hasWrongRole(failure)
        // nothing of it has run: as if there had been no BEGIN
        const isUnfit = isMisled && isOutermost(opening)
        if (all > 0) this.acknowledge(opening, isUnfit || undone === "opening" ? 0 : flight.acknowledged)
        const isAborted = connection.status === "E" && undone === "nothing"
        const error = isUnfit
          ? wrongRole(this.link.place, failure)
          : this.judge(
              isMisled && connection.broken !== undefined ? undoneWith(failure) : failure,
              flight,
              request.text,
              opening,
              isAborted,
              connection,
              interruption
            )
        if (all > 0) this.close(opening)
        this.turns.release()
        done(error, error === undefined ? flight : undefined)
      })
    })
    return () => {
      if (settled || interruption !== undefined) return
      if (sent === undefined) return leave()
      this.isLeft = true
      const callSite = request.site?.place
      interruption = new TransactionInterrupted({
        ...this.link.place,
        statement: textOf(request),
        ...(callSite === undefined ? {} : { callSite })
      })
      if (fence === "none") this.interrupt(interruption)
      sent.cancel()
    }
  }

  /** Marks it as one that can only be undone; without a savepoint it is the whole transaction. */
  private interrupt(error: TransactionInterrupted): void {
    if (this.mark === undefined) this.link.die(error)
    else this.interrupted ??= error
  }

  /** Marks what an interrupted statement has left on the server: a connection that is lost, or a level that the server has aborted. */
  private afterInterruption(error: TransactionInterrupted, connection: Connection, isAborted: boolean): void {
    if (connection.broken !== undefined) return this.link.die(error)
    if (!isAborted) return
    let level: Level = this
    while (!level.opened && level.parent !== undefined) level = level.parent
    level.interrupt(error)
  }

  /** Returns the error of a statement, if it failed or has ended the transaction, and notes what it means for the transaction. */
  private judge(
    failure: Failure | undefined,
    flight: Exchange,
    text: string,
    opening: ReadonlyArray<PendingBegin>,
    isAborted: boolean,
    connection: Connection,
    interruption: TransactionInterrupted | undefined
  ): StatementError | undefined {
    const { link } = this
    if (interruption !== undefined) this.afterInterruption(interruption, connection, isAborted)
    // before BEGIN was answered nothing of the transaction exists, so nothing can be lost or done twice
    const outermost = opening[0]?.level
    const begun = outermost === undefined || outermost.parent !== undefined || outermost.opened
    if (!begun)
      return interruption ?? (failure === undefined ? undefined : toStatementError(link.place, failure, "notSent"))
    const ender = endingStatementOf(flight, text)
    const isLost = failure?._tag === "lost"
    if (ender !== undefined || (!isLost && connection.status === "I")) {
      // what follows a ROLLBACK in one text stands outside of the transaction
      link.mayHaveStored ||= flight.results.length > 1
      return this.endedBy(ender, failure)
    }
    if (failure === undefined) return interruption
    // its COMMIT may have been done before its answer was lost
    const isInDoubt = isLost && failure.sent && !failure.undone && mayCommit(text)
    link.mayHaveStored ||= isInDoubt
    const error =
      interruption ?? afterFirst(toStatementError(link.place, failure, isInDoubt ? "inDoubt" : "undone"), this.failedBy)
    // the link knows whether this side has closed a connection that is lost
    if (isLost) link.die(error)
    else if (isAborted) {
      this.failedBy ??= error
      link.noteAborted(error)
    }
    return error
  }

  /** A statement has ended the transaction: what follows must neither run without one, nor in another one that was begun at once. */
  private endedBy(by: EndingStatement | undefined, failure: Failure | undefined): StatementError | undefined {
    const { link } = this
    // without a tag it is PREPARE TRANSACTION, which a COMMIT PREPARED may store
    link.mayHaveStored ||= by !== "ROLLBACK"
    link.asking?.recordCommit(undefined)
    const cause = failure === undefined ? undefined : toStatementError(link.place, failure, "undone")
    link.die(
      new TransactionEnded({
        ...link.place,
        ...(by === undefined ? {} : { by }),
        ...(cause === undefined ? {} : { cause })
      })
    )
    return link.lost
  }

  /** Marks the levels whose opening the server has acknowledged. */
  private acknowledge(opening: ReadonlyArray<PendingBegin>, acknowledged: number): void {
    let left = acknowledged
    for (const { level, steps } of opening) {
      if (left > 0) {
        level.opened = true
        level.touched = true
        level.isVacated = false
      }
      left -= steps.length
    }
  }

  /** Undoes the opening of the levels that the server did not open. */
  private close(opening: ReadonlyArray<PendingBegin>): void {
    for (let i = opening.length - 1; i >= 0; i--) {
      const level = opening[i]?.level
      if (level === undefined || level.opened) continue
      if (level.parent === undefined) level.link.giveBack()
      else level.parent.passFromNested()
    }
  }

  private passFromNested(): void {
    this.nested = undefined
    this.turns.release()
  }

  /** The outermost level that has nothing in it but this nested part: undone as a whole, it leaves nothing behind, not even a snapshot. */
  private outermostUndone(): Level {
    let level: Level = this
    if (this.gate === undefined) return level
    while (level.parent !== undefined && !level.parent.used) level = level.parent
    return level
  }

  /** Has the levels from the one around this one to the outermost undone be as before their first statement; the next opens them again. */
  private vacate(outermost: Level): void {
    const all: Array<Level> = []
    for (let level = this.parent; level !== undefined; level = level === outermost ? undefined : level.parent) {
      level.opened = false
      level.touched = false
      level.isVacated = true
      all.push(level)
    }
    // before the turns pass: the next waiter must not find the connection
    if (outermost.parent === undefined) this.link.giveBack()
    for (const level of all) level.parent?.passFromNested()
  }

  /** Takes a turn here and, where this level is not open yet, at those above; they stay taken while it is open. */
  private reach(ready: Ready, nested?: Level): () => void {
    if (this.gone !== undefined && !this.ending) {
      // whoever has the turn may keep it until the connection is closed
      ready(this.gone, undefined, none)
      return nothing
    }
    let leaveAbove = nothing
    let stopWaiting = nothing
    let isWaiting = true
    const leaveQueue = this.turns.acquire(() => {
      isWaiting = false
      stopWaiting()
      const fail = (error: StatementError) => {
        this.passUnopened()
        ready(error, undefined, none)
      }
      const { gone } = this
      const { connection } = this.link
      if (this.ending) return fail(new TransactionEnded(this.link.place))
      if (gone !== undefined) return fail(gone)
      this.nested = nested
      if (this.opened) return ready(undefined, connection, none)
      const above: Ready = (error, connection, opening) => {
        if (error !== undefined) return fail(error)
        this.giveUpOpening = undefined
        const { begin } = this.opening
        const steps = this.mark === undefined ? begin : [this.mark.set, ...begin]
        ready(undefined, connection, opening.concat(new PendingBegin(this, steps)))
      }
      const goAbove = () => (this.parent === undefined ? this.borrow(above) : this.parent.reach(above, this))
      let leave = nothing
      this.giveUpOpening = (error) => {
        leave()
        fail(error)
      }
      leave = this.gate === undefined ? goAbove() : this.passGate(this.gate, goAbove, fail)
      leaveAbove = () => {
        leave()
        this.passUnopened()
      }
    })
    if (isWaiting) {
      stopWaiting = this.whileWaiting((error) => {
        leaveQueue()
        stopWaiting()
        ready(error, undefined, none)
      })
    }
    return () => {
      leaveQueue()
      stopWaiting()
      leaveAbove()
    }
  }

  /** Ends a turn with which nothing was opened. */
  private passUnopened(): void {
    this.giveUpOpening = undefined
    this.nested = undefined
    this.turns.release()
  }

  /**
   * Takes the turn of an end, which waits within a bound for what is under way, such as a nested level of a fork, and not at all where the
   * connection is lost: then it is refused. The returned function leaves the queue.
   */
  private takeLast(refuse: (error: StatementError) => void, start: () => void): () => void {
    let isWaiting = true
    let stop = nothing
    const leave = this.turns.acquire(() => {
      isWaiting = false
      stop()
      start()
    })
    if (!isWaiting) return nothing
    const { lender, lost, place } = this.link
    const giveUp = (error: StatementError) => {
      leave()
      stop()
      refuse(error)
    }
    const bound = clock.timer(lender.patience, () => giveUp(new TransactionBusy({ ...place, waited: lender.patience })))
    const unwatch = this.link.whenLost(giveUp)
    stop = () => {
      clock.clear(bound)
      unwatch()
    }
    // a statement that has the turn may keep it until the connection is closed
    if (lost !== undefined) giveUp(lost)
    return () => {
      leave()
      stop()
    }
  }

  /** Goes on when its part has its turn among those beside it, for which it does not wait for ever. The returned function gives up. */
  private passGate(gate: NestedGate, goOn: () => () => void, fail: (error: StatementError) => void): () => void {
    const { lender, place } = this.link
    let giveUp = nothing
    let stop = nothing
    let isPassed = false
    const leave = gate.enter(() => {
      isPassed = true
      stop()
      giveUp = goOn()
    })
    if (isPassed) return giveUp
    const failed = (error: StatementError) => {
      leave()
      stop()
      fail(error)
    }
    const bound = clock.timer(lender.patience, () => failed(new TransactionBusy({ ...place, waited: lender.patience })))
    const unwatch = this.link.whenLost(failed)
    stop = () => {
      clock.clear(bound)
      unwatch()
    }
    return () => {
      leave()
      stop()
      giveUp()
    }
  }

  /** Who waits for a turn is told when there will be none, and does not wait for ever for a nested level to end. */
  private whileWaiting(giveUp: (error: StatementError) => void): () => void {
    const { place } = this.link
    const { patience } = this.link.lender
    const look = () => {
      if (this.nested !== undefined) giveUp(new TransactionBusy({ ...place, waited: patience }))
      else waiting = clock.timer(patience, look)
    }
    let waiting = clock.timer(patience, look)
    const stop = this.link.whenLost(giveUp)
    return () => {
      clock.clear(waiting)
      stop()
    }
  }

  private borrow(ready: Ready): () => void {
    return this.link.lender.checkout((error, connection) => {
      if (connection !== undefined) this.link.take(connection)
      ready(error, connection, none)
    })
  }
}

/** Rows that are fetched in parts while other statements of the transaction run in between. */
export class Portal {
  constructor(
    private readonly level: Level,
    private readonly name: string,
    private readonly opened: Exchange,
    private readonly size: number,
    private readonly request: Request
  ) {}

  /** The first rows. */
  get first(): Exchange {
    return this.opened
  }

  /** More rows. */
  next(done: OnStatement): () => void {
    const { level, name, opened, request, size } = this
    return level.inPortal(
      request,
      (connection, settle) =>
        // what its rows are made of may be looked up as late as they are fetched
        connection.fetchPortal(level.link.pathTo(request.path), name, opened, size, settle),
      done
    )
  }

  /**
   * Closes it before its last row. It goes with its transaction at the latest, so `done` is called soon, whatever the server does. With
   * `isOver` the transaction is not expected to go on: a connection that does not answer is closed, so that its end does not wait again.
   */
  close(isOver: boolean, done: () => void): void {
    let sent: Connection | undefined
    const stop = clock.later(clock.rollbackTimeout[isOver ? "interrupted" : "default"], () => {
      if (sent === undefined) leave()
      else if (isOver) sent.destroy("broken")
      done()
    })
    const leave = this.level.inPortal(
      this.request,
      (connection, settle) => {
        sent = connection
        connection.closePortal(this.name, settle)
      },
      () => {
        stop()
        done()
      }
    )
  }
}
