import * as FiberId from "effect/FiberId"
import type { CallSite } from "../observability/callSite.js"

/**
 * The caller of a checkout. Its fields are formatted only when they are read, as most checkouts are
 * never reported.
 */
export class Borrower {
  constructor(
    private readonly id: FiberId.FiberId,
    private readonly span: string | undefined,
    private readonly site: CallSite | undefined,
    /** The label of the work that the connection is for. */
    readonly label: string | undefined
  ) {}

  get fiber(): string {
    return FiberId.threadName(this.id)
  }

  /**
   * Returns the location in the program or, if call sites are not recorded, the name of the span.
   */
  get location(): string | undefined {
    return this.site?.place ?? this.span
  }
}
