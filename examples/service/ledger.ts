import type { Event } from "./audit.js"

/** One attempt to send a request, the first one or a later one. */
export interface Attempt {
  readonly request: string
  /** The change it asked for; none where it only reads. */
  readonly change: { readonly what: Event["what"]; readonly subject: string } | undefined
  /** The outcome of a change, as answered or as found in the database. A change that is stored partly is undone, though its event may be there. */
  readonly outcome: "acknowledged" | "found stored" | "found not stored" | "stored partly" | "not stored"
}

export interface TodoState {
  readonly title: string
  readonly done: boolean
}

/** The answers of the service to its clients. The databases are compared with them. */
export class Ledger {
  readonly attempts: Array<Attempt> = []
  /** Every todo that was ever stored; `undefined` where it is deleted. */
  readonly todos = new Map<string, TodoState | undefined>()
  readonly served = new Map<string, number>()
  readonly errors = new Map<string, number>()
  /** The violations: a request without an end, an answer that contradicts another one. */
  readonly failures: Array<string> = []
  succeeded = 0

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
