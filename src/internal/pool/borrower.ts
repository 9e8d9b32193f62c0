import * as FiberId from "effect/FiberId"
import type { CallSite } from "../observability/callSite.js"

/** Who asks for a connection; put into words only when somebody reads it. */
export class Borrower {
  constructor(
    private readonly id: FiberId.FiberId,
    private readonly span: string | undefined,
    private readonly site: CallSite | undefined,
    /** What it is for. */
    readonly label: string | undefined
  ) {}

  get fiber(): string {
    return FiberId.threadName(this.id)
  }

  /** Where in the program; else in which span. */
  get place(): string | undefined {
    return this.site?.place ?? this.span
  }
}
