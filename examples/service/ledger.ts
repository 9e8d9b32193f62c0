import type { Event } from "./audit.js"

/** One attempt to send a request. */
export interface Attempt {
  readonly request: string
  /** The change that the request makes; `undefined` for a read. */
  readonly change: { readonly what: Event["what"]; readonly subject: string } | undefined
  /** The outcome, as answered or as found in the database. A change that is stored partly is undone, but its event may be stored. */
  readonly outcome: "acknowledged" | "found stored" | "found not stored" | "stored partly" | "not stored"
}

export interface TodoState {
  readonly title: string
  readonly done: boolean
}

/** The answers of the service to its clients. The databases are compared with them. */
export class Ledger {
  readonly attempts: Array<Attempt> = []
  /** Every todo that was ever stored, by its id; `undefined` if it is deleted. */
  readonly todos = new Map<string, TodoState | undefined>()
  readonly served = new Map<string, number>()
  readonly errors = new Map<string, number>()
  /** The failures: a request without success in all attempts, or an unexpected answer. */
  readonly failures: Array<string> = []
  succeeded = 0
  /** The longest time between two acknowledged changes, in milliseconds. */
  longestPause = 0
  private lastChange: number | undefined

  /** Records an acknowledged change, at a time in milliseconds. */
  change(at: number): void {
    if (this.lastChange !== undefined) this.longestPause = Math.max(this.longestPause, at - this.lastChange)
    this.lastChange = at
  }

  serve(server: string | undefined): void {
    Ledger.count(this.served, server ?? "unknown")
  }

  error(reason: string): void {
    Ledger.count(this.errors, reason)
  }

  private static count(counts: Map<string, number>, key: string): void {
    counts.set(key, (counts.get(key) ?? 0) + 1)
  }
}
