/**
 * A part that has joined a transaction or a unit of work, and is committed or rolled back with it.
 * If the part itself ends in rollback, its work must not be stored, so the whole must end in
 * rollback.
 */
import type * as Fiber from "effect/Fiber"
import type { WorkLabel } from "../../Transaction.js"
import type { CallSite } from "../observability/callSite.js"
import type { Describe } from "../statement/workLabel.js"
import { TransactionContext } from "./context.js"
import type { UndoneReason } from "./level.js"
import type { Transaction } from "./transaction.js"

/** Name of a part: its label, else its call site. */
export interface PartName {
  readonly label: string | undefined
  readonly site: CallSite | undefined
}

/** A part that has joined. */
export class JoinedPart {
  /**
   * The transactions in which the part has sent a writer's statement; `undefined` before the first
   * such statement.
   */
  private sent: Set<Transaction> | undefined
  private undone: UndoneReason | undefined

  constructor(
    /** The context around it. */
    private readonly around: TransactionContext | undefined,
    private readonly name: PartName | undefined
  ) {}

  /**
   * Records that a writer's statement was sent in a transaction, also for the part around this one.
   * If this part has already ended in rollback, a fork has sent the statement, and the transaction
   * must end in rollback.
   */
  recordSent(transaction: Transaction): void {
    if (this.undone === undefined) {
      this.sent ??= new Set()
      this.sent.add(transaction)
    } else transaction.level.markUndone(this.undone)
    this.around?.part(transaction)?.recordSent(transaction)
  }

  /** The transactions in which the part has sent a writer's statement. */
  get sentIn(): ReadonlyArray<Transaction> {
    return [...(this.sent ?? [])]
  }

  /**
   * Ends the part in rollback. The transactions in which it has sent statements must end in
   * rollback then.
   */
  undo(cause: unknown): void {
    const part = this.name?.label ?? this.name?.site?.location ?? "without a label"
    this.undone = { part, ...(cause === undefined ? {} : { cause }) }
    // a transaction that has not begun has no work of the part
    for (const { level } of this.sent ?? []) if (!level.isUnsent) level.markUndone(this.undone)
  }
}

/** Context of the statements of a joined part. */
export class PartContext extends TransactionContext {
  constructor(
    parent: TransactionContext,
    private readonly own: JoinedPart,
    /** The database of the transaction that the part has joined; `undefined` is all databases. */
    private readonly database: Transaction["origin"] | undefined,
    private readonly describe: Describe | undefined
  ) {
    super(parent, parent.owner)
  }

  override part(transaction: Transaction): JoinedPart | undefined {
    return this.database === undefined || this.database === transaction.origin ? this.own : super.part(transaction)
  }

  override work(fiber: Fiber.RuntimeFiber<unknown, unknown>): WorkLabel | undefined {
    return this.describe?.(fiber) ?? super.work(fiber)
  }
}
