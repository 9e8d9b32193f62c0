/**
 * The locks of a server, each held by one transaction until its end.
 */

/** Transaction that holds locks or waits for one. */
export interface Holder {
  /** The lock that the transaction waits for. */
  waitsFor: string | undefined
}

interface Waiter {
  readonly holder: Holder
  readonly onGranted: () => void
}

interface Lock {
  owner: Holder
  readonly waiters: Array<Waiter>
}

/** Lock table. */
export class Locks {
  private readonly locks = new Map<string, Lock>()

  /** The number of locks that are held. */
  get size(): number {
    return this.locks.size
  }

  /** Takes a lock if it is free, or is held by the same transaction. */
  take(key: string, holder: Holder): boolean {
    const lock = this.locks.get(key)
    if (lock === undefined) {
      this.locks.set(key, { owner: holder, waiters: [] })
      return true
    }
    return lock.owner === holder
  }

  /** Waits for a lock; the returned function ends the wait. */
  wait(key: string, holder: Holder, onGranted: () => void): () => void {
    const lock = this.locks.get(key)
    if (lock === undefined) throw new Error(`the lock ${key} is free`)
    const waiter: Waiter = { holder, onGranted }
    lock.waiters.push(waiter)
    holder.waitsFor = key
    return () => {
      holder.waitsFor = undefined
      const i = lock.waiters.indexOf(waiter)
      if (i >= 0) lock.waiters.splice(i, 1)
    }
  }

  /** Releases all locks of a transaction, and grants them to those that wait. */
  release(holder: Holder): void {
    for (const [key, lock] of [...this.locks]) {
      if (lock.owner !== holder) continue
      const next = lock.waiters.shift()
      if (next === undefined) this.locks.delete(key)
      else {
        lock.owner = next.holder
        next.holder.waitsFor = undefined
        next.onGranted()
      }
    }
  }

  /** Checks if a waiting transaction is part of a circle. */
  isDeadlocked(holder: Holder): boolean {
    const seen = new Set<Holder>()
    let current: Holder | undefined = holder
    while (current !== undefined && !seen.has(current)) {
      seen.add(current)
      current = current.waitsFor === undefined ? undefined : this.locks.get(current.waitsFor)?.owner
      if (current === holder) return true
    }
    return false
  }
}
