/**
 * The writes of the calls, and what the callers were told about them. A write is acknowledged exactly
 * once or not stored: the ledger compares the answers with the commits of the servers.
 */
import type { PostgresServer } from "../postgres/server.js"
import type { CommitRecord } from "../postgres/store.js"

/** Knowledge that a caller has of a write. */
export type Fate = "pending" | "stored" | "absent" | "unknown"

/** One write of a call. */
export interface Operation {
  readonly id: string
  readonly database: string
  fate: Fate
  /** The number of commits with it, on all servers and timelines. */
  commits: number
  /** The number of failovers of its cluster when it was stored. */
  failovers: number
  /** True if a former primary has stored it, which a failover has left behind. */
  isAtRisk: boolean
}

/** Cluster of a ledger, as far as it needs it. */
export interface LedgerCluster {
  readonly primary: PostgresServer
  readonly lost: ReadonlySet<string>
  readonly failovers: number
}

export class Ledger {
  readonly operations = new Map<string, Operation>()
  private next = 0
  /** The last stored writes, for reads that verify them. */
  readonly recent: Array<Operation> = []

  constructor(
    private readonly clusters: ReadonlyMap<string, LedgerCluster>,
    private readonly violated: (invariant: string, message: string) => void
  ) {}

  /** Begins a write. */
  begin(call: number, database: string): Operation {
    const operation: Operation = {
      id: `${database}-${call}-${++this.next}`,
      database,
      fate: "pending",
      commits: 0,
      failovers: 0,
      isAtRisk: false
    }
    this.operations.set(operation.id, operation)
    return operation
  }

  /** Records what the caller was told. */
  settle(operation: Operation, fate: Fate): void {
    const { database, id } = operation
    const cluster = this.clusters.get(database)
    if (cluster === undefined || operation.fate !== "pending") return
    operation.fate = fate
    operation.failovers = cluster.failovers
    if (fate === "stored") {
      if (operation.commits === 0) this.violated("exactly once", `${id} is acknowledged, and no server has stored it`)
      this.recent.push(operation)
      if (this.recent.length > 100) this.recent.shift()
    }
    const stored = cluster.primary.store.entries.get(id)?.length ?? 0
    if (fate === "absent" && stored > 0) this.violated("exactly once", `${id} is reported as undone, and it is stored`)
  }

  /** Records a commit on a server. */
  onCommit(server: PostgresServer, record: CommitRecord): void {
    for (const change of record.changes) {
      if (change.kind !== "entry") continue
      const operation = this.operations.get(change.op)
      if (operation === undefined) {
        this.violated("exactly once", `${change.op} was stored, and no call has written it`)
        continue
      }
      operation.commits++
      if ((server.store.entries.get(change.op)?.length ?? 0) > 1) {
        this.violated("exactly once", `${change.op} is stored twice on ${server.name}`)
      }
      const isPrimary = this.clusters.get(operation.database)?.primary === server
      if (!isPrimary) operation.isAtRisk = true
      if (operation.fate === "absent" && isPrimary) {
        this.violated("exactly once", `${change.op} was reported as undone, and is stored later`)
      }
    }
  }

  /** Checks all writes against the primaries, at rest. */
  check(): void {
    for (const { database, fate, id } of this.operations.values()) {
      const cluster = this.clusters.get(database)
      if (cluster === undefined) continue
      const stored = cluster.primary.store.entries.get(id)?.length ?? 0
      if (stored > 1) this.violated("exactly once", `${id} is stored ${stored} times`)
      if (fate === "stored" && stored === 0 && !cluster.lost.has(id)) {
        this.violated("exactly once", `${id} was acknowledged, and is not stored`)
      }
      if (fate === "absent" && stored > 0) this.violated("exactly once", `${id} was reported as undone, and is stored`)
      if (fate === "pending") this.violated("exactly once", `${id} has no end`)
    }
  }
}
