/**
 * A part that has joined a transaction or a unit of work: its end is left to the whole, which must
 * not store the half of a part that ended in rollback.
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
  /** The transactions in which it has sent a writer's statement; created with the first. */
  private sent: Set<Transaction> | undefined
  private undone: UndoneReason | undefined

  constructor(
    /** The context around it. */
    private readonly around: TransactionContext | undefined,
    private readonly name: PartName | undefined
  ) {}

  /**
   * Notes that a writer's statement was sent in a transaction; that of a fork may be sent after the
   * end of the part.
   */
  note(transaction: Transaction): void {
    if (this.undone === undefined) {
      this.sent ??= new Set()
      this.sent.add(transaction)
    } else transaction.level.markUndone(this.undone)
    this.around?.part(transaction)?.note(transaction)
  }

  /**
   * Ends it in rollback, with the failure that has caused it: transactions with its statements must
   * not be stored.
   */
  undo(cause: unknown): void {
    const part = this.name?.label ?? this.name?.site?.place ?? "without a label"
    this.undone = { part, ...(cause === undefined ? {} : { cause }) }
    // a transaction that was not begun after all has no half of it
    for (const { level } of this.sent ?? []) if (!level.isUnsent) level.markUndone(this.undone)
  }
}

/** A context in which statements belong to a part as well. */
export class PartContext extends TransactionContext {
  constructor(
    parent: TransactionContext,
    private readonly own: JoinedPart,
    /** The database whose transaction it has joined; `undefined` is all databases. */
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
