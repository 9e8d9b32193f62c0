/**
 * The state of a session of the scripted server: its settings and its transaction.
 */
import { SqlFailure } from "./commands.js"
import type { PostgresServer } from "./server.js"
import type { Change } from "./store.js"
import { ServerTransaction } from "./transaction.js"

/** Fault of a COMMIT: the loss of its answer, or a loss before it is stored. */
export type CommitFault = "lostBefore" | "lostAfter" | "deadAfter" | "slow"

/** Settings and transaction of a session. */
export abstract class SessionState {
  readonly processId: number
  readonly secretKey: number
  user = ""
  applicationName = ""
  isReadOnlyByDefault = false
  transaction: ServerTransaction | undefined = undefined
  /** The setting `effect_db.commit`. */
  commitInfo = ""
  /** The way in which the next answer is lost. */
  protected lostReply: "reset" | "dead" | undefined = undefined
  private readonly settings = new Map<string, number>()

  constructor(readonly server: PostgresServer) {
    ;[this.processId, this.secretKey] = server.nextKey()
  }

  abstract get isClosed(): boolean
  abstract close(reset?: boolean): void
  /** Reports a statement of a call. */
  protected abstract reportStatement(tag: string): void
  /** Resets the connection for the client alone, as a network between the two does. */
  protected abstract resetClient(): void

  /** The status of the session in ReadyForQuery. */
  get status(): "I" | "T" | "E" {
    if (this.transaction?.isExplicit !== true) return "I"
    return this.transaction.isFailed ? "E" : "T"
  }

  /** Reads the parameters of the startup message. */
  logIn(parameters: ReadonlyMap<string, string>): void {
    this.user = parameters.get("user") ?? ""
    this.applicationName = parameters.get("application_name") ?? ""
    for (const [, name = "", value = ""] of (parameters.get("options") ?? "").matchAll(/-c (\w+)=(\S+)/g)) {
      if (name === "default_transaction_read_only") this.isReadOnlyByDefault = value === "on"
      else this.settings.set(name, Number(value))
    }
  }

  /** Returns a timeout, in ms; 0 for none. */
  setting(name: string): number {
    return this.transaction?.locals.get(name) ?? this.settings.get(name) ?? 0
  }

  /** Returns a setting of the transaction, if it has one. */
  local(name: string): number | undefined {
    return this.transaction?.locals.get(name)
  }

  setLocal(name: string, value: number): void {
    this.transaction?.locals.set(name, value)
  }

  saveCommitInfo(text: string): void {
    if (this.transaction !== undefined) this.transaction.commitInfo = text
  }

  begin(isolation: string | undefined, access: string | undefined): void {
    const isReadOnly = access === undefined ? this.isReadOnlyByDefault : access === "READ ONLY"
    if (access === "READ WRITE" && this.server.isStandby) {
      throw new SqlFailure("0A000", "cannot set transaction read-write mode during recovery")
    }
    if (this.transaction?.isExplicit) {
      this.server.reports.violated(
        "crossing",
        `a BEGIN arrived in the open transaction of call ${this.transaction.call}`
      )
    }
    // the statements before a BEGIN in the same exchange become a part of the transaction
    const before = this.transaction
    this.transaction = new ServerTransaction(true, isolation, isReadOnly)
    if (before !== undefined && before.changes.length > 0) throw new Error("a BEGIN arrived after a write")
    if (before !== undefined) this.server.locks.release(before)
  }

  ensureTransaction(): void {
    this.transaction ??= new ServerTransaction(false, undefined, this.isReadOnlyByDefault)
  }

  setSavepoint(name: string): void {
    const { transaction } = this
    if (!transaction?.isExplicit) throw new SqlFailure("25P01", "SAVEPOINT can only be used in transaction blocks")
    transaction.savepoints.push({ name, changes: transaction.changes.length })
  }

  releaseSavepoint(name: string): void {
    const { transaction } = this
    const i = this.savepointIndex(name)
    transaction?.savepoints.splice(i)
  }

  rollbackTo(name: string): void {
    const { transaction } = this
    const i = this.savepointIndex(name)
    if (transaction === undefined) return
    transaction.isFailed = false
    transaction.changes.length = transaction.savepoints[i]?.changes ?? 0
    transaction.savepoints.splice(i + 1)
  }

  private savepointIndex(name: string): number {
    const i = this.transaction?.savepoints.findLastIndex((one) => one.name === name) ?? -1
    if (i < 0) throw new SqlFailure("3B001", `savepoint "${name}" does not exist`)
    return i
  }

  /** Checks that the transaction may write, gives it an id, and adds a change unless `adds` is false. */
  write(change: Change, adds = true): void {
    this.ensureTransaction()
    const { server, transaction } = this
    if (transaction === undefined) return
    if (server.isStandby || transaction.isReadOnly) {
      throw new SqlFailure("25006", "cannot execute INSERT in a read-only transaction")
    }
    if (transaction.xid === undefined) {
      transaction.xid = server.store.begin()
      server.openIds.add(transaction.xid)
      server.flushLater()
    }
    if (adds) transaction.changes.push(change)
  }

  /** Fails a repeatable read whose snapshot is older than a row. */
  checkSnapshot(rowLsn: number): void {
    const { transaction } = this
    if (transaction?.keepsSnapshot && transaction.snapshot !== undefined && rowLsn > transaction.snapshot) {
      throw new SqlFailure("40001", "could not serialize access due to concurrent update")
    }
  }

  /** Returns the number of rows of an entry that the statement sees. */
  countEntries(op: string): number {
    const { server, transaction } = this
    const snapshot = transaction?.keepsSnapshot ? (transaction.snapshot ?? server.store.insertLsn) : undefined
    const stored = (server.store.entries.get(op) ?? []).filter((lsn) => snapshot === undefined || lsn <= snapshot)
    const own = transaction?.changes.filter((change) => change.kind === "entry" && change.op === op) ?? []
    return stored.length + own.length
  }

  hasOwnMarker(id: string): boolean {
    return this.transaction?.changes.some((change) => change.kind === "marker" && change.id === id) ?? false
  }

  markerOf(id: string): boolean | undefined {
    const own = this.transaction?.changes.find((change) => change.kind === "marker" && change.id === id)
    return own?.kind === "marker" ? own.isFence : this.server.store.markers.get(id)?.isFence
  }

  /** Checks a statement of a call: it must not be in the transaction of another one. */
  onCall(tag: string): void {
    const { server, transaction } = this
    const [call = ""] = tag.split(".")
    if (transaction?.keepsSnapshot) transaction.snapshot ??= server.store.insertLsn
    if (transaction?.isExplicit) {
      transaction.call ??= call
      if (transaction.call !== call) {
        server.reports.violated(
          "crossing",
          `a statement of call ${call} is in the transaction of call ${transaction.call}`
        )
      }
    }
    this.reportStatement(tag)
  }

  /** Returns the time that a COMMIT takes beyond that of other commands, in ms. */
  commitPause(): number {
    const { transaction } = this
    if (transaction?.xid === undefined || transaction.isFailed) return 0
    const fault = this.server.commitFault()
    switch (fault) {
      case undefined:
        return 0
      case "lostBefore":
        this.close(true)
        return 0
      case "lostAfter":
        this.lostReply = "reset"
        return 0
      case "deadAfter":
        this.lostReply = "dead"
        return 0
      case "slow":
        this.resetClient()
        return this.server.slowCommit()
    }
  }

  /** Ends the transaction; returns false if it was rolled back instead. */
  commit(): boolean {
    const { server, transaction } = this
    if (transaction === undefined) throw new Error("a COMMIT arrived outside of a transaction")
    if (transaction.isFailed) {
      this.rollback()
      return false
    }
    if (transaction.isolation === "SERIALIZABLE" && transaction.xid !== undefined && server.failsSerialization()) {
      this.rollback()
      throw new SqlFailure("40001", "could not serialize access due to read/write dependencies among transactions")
    }
    this.transaction = undefined
    if (transaction.commitInfo !== undefined) this.commitInfo = transaction.commitInfo
    if (transaction.xid !== undefined) {
      server.openIds.delete(transaction.xid)
      server.append(transaction.xid, transaction.changes, transaction.locals.get("synchronous_commit") !== 0)
    }
    server.locks.release(transaction)
    return true
  }

  rollback(): void {
    const { server, transaction } = this
    this.transaction = undefined
    if (transaction === undefined) return
    if (transaction.xid !== undefined) server.openIds.delete(transaction.xid)
    server.locks.release(transaction)
  }

  protected onError(): void {
    const { transaction } = this
    if (transaction === undefined) return
    if (transaction.isExplicit) transaction.isFailed = true
    else this.rollback()
  }

  protected takeLock(key: string): boolean {
    const { server, transaction } = this
    return transaction === undefined || server.locks.take(key, transaction)
  }

  protected waitForLock(key: string, onGranted: () => void): () => void {
    const { server, transaction } = this
    if (transaction === undefined) throw new Error("a lock needs a transaction")
    return server.locks.wait(key, transaction, onGranted)
  }

  protected get isDeadlocked(): boolean {
    return this.transaction !== undefined && this.server.locks.isDeadlocked(this.transaction)
  }
}
