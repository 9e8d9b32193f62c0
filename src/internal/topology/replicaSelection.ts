/**
 * The selection of a replica that has the writes that a read must see. The position is queried on
 * the connection that the read will use, because a server does not fall behind a reported position
 * while the connection is open.
 */

import type { Session } from "../../Consistency.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import type { CheckoutFailure, PlainFailure } from "../connection/failure.js"
import { type Freshness, judgeFreshness } from "../consistency/judgeFreshness.js"
import { positionTimeout, queryPosition, queryPositionWithin, type WalStatus } from "../consistency/queryPosition.js"
import { type TokenFields, TokenRecorder } from "../consistency/tokenRecorder.js"
import type { Caller } from "../pool/caller.js"
import type { Pool } from "../pool/pool.js"
import type { PoolDependencies } from "../pool/poolDependencies.js"
import type { ConnectionSource, OnCheckout } from "./connectionSource.js"
import { canWaitForReplay, type ReplayWait } from "./replayWait.js"
import type { Server } from "./server.js"

/** Writes that a read must see, and the fallback if no replica has them. */
export interface ReadRequirement {
  /**
   * The tokens of the writes. `undefined` after a write at an unknown position, which only the
   * primary is certain to have.
   */
  readonly tokens: ReadonlyArray<TokenFields> | undefined
  /**
   * The time that a replica has to reach the position, in ms; at most half of the time until the
   * deadline is used.
   */
  readonly maxWait: number
  readonly otherwise: "primary" | "fail"
  /**
   * The causal session. It records a new token of the primary if it has none, or if its token is of
   * a lost history, which no replica can reach.
   */
  readonly session: Session | undefined
  /**
   * True if the first token is a position of the primary for a bounded lag, not a token of the
   * caller.
   */
  readonly isBounded?: boolean | undefined
  /** True if no replica may serve the read because of `maxLag`. */
  readonly isOverMaxLag?: boolean | undefined
}

/** Servers to select from, and the callback for the selected server. */
export interface ReplicaCandidates {
  /** Returns one replica after the other, then the primary, and begins again. */
  readonly next: () => Server
  readonly primary: Server
  readonly onFound: (server: Server) => void
}

/**
 * The pause before the second round of queries, in ms. The second round is most often the last one.
 */
const minPause = 1
/** The longest pause before a round of queries, in ms. */
const maxPause = 100
/**
 * The time after which the primary is asked if it has reached the required position, in ms. Most
 * replicas reach it before.
 */
const primaryCheckDelay = 5

const nothing = () => {}

/**
 * Checks if a token is beyond the last record of its primary. A token of a later timeline is not:
 * another server may be the primary by now.
 */
const isBeyond = ({ flushed, position }: WalStatus, tokens: ReadonlyArray<TokenFields>): boolean =>
  // a standby reports no flush
  flushed !== undefined &&
  tokens.some(
    ({ lsn, systemId, timeline }) =>
      systemId === position.systemId && timeline === position.timeline && lsn > position.lsn
  )

/**
 * Function that checks out a connection of a server until a deadline, and calls `use` or `fail`.
 */
type CheckOut = (
  server: Server,
  until: number,
  use: (connection: Connection) => void,
  fail: (failure: CheckoutFailure | undefined) => void
) => void

/**
 * Selection that queries one replica after the other until one has the required position. It begins
 * another round if a replica is behind and time is left. Otherwise the read goes to the primary or
 * fails.
 */
export class ReplicaSelection implements ConnectionSource {
  private pool: Pool
  /** Cancels the step in progress. */
  private cancel = nothing
  private isDone = false
  private pause = minPause
  /** Ends the pause in progress. */
  private endPause = nothing
  /** Cancels the question to the primary, before it is sent. */
  private cancelCheck: (() => void) | undefined = undefined
  /** True if the primary has not reached a token, so that no replica can. */
  private isUnreachable = false
  // state of the current round
  private isBehind = false
  /** The servers that report when they have the required position. */
  private reporting: ReadonlyArray<readonly [ReplayWait, bigint]> = []
  /** True if another server is behind, so that its position must be polled. */
  private mustPoll = false
  /** True after a report. A server that is behind nevertheless is polled, so that reports cause no rounds without end. */
  private wasReported = false
  private lostServer: string | undefined = undefined
  private unproved: ReadonlyArray<string> = []

  constructor(
    private readonly candidates: ReplicaCandidates,
    private readonly requirement: ReadRequirement
  ) {
    this.pool = candidates.primary.reads
  }

  get options(): PoolDependencies {
    return this.pool.options
  }

  checkin(connection: Connection): void {
    this.pool.checkin(connection)
  }

  checkout(deadline: number, holding: ReadonlyArray<Connection>, callback: OnCheckout, caller?: Caller): () => void {
    const since = clock.now()
    // after the selection, the checkout of a connection for the read needs time, too
    const until = since + Math.min(this.requirement.maxWait, (deadline - since) / 2)
    const finish: OnCheckout = (failure, connection) => {
      if (this.isDone) return
      this.isDone = true
      this.cancelCheck?.()
      callback(failure, connection)
    }
    const checkOut: CheckOut = (server, until, use, fail) => {
      this.pool = server.reads
      let hasResult = false
      const cancel = this.pool.checkout(
        until,
        holding,
        (failure, connection) => {
          hasResult = true
          if (connection !== undefined) use(connection)
          else fail(failure)
        },
        caller
      )
      if (!hasResult) this.cancel = cancel
    }
    const assign = (server: Server) => (connection: Connection) => {
      this.candidates.onFound(server)
      finish(undefined, connection)
    }
    const tryNext = (): void => {
      if (this.isDone) return
      const { primary } = this.candidates
      const server = this.isUnreachable ? primary : this.candidates.next()
      if (server !== primary) {
        const replicaDeadline = Math.min(deadline, Math.max(until, clock.now() + positionTimeout))
        return this.tryReplica(server, checkOut, assign(server), tryNext, replicaDeadline)
      }
      if (this.isBehind && !this.isUnreachable && clock.now() < until) {
        this.cancelCheck ??= clock.later(primaryCheckDelay, () => this.checkPrimary())
        return this.waitForNextRound(tryNext, until)
      }
      if (this.requirement.otherwise === "fail") return finish(this.selectionFailure(clock.now() - since), undefined)
      const use = (connection: Connection) => this.renewToken(connection, assign(server), tryNext)
      checkOut(server, deadline, use, (failure) => finish(failure, undefined))
    }
    tryNext()
    return () => {
      if (this.isDone) return
      this.isDone = true
      this.cancelCheck?.()
      this.cancel()
    }
  }

  /**
   * Asks the primary, beside the pauses, if it has reached the tokens of its timeline. A token beyond
   * its last record is that of a write which no server has.
   */
  private checkPrimary(): void {
    this.cancelCheck = this.candidates.primary.positionQuestions.ask((status) => {
      this.isUnreachable = status !== undefined && isBeyond(status, this.requirement.tokens ?? [])
      if (this.isUnreachable) this.endPause()
    })
  }

  private tryReplica(
    server: Server,
    checkOut: CheckOut,
    assign: (connection: Connection) => void,
    tryNext: () => void,
    until: number
  ): void {
    const { tokens } = this.requirement
    const { database, session } = server.reads.options
    if (tokens === undefined) return tryNext()
    // behind a pooler, the position query and the read may go to different servers
    if (session.mode !== "session") {
      this.passOver(server, "unproved")
      return tryNext()
    }
    const use = (connection: Connection) => {
      const judge = () => {
        const freshness = judgeFreshness(connection.position, database, tokens)
        if (freshness === "caughtUp" && connection.broken === undefined) return assign(connection)
        if (freshness === "behind") this.addBehind(server, connection, tokens)
        server.reads.checkin(connection)
        this.passOver(server, freshness)
        tryNext()
      }
      if (judgeFreshness(connection.position, database, tokens) === "caughtUp") return judge()
      this.cancel = queryPositionWithin(connection, until - clock.now(), (status) => {
        connection.position = status?.position
        judge()
      })
    }
    server.onChosen(clock.now())
    // a replica that has no connection in time is passed over without an observation
    checkOut(server, until, use, tryNext)
  }

  /** Records a server that is behind, and the way to learn that it is no longer. */
  private addBehind(server: Server, connection: Connection, tokens: ReadonlyArray<TokenFields>): void {
    const { position } = connection
    const { replayWait } = server
    // positions of different timelines cannot be compared
    const isComparable = position !== undefined && tokens.every(({ timeline }) => timeline === position.timeline)
    if (replayWait === undefined || this.wasReported || !isComparable || !canWaitForReplay(connection)) {
      this.mustPoll = true
      return
    }
    let lsn = 0n
    for (const token of tokens) if (token.lsn > lsn) lsn = token.lsn
    this.reporting = [...this.reporting, [replayWait, lsn]]
  }

  private waitForNextRound(tryNext: () => void, until: number): void {
    const { mustPoll, reporting } = this
    const begin = () => {
      this.cancel()
      this.endPause = nothing
      tryNext()
    }
    this.endPause = begin
    const isReported = !mustPoll && reporting.every(([{ isConnected }]) => isConnected)
    const pause = isReported ? maxPause : this.pause
    const timer = clock.timer(Math.min(pause, until - clock.now()), begin)
    const cancels = reporting.map(([replayWait, lsn]) =>
      replayWait.until(lsn, () => {
        this.wasReported = true
        begin()
      })
    )
    this.cancel = () => {
      clock.clear(timer)
      for (const cancel of cancels) cancel()
    }
    this.pause = Math.min(this.pause * 2, maxPause)
    this.isBehind = false
    this.reporting = []
    this.mustPoll = false
    this.lostServer = undefined
    this.unproved = []
  }

  private passOver({ name, reads }: Server, freshness: Freshness): void {
    const { database, observer } = reads.options
    if (freshness === "behind") this.isBehind = true
    else if (freshness === "lost") this.lostServer ??= name
    else if (freshness === "unproved") this.unproved = [...this.unproved, name]
    else return
    observer.observe({ _tag: "PassedOver", database, server: name, reason: freshness })
  }

  /**
   * Records a new token of the primary in a causal session that has no token, or one of a lost
   * history. Then assigns the connection to the read, which sees at least that position.
   */
  private renewToken(connection: Connection, assign: (connection: Connection) => void, tryNext: () => void): void {
    const { isBounded, session, tokens } = this.requirement
    const { database } = this.options
    const isTokenValid = tokens !== undefined && (this.lostServer === undefined || isBounded === true)
    if (session === undefined || isTokenValid) return assign(connection)
    const recorder = new TokenRecorder(database, [session])
    this.cancel = () => connection.abort("cancelled")
    // no timeout, because the read that follows waits for the same server
    queryPosition(connection, (status) => {
      if (status !== undefined) recorder.recordWrite(status)
      if (connection.broken === undefined) return assign(connection)
      this.checkin(connection)
      tryNext()
    })
  }

  private selectionFailure(waitedMillis: number): PlainFailure<"NoReplicaCaughtUp" | "TokenFromLostTimeline"> {
    const { database } = this.options
    const [token] = this.requirement.tokens ?? []
    const reason = this.requirement.isOverMaxLag === true ? "maxLag" : "position"
    return this.lostServer === undefined || token === undefined || this.requirement.isBounded === true
      ? { _tag: "NoReplicaCaughtUp", database, reason, waitedMillis, unproved: [...this.unproved] }
      : { _tag: "TokenFromLostTimeline", database, server: this.lostServer, timeline: token.timeline }
  }
}
