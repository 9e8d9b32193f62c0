/**
 * The hooks of a unit of work on databases where it has not begun a transaction yet. A hook begins
 * no transaction itself, because later reads would have to join it.
 */
import type { Options } from "../../Transaction.js"
import type { Hook } from "../transaction/hook.js"
import type { Origin, Transaction } from "../transaction/transaction.js"

/** Function that begins a transaction of a database. */
export type Begin = (options: Options) => Transaction

/** Hooks of one database. */
export interface HooksOfDatabase {
  readonly begin: Begin
  readonly hooks: Array<Hook>
}

/** Hooks of one unit that wait for a transaction, by database. */
export class HooksBeforeBegin {
  private readonly all = new Map<Origin, HooksOfDatabase>()

  get isEmpty(): boolean {
    return this.all.size === 0
  }

  /** Adds a hook, which waits for a transaction that `begin` begins. */
  add(origin: Origin, hook: Hook, begin: Begin): void {
    const known = this.all.get(origin)
    if (known === undefined) this.all.set(origin, { begin, hooks: [hook] })
    else known.hooks.push(hook)
  }

  /** Returns the hooks of a database, if there are any. */
  of(origin: Origin): HooksOfDatabase | undefined {
    return this.all.get(origin)
  }

  /** Returns the hooks of all databases. */
  list(): ReadonlyArray<readonly [Origin, HooksOfDatabase]> {
    return [...this.all]
  }

  /** Removes the hooks of a database. */
  remove(origin: Origin): void {
    this.all.delete(origin)
  }
}
