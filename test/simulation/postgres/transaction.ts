/**
 * The transaction of a session of the scripted server.
 */
import type { Holder } from "./locks.js"
import type { Change } from "./store.js"

/** Open transaction. It holds its locks itself. */
export class ServerTransaction implements Holder {
  waitsFor: string | undefined = undefined
  /** The id, from the first write on. */
  xid: number | undefined = undefined
  changes: Array<Change> = []
  isFailed = false
  /** The position of the snapshot of a repeatable read, from the first statement on. */
  snapshot: number | undefined = undefined
  /** The call whose statements it has. */
  call: string | undefined = undefined
  /** The text that `set_config('effect_db.commit')` has saved. */
  commitInfo: string | undefined = undefined
  readonly locals = new Map<string, number>()
  readonly savepoints: Array<{ readonly name: string; readonly changes: number }> = []

  constructor(
    /** False for the transaction of statements without a BEGIN. */
    public isExplicit: boolean,
    readonly isolation: string | undefined,
    readonly isReadOnly: boolean
  ) {}

  /** Checks if all statements see one snapshot. */
  get keepsSnapshot(): boolean {
    return this.isolation === "REPEATABLE READ" || this.isolation === "SERIALIZABLE"
  }
}
