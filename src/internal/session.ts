/**
 * One transaction of one database as the server sees it, and the savepoints inside of it: callbacks, no fibers.
 *
 * A session has levels: the transaction itself and, inside of it, savepoints. At each level one thing happens at a time: a statement,
 * or a nested level from its first statement to its end. Nothing is sent before the first statement.
 */
import type { Connection, Done, Failure, Flight, Request } from "../Connection.js"
import {
  CommitFailed,
  CommitOutcomeUnknown,
  RolledBackAtCommit,
  type StatementError,
  TransactionBusy,
  TransactionEnded,
  type TransactionError
} from "../DatabaseError.js"
import { toStatementError } from "./failure.js"
import { later, longestUndo } from "./later.js"
import type { Link } from "./link.js"
import { commitAndAsk } from "./position.js"
import { Turns } from "./turns.js"
import * as wire from "./wire.js"

// An interruption waits for the end of a transaction and, where there are several, for one to be committed and the others to be undone. All
// that is to be over within a second, on a dead network too.

/** How long the answer to a COMMIT may take that nobody waits for any more, in ms. */
const longestCommit = 500

/** What keeps a statement from touching what is around it. */
export type Fence = "none" | "savepoint" | "readOnly"

/** How a level stands. */
export type State = "open" | "committed" | "rolledBack" | "failed" | "unknown"

/** What a level needs before its first statement can run; a class, for the reason that `cancellable` gives. */
class Opening {
  constructor(
    readonly level: Level,
    readonly steps: ReadonlyArray<wire.Step>
  ) {}
}

type Ready = (
  error: StatementError | undefined,
  connection: Connection | undefined,
  /** From the outside in. */
  opening: ReadonlyArray<Opening>
) => void

type OnStatement = (error: StatementError | undefined, flight: Flight | undefined) => void

const none: ReadonlyArray<never> = []
const nothing = () => {}

const commit = [wire.constantStep("COMMIT")]
const rollback = [wire.constantStep("ROLLBACK")]
const checkNow = [wire.constantStep("SET CONSTRAINTS ALL IMMEDIATE")]
const readOnlyStep = wire.constantStep("SET LOCAL transaction_read_only = on")

/** All that comes before a statement. Most often there is one list of steps, or none, and that is it. */
const stepsOf = (opening: ReadonlyArray<Opening>, before: ReadonlyArray<wire.Step>): ReadonlyArray<wire.Step> => {
  const [outermost] = opening
  if (outermost === undefined) return before
  if (opening.length === 1 && before.length === 0) return outermost.steps
  return [...opening.flatMap((_) => _.steps), ...before]
}

let savepoints = 0

const savepoint = () => {
  const name = `effect_db_${++savepoints}`
  return {
    set: wire.step(`SAVEPOINT ${name}`),
    release: wire.step(`RELEASE SAVEPOINT ${name}`),
    undo: [wire.step(`ROLLBACK TO SAVEPOINT ${name}`), wire.step(`RELEASE SAVEPOINT ${name}`)]
  }
}

/** A transaction, or a savepoint inside of one. */
export class Level {
  state: State = "open"
  /** The first failure that made the server refuse what follows. */
  failedBy: StatementError | undefined = undefined
  /** Whether the server has ever known of it. */
  touched = false
  private opened = false
  private ending = false
  private readonly turns = new Turns()
  /** Whether a nested level has the turn, from its first statement to its end. */
  private isNesting = false
  private readonly mark: ReturnType<typeof savepoint> | undefined

  constructor(
    readonly link: Link,
    readonly parent: Level | undefined,
    /** What opens it: BEGIN and the settings of the transaction; of a savepoint only the settings. */
    private readonly begin: ReadonlyArray<wire.Step>,
    /** What puts the settings back when a savepoint is released. */
    private readonly restore: ReadonlyArray<wire.Step>,
    readonly readOnly: boolean,
    /** The server's limit for a statement in it, in ms: 0 is none, `undefined` the session's. */
    readonly limit: number | undefined
  ) {
    this.mark = parent === undefined ? undefined : savepoint()
  }

  /** Whether the server knows of it. */
  get isOpened(): boolean {
    return this.opened
  }

  /** Runs a statement; the returned function gives it up, and the transaction with it if it was sent. */
  run(request: Request, fence: Fence, done: OnStatement): () => void {
    return this.enter(done, (connection, opening, settle) => {
      const guard = fence === "none" ? undefined : savepoint()
      const before = guard === undefined ? none : fence === "readOnly" ? [guard.set, readOnlyStep] : [guard.set]
      const path = this.link.pathTo(request.path)
      const after = guard === undefined ? none : fence === "readOnly" ? guard.undo : [guard.release]
      const first = stepsOf(opening, path.length === 0 ? before : [...path, ...before])
      const guarded = (
        failure: Failure | undefined,
        flight: Flight,
        isSet = flight.acknowledged > first.length - before.length
      ): void => {
        if (guard === undefined || failure === undefined || failure._tag === "lost" || !isSet)
          return settle(failure, flight)
        // the failure is the statement's own affair: what is around it goes on
        connection.undo(guard.undo, (undoFailure) => settle(failure, flight, undoFailure === undefined))
      }
      if (!request.simple) return connection.run(first, request, after, guarded)
      // several commands in one text are a message of their own kind, with an answer of its own
      const plain = () =>
        connection.run(none, request, none, (failure, flight) => {
          if (failure !== undefined || after.length === 0) return guarded(failure, flight, true)
          connection.steps(after, (afterFailure) => guarded(afterFailure, flight, true))
        })
      if (first.length === 0) return plain()
      connection.steps(first, (failure, flight) => {
        this.acknowledge(opening, flight.acknowledged)
        if (failure === undefined) plain()
        else settle(failure, flight)
      })
    })
  }

  /** Opens a portal and fetches its first rows. */
  openPortal(
    request: Request,
    size: number,
    done: (error: StatementError | undefined, portal: Portal | undefined) => void
  ): () => void {
    let name = ""
    return this.enter(
      (error, flight) =>
        done(error, flight === undefined ? undefined : new Portal(this, name, flight, size, request.path)),
      (connection, opening, settle) => {
        name = connection.nextPortal()
        connection.openPortal(stepsOf(opening, this.link.pathTo(request.path)), name, request, size, settle)
      }
    )
  }

  /** @internal */
  inPortal(action: (connection: Connection, settle: Done) => void, done: OnStatement): () => void {
    return this.enter(done, (connection, _, settle) => action(connection, settle))
  }

  /** Has the server check now what it would check at COMMIT; the returned function gives up. A savepoint has no late checks. */
  check(done: (error: TransactionError | undefined) => void): () => void {
    let sent = false
    let settled = false
    const finish = (error: TransactionError | undefined) => {
      settled = true
      this.turns.pass()
      done(error)
    }
    const leave = this.turns.take(() => {
      const { connection, lost, place } = this.link
      if (lost !== undefined) return finish(lost)
      if (!this.opened || connection === undefined) return finish(undefined)
      if (connection.status === "E") return finish(this.rolledBackAtCommit())
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
   * waits for the answer within a bound; it calls back when `state` is known.
   */
  commit(done: (error: TransactionError | undefined) => void): (settled: () => void) => void {
    this.ending = true
    let sent = false
    let answered = false
    let onAnswer = nothing
    const finish = (state: State, error: TransactionError | undefined) => {
      this.state = state
      answered = true
      this.leave()
      done(error)
      onAnswer()
    }
    const leaveQueue = this.turns.take(() => {
      const { connection, lost, place } = this.link
      // somebody else has ended it, perhaps otherwise
      if (this.state !== "open") {
        answered = true
        this.turns.pass()
        return done(new TransactionEnded(place))
      }
      if (lost !== undefined) return finish("failed", lost)
      if (!this.opened || connection === undefined) return finish("committed", undefined)
      sent = true
      if (this.mark === undefined) {
        // what is aborted stores nothing
        const asking = this.readOnly || connection.status === "E" ? undefined : this.link.asking
        const refused = (failure: Failure) => {
          const [state, error] = this.commitFailure(failure)
          if (state === "unknown") asking?.committed(undefined)
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
          commitAndAsk(connection, (failure, { answer, isKept }) => {
            if (failure !== undefined) return refused(failure)
            if (isKept) asking.committed(answer)
            ended(isKept)
          })
        }
      } else {
        const { undo } = this.mark
        connection.steps([this.mark.release, ...this.restore], (failure) => {
          if (failure === undefined) return finish("committed", undefined)
          this.link.note(failure)
          if (this.link.lost !== undefined) return finish("failed", this.link.lost)
          connection.undo(undo, (undoFailure) => {
            if (undoFailure !== undefined) this.link.note(undoFailure)
            finish("failed", this.rolledBackAtCommit())
          })
        })
      }
    })
    return (settled) => {
      if (answered) return settled()
      if (!sent) {
        leaveQueue()
        return settled()
      }
      const stop = later(longestCommit, () => this.link.connection?.destroy("broken"))
      onAnswer = () => {
        stop()
        settled()
      }
    }
  }

  /** Undoes what was done. It does not fail: where the server does not answer in time, the connection is closed, which undoes it too. */
  rollback(done: () => void, pace: keyof typeof longestUndo = "usual"): void {
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
    const stop = later(longestUndo[pace], () => {
      // whoever has the turn, in flight or in a nested level, has lost its connection
      this.link.abort("ROLLBACK was not possible in time")
      finish()
    })
    this.turns.take(() => {
      // somebody else has ended it
      if (this.state !== "open") {
        this.turns.pass()
        return over()
      }
      const { connection, lost } = this.link
      if (!this.opened || connection === undefined || lost !== undefined) return finish()
      connection.steps(this.mark === undefined ? rollback : this.mark.undo, (failure) => {
        if (failure !== undefined) this.link.abort("ROLLBACK was refused")
        finish()
      })
    })
  }

  /** The connections that this transaction holds. */
  get held(): ReadonlyArray<Connection> {
    return this.link.connection === undefined ? none : [this.link.connection]
  }

  private rolledBackAtCommit(): RolledBackAtCommit {
    return new RolledBackAtCommit({
      ...this.link.place,
      ...(this.failedBy === undefined ? {} : { cause: this.failedBy })
    })
  }

  private commitFailure(failure: Failure): [State, TransactionError] {
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
    this.turns.pass()
    if (this.parent === undefined) this.link.giveBack()
    else if (wasOpened) this.parent.passFromNested()
  }

  /**
   * Takes a turn at this level, opening it and those above it if need be, for one exchange with the server. The returned function
   * leaves the queue, or, once something was sent, cancels it and ends the transaction.
   */
  private enter(
    done: OnStatement,
    exchange: (
      connection: Connection,
      opening: ReadonlyArray<Opening>,
      settle: (failure: Failure | undefined, flight: Flight, undone?: boolean) => void
    ) => void
  ): () => void {
    let sent = false
    let settled = false
    const leave = this.reach((error, connection, opening) => {
      if (error !== undefined || connection === undefined) {
        settled = true
        return done(error, undefined)
      }
      sent = true
      connection.transaction = this
      exchange(connection, opening, (failure, flight, undone) => {
        settled = true
        // what has ended it may have begun another one
        if (flight.result.command === "COMMIT" || flight.results.length > 0) this.link.asking?.committed(undefined)
        const all = opening.length
        if (all > 0) this.acknowledge(opening, flight.acknowledged)
        const isAborted = connection.status === "E" && undone !== true
        const error = failure === undefined ? this.stillOpen(connection) : this.judge(failure, opening, isAborted)
        if (all > 0) this.close(opening)
        this.turns.pass()
        done(error, error === undefined ? flight : undefined)
      })
    })
    return () => {
      if (settled) return
      if (sent) this.link.abort("a statement in the transaction was interrupted")
      else leave()
    }
  }

  /** What a failure means for the statement and for the transaction around it. */
  private judge(failure: Failure, opening: ReadonlyArray<Opening>, isAborted: boolean): StatementError {
    // before BEGIN was answered nothing of the transaction exists, so nothing can be lost or done twice
    const outermost = opening[0]?.level
    const begun = outermost === undefined || outermost.parent !== undefined || outermost.opened
    const error = toStatementError(this.link.place, failure, begun ? "undone" : "notSent")
    if (begun) this.link.note(failure)
    // a connection that is lost is the link's affair, which knows whether this side has closed it
    if (isAborted && failure._tag !== "lost") {
      this.failedBy ??= error
      this.link.noteAborted(error)
    }
    return begun && failure._tag !== "lost" ? (this.stillOpen(this.link.connection) ?? error) : error
  }

  /** A COMMIT or ROLLBACK in a statement ends the transaction behind our back: what follows must not run without one. */
  private stillOpen(connection: Connection | undefined): StatementError | undefined {
    if (connection === undefined || connection.status !== "I") return undefined
    const cause = new Error("a statement inside of it has ended it")
    this.link.asking?.committed(undefined)
    this.link.die(new TransactionEnded({ ...this.link.place, cause }))
    return this.link.lost
  }

  /** Marks the levels whose opening the server has acknowledged. */
  private acknowledge(opening: ReadonlyArray<Opening>, acknowledged: number): void {
    let left = acknowledged
    for (const { level, steps } of opening) {
      if (left > 0) {
        level.opened = true
        level.touched = true
      }
      left -= steps.length
    }
  }

  /** Undoes the opening of the levels that the server did not open. */
  private close(opening: ReadonlyArray<Opening>): void {
    for (let i = opening.length - 1; i >= 0; i--) {
      const level = opening[i]?.level
      if (level === undefined || level.opened) continue
      if (level.parent === undefined) level.link.giveBack()
      else level.parent.passFromNested()
    }
  }

  private passFromNested(): void {
    this.isNesting = false
    this.turns.pass()
  }

  /** Takes a turn here and, where this level is not open yet, at those above; they stay taken while it is open. */
  private reach(ready: Ready, isNested = false): () => void {
    if (this.link.lost !== undefined && !this.ending) {
      // whoever has the turn may keep it until the connection is closed
      ready(this.link.lost, undefined, none)
      return nothing
    }
    let leaveAbove = nothing
    let stopWaiting = nothing
    let isWaiting = true
    const leaveQueue = this.turns.take(() => {
      isWaiting = false
      stopWaiting()
      const fail = (error: StatementError) => {
        this.turns.pass()
        ready(error, undefined, none)
      }
      const { connection, lost } = this.link
      if (this.ending) return fail(new TransactionEnded(this.link.place))
      if (lost !== undefined) return fail(lost)
      this.isNesting = isNested
      if (this.opened) return ready(undefined, connection, none)
      const above: Ready = (error, connection, opening) => {
        if (error !== undefined) return fail(error)
        const steps = this.mark === undefined ? this.begin : [this.mark.set, ...this.begin]
        ready(undefined, connection, opening.concat(new Opening(this, steps)))
      }
      const leave = this.parent === undefined ? this.borrow(above) : this.parent.reach(above, true)
      leaveAbove = () => {
        leave()
        this.turns.pass()
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

  /** Who waits for a turn is told when there will be none, and does not wait for ever for a nested level to end. */
  private whileWaiting(giveUp: (error: StatementError) => void): () => void {
    const { place } = this.link
    const { patience } = this.link.lender
    const look = () => {
      if (this.isNesting) giveUp(new TransactionBusy({ ...place, waited: patience }))
      else timer = setTimeout(look, patience)
    }
    let timer = setTimeout(look, patience)
    const stop = this.link.whenLost(giveUp)
    return () => {
      clearTimeout(timer)
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
    private readonly opened: Flight,
    private readonly size: number,
    /** What its rows are made of may be looked up as late as they are fetched. */
    private readonly path: Request["path"]
  ) {}

  /** The first rows. */
  get first(): Flight {
    return this.opened
  }

  /** More rows. */
  next(done: OnStatement): () => void {
    return this.level.inPortal(
      (connection, settle) =>
        connection.fetchPortal(this.level.link.pathTo(this.path), this.name, this.opened, this.size, settle),
      done
    )
  }

  /**
   * Closes it before its last row. It goes with its transaction at the latest, so `done` is called soon, whatever the server does. With
   * `isOver` the transaction is not expected to go on: a connection that does not answer is closed, so that its end does not wait again.
   */
  close(isOver: boolean, done: () => void): void {
    let sent: Connection | undefined
    const stop = later(longestUndo[isOver ? "hurried" : "usual"], () => {
      if (sent === undefined) leave()
      else if (isOver) sent.destroy("broken")
      done()
    })
    const leave = this.level.inPortal(
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
