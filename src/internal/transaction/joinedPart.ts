/**
 * A part of a transaction, or of a unit of work, that has joined it: its end is left to the whole, which must not store the half of a part
 * that ended in rollback.
 */
import type * as Fiber from "effect/Fiber"
import type { WorkLabel } from "../../Transaction.js"
import type { CallSite } from "../observability/callSite.js"
import type { Describe } from "../statement/workLabel.js"
import { TransactionContext } from "./context.js"
import type { UndoneReason } from "./level.js"
import type { Transaction } from "./transaction.js"

/** The name of a part: its label, else the place where it is written. */
export interface PartName {
  readonly label: string | undefined
  readonly site: CallSite | undefined
}

/** A part that has joined. */
export class JoinedPart {
  /** The transactions that it has sent a writer's statement in; made with the first. */
  private sent: Set<Transaction> | undefined
  private undone: UndoneReason | undefined

  constructor(
    /** The context that it has joined. */
    private readonly around: TransactionContext | undefined,
    private readonly name: PartName | undefined
  ) {}

  /** Notes that a writer's statement was sent in a transaction; one of a fork may come after the end. */
  note(transaction: Transaction): void {
    if (this.undone === undefined) {
      this.sent ??= new Set()
      this.sent.add(transaction)
    } else transaction.level.markUndone(this.undone)
    this.around?.part(transaction)?.note(transaction)
  }

  /** Ends it in rollback, for a failure if there is one: what holds a part of it must not be stored. */
  undo(cause: unknown): void {
    const part = this.name?.label ?? this.name?.site?.place ?? "without a label"
    this.undone = { part, ...(cause === undefined ? {} : { cause }) }
    // of what was not begun in the end there is no half
    for (const { level } of this.sent ?? []) if (!level.isUnsent) level.markUndone(this.undone)
  }
}

/** A context in which statements belong to a part as well. */
export class PartContext extends TransactionContext {
  constructor(
    parent: TransactionContext,
    private readonly own: JoinedPart,
    /** The database that it has joined a transaction of; `undefined` is all of them. */
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
