/**
 * The servers of one cluster: replication, promotion and the return of a former primary.
 */
import { loop } from "../loop/loop.js"
import type { Random } from "../loop/random.js"
import type { PostgresServer } from "./server.js"

/** The time after which a standby tries to receive again, in ms (`wal_retrieve_retry_interval`). */
const retryInterval = 2000

/** Cluster of a primary and its standbys. */
export class Cluster {
  /** The server that has the newest timeline. */
  primary: PostgresServer
  /** The entries whose commits no surviving server has, after a failover. */
  readonly lost = new Set<string>()
  /** The number of failovers. */
  failovers = 0
  private readonly catchUps = new Map<PostgresServer, () => void>()
  private readonly pausedUntil = new Map<PostgresServer, number>()
  private newestTimeline = 1

  constructor(
    readonly servers: readonly [PostgresServer, ...ReadonlyArray<PostgresServer>],
    /** The mean delay of the replication, in ms. */
    private readonly delay: number,
    private readonly random: Random
  ) {
    this.primary = servers[0]
    for (const server of servers) {
      server.isStandby = server !== this.primary
      server.followFlush(() => {
        if (server === this.primary) for (const standby of this.standbys) this.catchUpLater(standby, this.nextDelay())
      })
      server.start(0, () => this.catchUpLater(server, 0))
    }
  }

  get standbys(): ReadonlyArray<PostgresServer> {
    return this.servers.filter((server) => server !== this.primary && server.isStandby)
  }

  /** Starts a server that was stopped. */
  start(server: PostgresServer, recoveryTime: number): void {
    server.start(recoveryTime, () => {
      for (const standby of this.standbys) this.catchUpLater(standby, this.nextDelay())
    })
  }

  /** Pauses the replay of a standby. */
  pauseReplay(standby: PostgresServer, millis: number): void {
    this.pausedUntil.set(standby, loop.now + millis)
    loop.schedule(millis, () => this.catchUpLater(standby, 0))
  }

  /** Records that the standbys have lost their primary. */
  onPrimaryDown(): void {
    for (const standby of this.standbys) standby.isStreaming = false
  }

  /**
   * Promotes a standby. The former primary may still run: it keeps its timeline, and is not the
   * primary any more.
   */
  promote(standby: PostgresServer): boolean {
    if (!standby.isRunning || !standby.isStandby || standby.isFrozen) return false
    const { store } = standby
    this.newestTimeline++
    standby.isStandby = false
    standby.isStreaming = false
    standby.timeline = this.newestTimeline
    standby.recoveredTo = store.insertLsn
    this.primary = standby
    this.failovers++
    standby.touch()
    standby.reports.trace(`${standby.name} is promoted to timeline ${this.newestTimeline}`)
    for (const other of this.standbys) {
      // a standby that is ahead of the new primary has another history
      if (other.store.insertLsn > store.insertLsn) this.rejoin(other)
      else this.catchUpLater(other, this.nextDelay())
    }
    return true
  }

  /** Makes a server a standby of the primary, with the history of the primary (`pg_rewind`). */
  rejoin(server: PostgresServer): void {
    if (server === this.primary) return
    server.stop()
    const { store } = this.primary
    const kept = new Set(store.wal)
    for (const record of server.store.wal) {
      if (record.kind !== "commit" || kept.has(record)) continue
      for (const change of record.changes) if (change.kind === "entry") this.lost.add(change.op)
    }
    server.store.replaceBy(
      store.wal.filter(({ lsn }) => lsn <= store.flushedLsn),
      store.flushedLsn,
      loop.now
    )
    server.isStandby = true
    server.timeline = this.primary.timeline
    server.recoveredTo = undefined
    server.replayedAt = loop.now
    this.start(server, this.random.between(500, 3000))
  }

  /** Replays the whole log of a primary that was shut down. */
  catchUpNow(standby: PostgresServer): void {
    this.replay(standby)
  }

  private nextDelay(): number {
    return this.random.exponential(this.delay)
  }

  private catchUpLater(standby: PostgresServer, delay: number): void {
    if (this.catchUps.has(standby) || !standby.isStandby) return
    this.catchUps.set(
      standby,
      loop.schedule(delay, () => {
        this.catchUps.delete(standby)
        this.catchUp(standby)
      })
    )
  }

  private catchUp(standby: PostgresServer): void {
    const { primary } = this
    if (!standby.isStandby || !standby.isRunning || standby.isFrozen) {
      if (standby.isStandby && standby.isFrozen) this.catchUpLater(standby, standby.thawIn())
      return
    }
    if (!primary.isRunning || primary.isFrozen || !primary.host.isUp || !standby.host.isUp) {
      standby.isStreaming = false
      return this.catchUpLater(standby, retryInterval)
    }
    standby.isStreaming = true
    standby.receivedTimeline = primary.timeline
    if (loop.now >= (this.pausedUntil.get(standby) ?? 0)) this.replay(standby)
  }

  private replay(standby: PostgresServer): void {
    const { primary } = this
    const { flushedLsn, wal } = primary.store
    const own = standby.store
    for (let i = own.wal.length; i < wal.length; i++) {
      const record = wal[i]
      if (record === undefined || record.lsn > flushedLsn) break
      own.receive(record, loop.now)
    }
    own.insertLsn = Math.max(own.insertLsn, flushedLsn)
    own.flushedLsn = own.insertLsn
    standby.timeline = primary.timeline
    standby.replayedAt = loop.now
  }
}
