/**
 * A level: one transaction of one database as its server sees it, or a savepoint inside of it. Its
 * functions use callbacks, not fibers.
 *
 * At each level there is one exchange at a time: that of a statement, or those of a nested level
 * from its first statement to its end. Nothing is sent before the first statement.
 *
 * This file has the state of a level and its transitions; `levelLock`, `levelExchange`,
 * `levelCommit` and `levelRollback` have the exchanges with the server that lead to them.
 */
import { FifoLock } from "../concurrency/fifoLock.js"
import type { Connection } from "../connection/connection.js"
import type { PlainFailure, StatementFailure } from "../connection/plainFailure.js"
import * as wire from "../protocol/messages.js"
import type { ConnectionHolder } from "./connectionHolder.js"
import type { NestedGate } from "./nestedGate.js"
import type { LevelSettings } from "./pendingBegin.js"
import { makeSavepoint, type Savepoint } from "./savepoint.js"

/** Outcome of a level, or `open` before it has one. */
export type LevelState = "open" | "committed" | "rolledBack" | "failed" | "unknown"

/**
 * Presence of a level on its server. `undone`: all its work is undone, and it does not exist on the
 * server, as before its first statement. The next statement begins it again.
 */
export type LevelPresence = "unsent" | "begun" | "undone" | "ended"

/**
 * Part of a transaction that ended in rollback, and the reason. The work of the part must not be
 * kept.
 */
export interface UndoneReason {
  readonly part: string
  readonly cause?: unknown
}

/** Failure of a transaction after an interrupted statement. */
export type Interrupted = PlainFailure<"TransactionInterrupted">

const none: ReadonlyArray<never> = []
const rollback = [wire.constantStep("ROLLBACK")]

/** A transaction, or a savepoint inside of one. */
export class Level {
  state: LevelState = "open"
  presence: LevelPresence = "unsent"
  /** The first failure after which the server refuses further statements. */
  failedBy: StatementFailure | undefined = undefined
  /**
   * The interruption of a statement, after which the savepoint can only be undone. The levels
   * around it go on.
   */
  interrupted: Interrupted | undefined = undefined
  /** The first part of it that ended in rollback: the level cannot be kept. */
  undone: UndoneReason | undefined = undefined
  /** The gate of a nested part, which the level passes before its first statement. */
  gate: NestedGate | undefined = undefined
  /** True after its end was requested: no statement may begin any more. */
  isEnding = false
  /** True if the level has work that remains when a nested level is undone. */
  hasOwnWork = false
  /** Held by the statement in progress, or by the nested level that has begun. */
  readonly lock = new FifoLock()
  /** True if the caller of the statement in progress was interrupted. */
  isCallerGone = false
  /** Fails the statement that is about to begin the level, and was not sent yet. */
  cancelBegin: ((failure: StatementFailure) => void) | undefined = undefined
  /** The nested level that holds the lock, from its first statement to its end. */
  nested: Level | undefined = undefined
  /** `undefined` for a transaction. */
  readonly savepoint: Savepoint | undefined

  constructor(
    readonly connectionHolder: ConnectionHolder,
    readonly parent: Level | undefined,
    /** Replaced if a part requires other settings before anything of the level was sent. */
    public settings: LevelSettings
  ) {
    this.savepoint = parent === undefined ? undefined : makeSavepoint()
  }

  /** True if the server refuses writes in it. */
  get readOnly(): boolean {
    return this.settings.readOnly
  }

  /** The server's limit for a statement in it, in ms: 0 is none, `undefined` the session's. */
  get limit(): number | undefined {
    return this.settings.limit
  }

  /** True while the server has it open. */
  get isBegun(): boolean {
    return this.presence === "begun"
  }

  /** True if the server has executed statements of it, and has not undone all of them. */
  get touched(): boolean {
    return this.presence === "begun" || this.presence === "ended"
  }

  /** True if nothing of it was sent, or is about to be. */
  get isUnsent(): boolean {
    return !this.isBegun && !this.lock.isHeld && this.state === "open"
  }

  /** The connections that it holds. */
  get held(): ReadonlyArray<Connection> {
    return this.connectionHolder.connection === undefined ? none : [this.connectionHolder.connection]
  }

  /** The failure of every further statement, if none can be executed. */
  get blockedBy(): StatementFailure | undefined {
    return this.connectionHolder.lost ?? this.interrupted
  }

  /** The steps that undo it on the server. */
  get undoSteps(): ReadonlyArray<wire.Step> {
    return this.savepoint === undefined ? rollback : this.savepoint.undo
  }

  /** Makes it end in rollback, because a part of it was undone. */
  markUndone(undone: UndoneReason): void {
    if (this.state === "open") this.undone ??= undone
  }

  /**
   * Marks the level as one that can only be undone. Without a savepoint this is the whole
   * transaction.
   */
  interrupt(failure: Interrupted): void {
    if (this.savepoint === undefined) this.connectionHolder.markLost(failure)
    else this.interrupted ??= failure
  }

  /**
   * Makes the level around a released savepoint end in rollback: the savepoint cannot be undone
   * alone any more, and its caller takes it for undone.
   */
  undoReleased(): void {
    const { connectionHolder, parent, state } = this
    if (state !== "committed" || !this.touched || this.readOnly) return
    parent?.interrupt({ _tag: "TransactionInterrupted", ...connectionHolder.location, statement: "RELEASE SAVEPOINT" })
  }

  /** Releases its lock and, if it had begun, the connection or the lock of the level around it. */
  release(): void {
    const wasBegun = this.isBegun
    if (wasBegun) this.presence = "ended"
    this.lock.release()
    if (this.parent === undefined) this.connectionHolder.checkIn()
    else if (wasBegun) this.parent.releaseNested()
  }

  /** Releases the lock that a nested level has held. */
  releaseNested(): void {
    this.nested = undefined
    this.lock.release()
  }
}
