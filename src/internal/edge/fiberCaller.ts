/**
 * The description of the fiber that checks out a connection.
 */
import * as FiberId from "effect/FiberId"
import type { CallSite } from "../observability/callSite.js"
import type { Caller } from "../pool/caller.js"

/**
 * Fiber as the caller of a checkout. Its fields are formatted only when they are read, because most
 * checkouts are never reported.
 */
export class FiberCaller implements Caller {
  constructor(
    private readonly id: FiberId.FiberId,
    private readonly span: string | undefined,
    private readonly site: CallSite | undefined,
    readonly label: string | undefined
  ) {}

  get fiber(): string {
    return FiberId.threadName(this.id)
  }

  /**
   * Returns the location in the program or, if call sites are not recorded, the name of the span.
   */
  get location(): string | undefined {
    return this.site?.location ?? this.span
  }
}
