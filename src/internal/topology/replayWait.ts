/**
 * The wait until a standby has replayed a position, by the command `WAIT FOR LSN` of PostgreSQL 19.
 * All waiting reads of a server share one connection outside of its pool, so that they hold no
 * connection of the pool; and the command holds no snapshot.
 *
 * The wait only ends a pause early. The command knows nothing of timelines, so the position has to be
 * queried after it.
 */
import * as clock from "../concurrency/clock.js"
import type { Connection, Request } from "../connection/connection.js"
import { formatLsn } from "../sql/lsn.js"
import type { UnpooledConnections } from "./unpooledConnections.js"

const none: ReadonlyArray<never> = []

/** The first version of PostgreSQL that has the command. */
const firstVersion = 19

/** The timeout of one command, in ms; after it, a read that waits for an earlier position comes first. */
const commandTimeout = 100

/**
 * The time for a connect, and for the answer to a command after the timeout of the command, in ms.
 * A server without an answer by then counts as silent.
 */
const answerTimeout = 1000

/** The time for which the connection stays open without a read that waits, in ms. */
const idleTime = 10_000

/** The pause after a failure, in ms. Meanwhile the reads query the position at intervals. */
const retryDelay = 5000

/** Checks if the server of a connection has the command. */
export const canWaitForReplay = (connection: Connection): boolean =>
  Number.parseInt(connection.parameter("server_version") ?? "", 10) >= firstVersion

// the simple protocol, because an extended one would hold a portal
const waitFor = (lsn: bigint): Request => ({
  text: `WAIT FOR LSN '${formatLsn(lsn)}' WITH (TIMEOUT '${commandTimeout}ms', NO_THROW)`,
  values: [],
  // the type parsers of the program must not change the answer
  rows: "raw",
  prepare: false,
  simple: true
})

/** Returns the least position; 0 without any. */
const leastOf = (positions: Iterable<bigint>): bigint => {
  let least: bigint | undefined
  for (const position of positions) if (least === undefined || position < least) least = position
  return least ?? 0n
}

/** Wait for the replay of one server. */
export class ReplayWait {
  /** The callbacks of the reads that wait, with their positions. */
  private readonly waiting = new Map<() => void, bigint>()
  private connection: Connection | undefined
  private openedAt = 0
  /** True while a connect or a command is in progress. */
  private isBusy = false
  private isClosed = false
  private retryAt = Number.NEGATIVE_INFINITY
  private cancel = () => {}

  constructor(private readonly connections: UnpooledConnections) {}

  /** True if the end of a wait is reported, so that the position need not be polled. */
  get isConnected(): boolean {
    return this.connection !== undefined && this.connection.broken === undefined
  }

  /** Calls back when the server has replayed a position; the returned function cancels that. */
  until(lsn: bigint, onReplayed: () => void): () => void {
    this.waiting.set(onReplayed, lsn)
    this.advance()
    return () => this.waiting.delete(onReplayed)
  }

  /** Closes the connection; `callback` is called when its socket is closed. */
  close(callback: () => void): void {
    this.isClosed = true
    this.cancel()
    this.connections.close(callback)
  }

  /**
   * Begins the next step, unless a step is in progress or has failed a short time ago. Without a
   * read that waits, closes the connection after a while.
   */
  private advance(): void {
    if (this.isBusy || this.isClosed || clock.now() < this.retryAt) return
    this.cancel()
    if (this.waiting.size === 0) {
      this.cancel = clock.later(idleTime, () => this.release())
      return
    }
    this.isBusy = true
    if (this.connection !== undefined && !this.mayUse(this.connection)) this.release()
    if (this.connection === undefined) this.connect()
    else this.send(this.connection)
  }

  /** Checks if a connection is alive, and no older than those of the pools may be. */
  private mayUse({ broken, generation }: Connection): boolean {
    const { credentials, pool } = this.connections.options
    const isOld = clock.now() - this.openedAt > pool.maxLifetime || generation < credentials.generation
    return broken === undefined && !isOld
  }

  private connect(): void {
    this.cancel = this.connections.checkout(clock.now() + answerTimeout, none, (_, connection) => {
      this.isBusy = false
      if (connection === undefined) return this.fail()
      this.connection = connection
      this.openedAt = clock.now()
      this.advance()
    })
  }

  private send(connection: Connection): void {
    const lsn = leastOf(this.waiting.values())
    const stop = clock.later(commandTimeout + answerTimeout, () => connection.destroy("invalid"))
    connection.run(none, waitFor(lsn), none, (failure, exchange) => {
      stop()
      this.isBusy = false
      const [row]: ReadonlyArray<unknown> = exchange.results[0]?.rows ?? none
      const status: unknown = Array.isArray(row) ? row[0] : undefined
      // a promoted server is "not in recovery", and answers so at once
      if (failure !== undefined || (status !== "success" && status !== "timeout")) return this.fail()
      if (status === "success") this.report(lsn)
      this.advance()
    })
  }

  private report(lsn: bigint): void {
    for (const [onReplayed, position] of this.waiting) {
      if (position > lsn) continue
      this.waiting.delete(onReplayed)
      onReplayed()
    }
  }

  /** Leaves the reads that wait to their polls for a while. */
  private fail(): void {
    this.retryAt = clock.now() + retryDelay
    this.release()
  }

  private release(): void {
    const { connection } = this
    this.connection = undefined
    if (connection !== undefined) this.connections.checkin(connection)
  }
}
