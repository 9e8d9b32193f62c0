/**
 * A level: one transaction of one database as its server sees it, or a savepoint inside of it. Its
 * functions use callbacks, not fibers.
 *
 * A level has one exchange at a time. A nested level occupies the level around it from its first
 * statement to its end. Nothing is sent before the first statement.
 *
 * This file has the state of a level and its transitions; `levelLock`, `levelExchange`,
 * `levelCommit` and `levelRollback` have the exchanges with the server that lead to them.
 */
import { FifoLock } from "../concurrency/fifoLock.js"
import type { Connection } from "../connection/connection.js"
import type { PlainFailure, StatementFailure } from "../connection/failure.js"
import * as wire from "../protocol/frontendMessages.js"
import type { ConnectionHolder } from "./connectionHolder.js"
import type { LevelSettings } from "./pendingBegin.js"
import type { SandboxedLevel } from "./sandboxedLevel.js"
import { makeSavepoint, type Savepoint } from "./savepoint.js"
import type { SiblingTurn } from "./siblingTurn.js"

/** Outcome of a level, or `open` before it has one. */
export type LevelState = "open" | "committed" | "rolledBack" | "failed" | "unknown"

/**
 * Presence of a level on its server. `undone`: the level was undone together with a nested part,
 * and does not exist on the server. The next statement begins it again.
 */
export type LevelPresence = "unsent" | "begun" | "undone" | "ended"

/**
 * Part of a transaction that ended in rollback, and the cause. The work of the part must not be
 * stored.
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
   * The interruption after which a savepoint can only be undone. The levels around it stay usable.
   */
  interrupted: Interrupted | undefined = undefined
  /** The first part of the level that ended in rollback, so that the level cannot be kept. */
  undone: UndoneReason | undefined = undefined
  /** The turn that a level of a nested part takes before its first statement. */
  turn: SiblingTurn | undefined = undefined
  /** True after the end of the level was requested: no statement may begin any more. */
  isEnding = false
  /** True if the level has work that remains when a nested level is undone. */
  hasOwnWork = false
  /** Held by the statement or end in progress, or by the nested level that has begun. */
  readonly lock = new FifoLock()
  /** True if the caller of the statement in progress was interrupted. */
  isCallerGone = false
  /** Fails the statement that is about to begin the level, before it is sent. */
  cancelBegin: ((failure: StatementFailure) => void) | undefined = undefined
  /** The nested level that holds the lock, from its first statement to its end. */
  nested: Level | undefined = undefined
  /** `undefined` for a transaction. */
  readonly savepoint: Savepoint | undefined
  /** The state that only a sandbox needs. */
  sandboxed: SandboxedLevel | undefined = undefined

  constructor(
    readonly connectionHolder: ConnectionHolder,
    readonly parent: Level | undefined,
    /** Replaced if a part requires other settings before anything of the level was sent. */
    public settings: LevelSettings
  ) {
    this.savepoint = parent === undefined ? undefined : makeSavepoint()
  }

  /** True if the server refuses writes in the level. */
  get readOnly(): boolean {
    return this.settings.readOnly
  }

  /** The statement timeout in the level, in ms: 0 is none, `undefined` the session's. */
  get limit(): number | undefined {
    return this.settings.limit
  }

  /** True while the level is open on the server. */
  get isBegun(): boolean {
    return this.presence === "begun"
  }

  /**
   * True if the level has begun on the server, also after its end. False after it was undone
   * together with a nested part, until it begins again.
   */
  get touched(): boolean {
    return this.presence === "begun" || this.presence === "ended"
  }

  /**
   * True if the level is open, has not begun on the server, and no statement is about to begin it.
   */
  get isUnsent(): boolean {
    return !this.isBegun && !this.lock.isHeld && this.state === "open"
  }

  /** The connections that the level holds: one or none. */
  get held(): ReadonlyArray<Connection> {
    return this.connectionHolder.connection === undefined ? none : [this.connectionHolder.connection]
  }

  /** The failure of every further statement, if none can be executed. */
  get blockedBy(): StatementFailure | undefined {
    return this.connectionHolder.lost ?? this.sandboxed?.refused ?? this.interrupted
  }

  /** The steps that undo the level on the server. */
  get undoSteps(): ReadonlyArray<wire.Step> {
    return this.savepoint === undefined ? rollback : this.savepoint.undo
  }

  /** Makes the level end in rollback, because a part of it was undone. */
  markUndone(undone: UndoneReason): void {
    if (this.state === "open") this.undone ??= undone
  }

  /**
   * Records an interruption after which the level can only be undone. If it is no savepoint, this
   * concerns the whole transaction.
   */
  interrupt(failure: Interrupted): void {
    if (this.savepoint === undefined) this.connectionHolder.markLost(failure)
    else this.interrupted ??= failure
  }

  /**
   * Makes the level around this savepoint end in rollback if the savepoint was released with work:
   * its caller regards it as undone, but a released savepoint cannot be undone alone.
   */
  undoReleased(): void {
    const { connectionHolder, parent, state } = this
    if (state !== "committed" || !this.touched || this.readOnly) return
    parent?.interrupt({ _tag: "TransactionInterrupted", ...connectionHolder.location, statement: "RELEASE SAVEPOINT" })
  }

  /**
   * Releases the lock of the level. A transaction also checks in its connection, and a savepoint
   * that had begun releases the lock of the level around it.
   */
  release(): void {
    const wasBegun = this.isBegun
    if (wasBegun) this.presence = "ended"
    this.sandboxed?.onEnd(this.state === "committed", this.connectionHolder.location)
    this.lock.release()
    if (this.parent === undefined) this.connectionHolder.checkIn()
    else if (wasBegun) this.parent.releaseNested()
  }

  /** Releases the lock of this level, which a nested level has held. */
  releaseNested(): void {
    this.nested = undefined
    this.lock.release()
  }
}
