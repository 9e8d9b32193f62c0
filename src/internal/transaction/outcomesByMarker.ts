/**
 * The markers of the COMMITs of one database: their table, the proof of outcomes by them, and the
 * deletion of old ones.
 */
import * as clock from "../concurrency/clock.js"
import type { Connection, Failure } from "../connection/connection.js"
import { type CommitMarker, isMarkerRefused, queryMarker, sweepMarkers } from "../outcome/commitMarker.js"
import { type OutcomeTableState, prepareOutcomeTable } from "../outcome/outcomeTable.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import type { Proof } from "../topology/outcomeConnections.js"
import { type OnOutcome, proveOutcome, type Query, resolveOutcome } from "./resolution.js"

/** The settings of the markers; times are in ms. */
export interface MarkerSettings {
  /** The longest time to prove an outcome. */
  readonly timeout: number
  /** The time for which markers are kept. */
  readonly retention: number
  /** True if the table is created if it is missing. */
  readonly creates: boolean
}

/** Other connections, and another time in ms, for the proof of an outcome. */
interface ResolveOn {
  readonly source?: ConnectionSource
  readonly timeout?: number
}

/** The mean pause between two deletions, in ms, and the pause while there are more old rows. */
const sweepPause = 60_000
const nextBatchPause = 1000

const nothing = () => {}

/** The markers of one database. */
export class CommitMarkers {
  /** True if the table is known to be usable. */
  isReady = false
  /** The time of the next deletion. */
  private sweepsAt: number

  constructor(
    private readonly settings: MarkerSettings,
    private readonly beginProof: () => Proof,
    private readonly onSweepRefused: (server: string, message: string) => void
  ) {
    this.sweepsAt = Number.isFinite(settings.retention) ? 0 : Number.POSITIVE_INFINITY
  }

  /**
   * Checks on an idle connection that the table can be used, and creates it if that is allowed. Another
   * session may hold a lock for long, so at the deadline the check is cancelled and the connection is
   * closed.
   */
  prepare(connection: Connection, deadline: number, callback: (state: OutcomeTableState) => void): void {
    let isLate = false
    const stop = clock.later(deadline - clock.now(), () => {
      isLate = true
      // without a cancel request, the session would wait for the lock after the end of its connection
      connection.abort("invalid")
      callback("late")
    })
    prepareOutcomeTable(connection, this.settings.creates, (state) => {
      if (state === "ready") this.isReady = true
      if (isLate) return
      stop()
      callback(state)
    })
  }

  /** Makes the next transaction check the table again if a COMMIT was refused because of it. */
  onRefused(failure: Failure): void {
    if (isMarkerRefused(failure)) this.isReady = false
  }

  /**
   * Proves the outcome of the transaction of a marker, which cannot commit any more after that. The
   * returned function gives up, and calls back without an outcome. A marker that may have been
   * deleted proves nothing.
   */
  resolve(marker: CommitMarker, callback: OnOutcome, on: ResolveOn = {}): () => void {
    const { retention } = this.settings
    const { source, timeout = this.settings.timeout } = on
    if (clock.now() + timeout - marker.createdAt >= retention) {
      callback(undefined)
      return nothing
    }
    const query: Query = (connection, done) => queryMarker(connection, marker, done)
    return source === undefined
      ? proveOutcome(this.beginProof(), timeout, query, callback)
      : resolveOutcome(source, timeout, query, callback)
  }

  /**
   * Checks if the marker of a decision of this age, in ms, may soon be deleted, also by a process
   * whose clock is not exact.
   */
  mayBeDeleted(age: number): boolean {
    return 2 * age >= this.settings.retention
  }

  /** Deletes a batch of old markers on an idle connection if it is time for that. */
  sweep(connection: Connection, callback: () => void): void {
    const now = clock.now()
    const isIdle = connection.broken === undefined && !connection.busy && connection.status === "I"
    if (now < this.sweepsAt || !this.isReady || !isIdle) return callback()
    // processes that were started together do not delete together
    const next = now + sweepPause * (0.5 + clock.random())
    this.sweepsAt = next
    const server = connection.server.name
    sweepMarkers(connection, this.settings.retention, (failure, hasMore) => {
      if (hasMore) this.sweepsAt = now + nextBatchPause
      // a lost connection is reported as such
      if (failure?._tag === "refused") this.onSweepRefused(server, failure.error.message)
      callback()
    })
  }
}
