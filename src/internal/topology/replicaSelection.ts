/**
 * The search for a replica that has what a read is to see. Each is asked on the very connection that the read is going to use: what one
 * connection has seen of a server holds for as long as that connection does, whatever becomes of the server.
 */

import type { Session, Token } from "../../Consistency.js"
import { NoReplicaCaughtUp, TokenFromLostTimeline } from "../../DatabaseError.js"
import { Observation } from "../../Observation.js"
import type { CheckoutError } from "../../Pool.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import {
  type Freshness,
  judgeFreshness,
  positionTimeout,
  queryPosition,
  queryPositionWithin,
  TokenRecorder
} from "../consistency/walPosition.js"
import type { Borrower } from "../pool/borrower.js"
import type { Pool, PoolOptions } from "../pool/pool.js"
import type { ConnectionSource, OnCheckout } from "./connectionSource.js"
import type { Server } from "./topology.js"

/** What a read is to see, and what is done where no replica has it. */
export interface ReadRequirement {
  /** None where something was written and nobody knows where: only the primary has that for certain. */
  readonly tokens: readonly [Token, ...Array<Token>] | undefined
  /** How long a replica may take to get there, in ms. */
  readonly maxWait: number
  readonly otherwise: "primary" | "fail"
  /** It gets a new token where its own is of a lost history, which nobody would catch up with, or where it has none. */
  readonly session: Session | undefined
}

/** The servers to search, and what is to be known of the one that was found. */
export interface ReplicaCandidates {
  /** One replica after the other, then the primary, then all over again. */
  readonly next: () => Server
  readonly primary: Server
  readonly found: (server: Server) => void
}

/** How long to wait before the replicas are asked again, in ms: the first is most often enough. */
const firstPause = 1
const longestPause = 100

const nothing = () => {}

/** Takes a connection of a server, or fails, until a moment. */
type Take = (
  server: Server,
  until: number,
  use: (connection: Connection) => void,
  fail: (error: CheckoutError | undefined) => void
) => void

/** Goes from replica to replica, and again, until one has what is wanted, or the time is over. */
export class ReplicaSelection implements ConnectionSource {
  private pool: Pool
  /** Gives up what is under way. */
  private giveUp = nothing
  private isOver = false
  private pause = firstPause
  // of this round
  private isBehind = false
  private lost: string | undefined = undefined
  private unproved: ReadonlyArray<string> = []

  constructor(
    private readonly course: ReplicaCandidates,
    private readonly wanted: ReadRequirement
  ) {
    this.pool = course.primary.reads
  }

  get options(): PoolOptions {
    return this.pool.options
  }

  checkin(connection: Connection): void {
    this.pool.checkin(connection)
  }

  checkout(
    deadline: number,
    holding: ReadonlyArray<Connection>,
    settle: OnCheckout,
    who?: Borrower | undefined
  ): () => void {
    const since = clock.now()
    // whoever is read from in the end needs time, too
    const until = since + Math.min(this.wanted.maxWait, (deadline - since) / 2)
    const end: OnCheckout = (error, connection) => {
      if (this.isOver) return
      this.isOver = true
      settle(error, connection)
    }
    const take: Take = (server, until, use, fail) => {
      this.pool = server.reads
      let isSettled = false
      const giveUp = this.pool.checkout(
        until,
        holding,
        (error, connection) => {
          isSettled = true
          if (connection !== undefined) use(connection)
          else fail(error)
        },
        who
      )
      if (!isSettled) this.giveUp = giveUp
    }
    const hand = (server: Server) => (connection: Connection) => {
      this.course.found(server)
      end(undefined, connection)
    }
    const step = (): void => {
      if (this.isOver) return
      const server = this.course.next()
      if (server !== this.course.primary) {
        const last = Math.min(deadline, Math.max(until, clock.now() + positionTimeout))
        return this.tryReplica(server, take, hand(server), step, last)
      }
      if (this.isBehind && clock.now() < until) return this.wait(step, until)
      if (this.wanted.otherwise === "fail") return end(this.refusal(clock.now() - since), undefined)
      const use = (connection: Connection) => this.renew(connection, hand(server), step)
      take(server, deadline, use, (error) => end(error, undefined))
    }
    step()
    return () => {
      if (this.isOver) return
      this.isOver = true
      this.giveUp()
    }
  }

  private tryReplica(
    server: Server,
    take: Take,
    hand: (connection: Connection) => void,
    step: () => void,
    until: number
  ): void {
    const { tokens } = this.wanted
    const { database, session } = server.reads.options
    if (tokens === undefined) return step()
    // behind a pooler what is asked and what is read may be answered by two servers
    if (session.mode !== "session") {
      this.passOver(server, "unproved")
      return step()
    }
    const use = (connection: Connection) => {
      const decide = () => {
        const verdict = judgeFreshness(connection.position, database, tokens)
        if (verdict === "caughtUp" && connection.broken === undefined) return hand(connection)
        server.reads.checkin(connection)
        this.passOver(server, verdict)
        step()
      }
      if (judgeFreshness(connection.position, database, tokens) === "caughtUp") return decide()
      this.giveUp = queryPositionWithin(connection, until - clock.now(), (answer) => {
        connection.position = answer?.position
        decide()
      })
    }
    // one that has none to give in time is no better than one that is behind
    take(server, until, use, step)
  }

  private wait(step: () => void, until: number): void {
    const waiting = clock.timer(Math.min(this.pause, until - clock.now()), step)
    this.giveUp = () => clock.clear(waiting)
    this.pause = Math.min(this.pause * 2, longestPause)
    this.isBehind = false
    this.lost = undefined
    this.unproved = []
  }

  private passOver({ name, reads }: Server, verdict: Freshness): void {
    const { database, observer } = reads.options
    if (verdict === "behind") this.isBehind = true
    else if (verdict === "lost") this.lost ??= name
    else if (verdict === "unproved") this.unproved = [...this.unproved, name]
    else return
    observer.observe(Observation.PassedOver({ database, server: name, reason: verdict }))
  }

  /** On the primary a session that has no token, or one of a lost history, gets one: the read that follows sees at least that. */
  private renew(connection: Connection, hand: (connection: Connection) => void, step: () => void): void {
    const { session, tokens } = this.wanted
    const { database } = this.options
    if (session === undefined || (tokens !== undefined && this.lost === undefined)) return hand(connection)
    const asking = new TokenRecorder(database, [session])
    this.giveUp = () => connection.abort("cancelled")
    // the read that follows would have to wait for this server, too
    queryPosition(connection, (answer) => {
      if (answer !== undefined) asking.stored(answer)
      if (connection.broken === undefined) return hand(connection)
      this.checkin(connection)
      step()
    })
  }

  private refusal(waited: number): NoReplicaCaughtUp | TokenFromLostTimeline {
    const { database } = this.options
    const [token] = this.wanted.tokens ?? []
    return this.lost === undefined || token === undefined
      ? new NoReplicaCaughtUp({ database, waited, unproved: [...this.unproved] })
      : new TokenFromLostTimeline({ database, server: this.lost, timeline: token.timeline })
  }
}
