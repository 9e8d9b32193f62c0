/**
 * The data of one server: the write-ahead log, and the tables that follow from its commits.
 */

/** Change of a transaction. */
export type Change =
  /** A row of the table `entry`, which has no unique column, so that a doubled write is visible. */
  | { readonly kind: "entry"; readonly op: string }
  /** A step of a counter. */
  | { readonly kind: "counter"; readonly id: number; readonly op: string }
  /** A row of `effect_db.outcome`. */
  | { readonly kind: "marker"; readonly id: string; readonly isFence: boolean }
  | { readonly kind: "sweep"; readonly ids: ReadonlyArray<string> }
  | { readonly kind: "outcomeTable" }

/** Record of the log. `begin` is the first record of a transaction that writes. */
export type WalRecord =
  | { readonly kind: "begin"; readonly lsn: number; readonly xid: number }
  | {
      readonly kind: "commit"
      readonly lsn: number
      readonly xid: number
      readonly timeline: number
      readonly changes: ReadonlyArray<Change>
    }

export type CommitRecord = Extract<WalRecord, { readonly kind: "commit" }>

/** The position of the first record. */
const firstLsn = 0x1000_0000

/** The length of a record, in bytes. */
const recordLength = 120

/** Row of a counter. */
interface Counter {
  readonly n: number
  /** The position of its last change. */
  readonly lsn: number
}

/** Row of `effect_db.outcome`. */
interface Marker {
  readonly isFence: boolean
  /** The virtual time of the commit at this server, in ms. */
  readonly at: number
}

/** Log and tables of a server. */
export class Store {
  readonly wal: Array<WalRecord> = []
  /** The end of the log. */
  insertLsn = firstLsn
  /** The end of the log that is on disk, or that a standby has received. */
  flushedLsn = firstLsn
  nextXid = 1000
  hasOutcomeTable = false
  /** The positions of the commits with an entry. */
  readonly entries = new Map<string, Array<number>>()
  readonly counters = new Map<number, Counter>()
  readonly markers = new Map<string, Marker>()
  private readonly committed = new Set<number>()

  /** Assigns the id of a transaction at its first write. */
  begin(): number {
    const xid = this.nextXid++
    this.wal.push({ kind: "begin", lsn: this.advance(), xid })
    return xid
  }

  /** Appends and applies a commit. */
  commit(xid: number, timeline: number, changes: ReadonlyArray<Change>, now: number): CommitRecord {
    const record: CommitRecord = { kind: "commit", lsn: this.advance(), xid, timeline, changes }
    this.wal.push(record)
    this.apply(record, now)
    return record
  }

  /** Appends a record from the log of another server. */
  receive(record: WalRecord, now: number): void {
    this.wal.push(record)
    this.insertLsn = Math.max(this.insertLsn, record.lsn)
    if (record.kind === "begin") this.nextXid = Math.max(this.nextXid, record.xid + 1)
    else this.apply(record, now)
  }

  /** Checks if a transaction is committed. */
  isCommitted(xid: number): boolean {
    return this.committed.has(xid)
  }

  /** Loses the log after a position, and rebuilds the tables from the rest. */
  truncate(lsn: number, now: number): void {
    this.replaceBy(
      this.wal.filter((record) => record.lsn <= lsn),
      lsn,
      now
    )
  }

  /** Replaces the log by that of another server. */
  replaceBy(records: ReadonlyArray<WalRecord>, lsn: number, now: number): void {
    const kept = [...records]
    this.wal.length = 0
    this.entries.clear()
    this.counters.clear()
    this.markers.clear()
    this.committed.clear()
    this.hasOutcomeTable = false
    this.nextXid = 1000
    for (const record of kept) this.receive(record, now)
    this.insertLsn = lsn
    this.flushedLsn = lsn
  }

  private advance(): number {
    this.insertLsn += recordLength
    return this.insertLsn
  }

  private apply({ changes, lsn, xid }: CommitRecord, now: number): void {
    this.committed.add(xid)
    for (const change of changes) {
      switch (change.kind) {
        case "entry": {
          const all = this.entries.get(change.op)
          if (all === undefined) this.entries.set(change.op, [lsn])
          else all.push(lsn)
          break
        }
        case "counter":
          this.counters.set(change.id, { n: (this.counters.get(change.id)?.n ?? 0) + 1, lsn })
          break
        case "marker":
          this.markers.set(change.id, { isFence: change.isFence, at: now })
          break
        case "sweep":
          for (const id of change.ids) this.markers.delete(id)
          break
        case "outcomeTable":
          this.hasOutcomeTable = true
      }
    }
  }
}

/** Returns the text of a position. */
export const formatLsn = (lsn: number): string =>
  `${Math.floor(lsn / 2 ** 32)
    .toString(16)
    .toUpperCase()}/${(lsn % 2 ** 32).toString(16).toUpperCase()}`

/** Returns the name of the log file of a position. */
export const walFile = (timeline: number, lsn: number): string =>
  [timeline, Math.floor(lsn / 2 ** 32), Math.floor((lsn % 2 ** 32) / 2 ** 24)]
    .map((part) => part.toString(16).toUpperCase().padStart(8, "0"))
    .join("")
