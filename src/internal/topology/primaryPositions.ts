/**
 * The positions that a primary has reported, by the time. They show how far a replica is behind, in
 * bytes and in time, without a comparison of clocks.
 */
import type { ServerReport } from "./probeReport.js"

/** Lag of a replica behind its primary. Both are infinite if the replica cannot catch up by itself. */
export interface Lag {
  readonly bytes: number
  readonly millis: number
}

/** Position of a primary. */
export interface PrimaryPosition {
  readonly systemId: string
  readonly timeline: number
  readonly lsn: bigint
  /** The time before the query: all that was committed by then is before the position. */
  readonly from: number
  /** The time of the answer: the position was reached by then. */
  readonly until: number
}

/** The shortest time between two positions that are kept, in ms; the latest is always kept. */
const minDistance = 200
/** The largest number of positions that are kept. */
const maxCount = 600

const stale: Lag = { bytes: Number.POSITIVE_INFINITY, millis: Number.POSITIVE_INFINITY }
const none: Lag = { bytes: 0, millis: 0 }

const pageSize = 8192n

/**
 * Checks if the primary has flushed its log to the end of a page within a record. A standby replays the
 * record when the rest is flushed, which may take seconds if nothing commits.
 */
const isPageEnd = (flushed: bigint, replayed: bigint): boolean =>
  flushed % pageSize === 0n && flushed - replayed < pageSize

/** Positions of the primary of one database, the oldest first. */
export class PrimaryPositions {
  private readonly positions: Array<PrimaryPosition> = []

  /** Returns the latest position. */
  get latest(): PrimaryPosition | undefined {
    return this.positions[this.positions.length - 1]
  }

  /** Records the report of a primary. The positions of another history are dropped. */
  record({ lsn, systemId, timeline }: ServerReport, from: number, until: number): void {
    if (lsn === undefined || timeline === undefined) return
    const { latest, positions } = this
    // the answers of two queries at the same time may arrive in any order
    if (latest !== undefined && latest.from >= from) return
    if (latest?.systemId !== systemId || latest.timeline !== timeline) positions.length = 0
    const beforeLatest = positions[positions.length - 2]
    if (beforeLatest !== undefined && from - beforeLatest.from < minDistance) positions.pop()
    if (positions.length === maxCount) positions.shift()
    positions.push({ systemId, timeline, lsn, from, until })
  }

  /**
   * Returns the oldest position that has everything which was committed by a moment, or `undefined`
   * if the latest one is older.
   */
  oldestSince(moment: number): PrimaryPosition | undefined {
    return this.positions.find(({ from }) => from >= moment)
  }

  /** Forgets all positions: another server is the primary. */
  clear(): void {
    this.positions.length = 0
  }

  /**
   * Returns the lag by the report of a server, or `undefined` if nothing is known about it. The lag
   * is that behind the last position which the primary had reached before the server was asked, at
   * `askedAt`: the report cannot have a later one.
   *
   * The lag in time is at least the age of the first position that a standby has not reached, and
   * at most the age of the last one that it has reached. Between the two, the age of its last
   * replayed commit counts.
   */
  lagOf(report: ServerReport, now: number, askedAt: number = now): Lag | undefined {
    const latest = this.positions.findLast(({ until }) => until <= askedAt) ?? this.positions[0]
    const { isStandby, lsn, systemId, timeline } = report
    if (lsn === undefined) return undefined
    if (report.isStreaming === false) return stale
    if (latest === undefined) return undefined
    // another history may have reached the same position
    if (systemId !== latest.systemId) return stale
    // a promoted server has all that is stored, but a former primary has not
    if (!isStandby) return timeline === undefined ? undefined : timeline < latest.timeline ? stale : none
    if (timeline !== undefined && timeline !== latest.timeline) return stale
    if (lsn >= latest.lsn || isPageEnd(latest.lsn, lsn)) return none
    const missing = this.positions.findIndex((position) => position.lsn > lsn)
    const shortest = now - (this.positions[missing]?.until ?? now)
    const reached = this.positions[missing - 1]
    const longest = reached === undefined ? Number.POSITIVE_INFINITY : now - reached.from
    const millis = Math.max(0, shortest, Math.min(report.replayedAgo ?? shortest, longest))
    return { bytes: Number(latest.lsn - lsn), millis }
  }
}
