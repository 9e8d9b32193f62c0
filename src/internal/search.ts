/**
 * The search for a replica that has what a read is to see. Each is asked on the very connection that the read is going to use: what one
 * connection has seen of a server holds for as long as that connection does, whatever becomes of the server.
 */
import type { Connection } from "../Connection.js"
import type { Session, Token } from "../Consistency.js"
import { NoReplicaCaughtUp, TokenFromLostTimeline } from "../DatabaseError.js"
import { Observation } from "../Observation.js"
import type { Pool, PoolOptions } from "../Pool.js"
import { timer } from "./later.js"
import type { Borrower } from "./pool/borrower.js"
import { askPosition, judge, readPosition, tokenOf, type Verdict } from "./position.js"
import type { OnTaken, Source } from "./source.js"

/** What a read is to see, and what is done where no replica has it. */
export interface Wanted {
  readonly token: Token
  /** Until when a replica may catch up: a moment of `performance.now()`. */
  readonly until: number
  readonly otherwise: "primary" | "fail"
  /** Whose token it is; it gets a new one where this one is of a lost history, which nobody would catch up with. */
  readonly session: Session | undefined
}

/** How long to wait before the replicas are asked again, in ms: the first is most often enough. */
const firstPause = 1
const longestPause = 16

const none: ReadonlyArray<never> = []
const nothing = () => {}

/** Whether the server of a connection has what a token tells of; it is asked only where that is not known already. */
const look = (connection: Connection, database: string, token: Token, told: (verdict: Verdict) => void): void => {
  if (token.database !== database) return told("lost")
  if (judge(connection.position, token) === "caughtUp") return told("caughtUp")
  connection.run(none, askPosition, none, (failure, flight) => {
    connection.position = failure === undefined ? readPosition(flight) : undefined
    told(judge(connection.position, token))
  })
}

/** Goes from replica to replica, and again, until one has what is wanted, or the time is over. */
export class Search implements Source {
  private pool: Pool
  private readonly since = performance.now()
  private pause = firstPause
  /** What the servers of this round have said. */
  private round = new Map<string, Verdict>()
  private giveUp = nothing

  /** `next` gives the pool of one replica after the other, then the primary's, then begins again. */
  constructor(
    private readonly next: () => Pool,
    private readonly primary: Pool,
    private readonly wanted: Wanted
  ) {
    this.pool = primary
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
    settle: OnTaken,
    who?: Borrower | undefined
  ): () => void {
    let isOver = false
    const end: OnTaken = (error, connection) => {
      this.giveUp = nothing
      settle(error, connection)
    }
    const take = (pool: Pool, use: (connection: Connection) => void) => {
      this.pool = pool
      let isTaken = false
      const giveUp = pool.checkout(
        deadline,
        holding,
        (error, connection) => {
          isTaken = true
          if (connection === undefined) return end(error, undefined)
          this.giveUp = () => connection.abort("cancelled")
          use(connection)
        },
        who
      )
      if (!isTaken) this.giveUp = giveUp
    }
    const step = (): void => {
      if (isOver) return
      const pool = this.next()
      if (pool !== this.primary) {
        return take(pool, (connection) =>
          look(connection, pool.options.database, this.wanted.token, (verdict) => {
            if (verdict === "caughtUp" && connection.broken === undefined) return end(undefined, connection)
            pool.checkin(connection)
            this.passOver(pool, verdict)
            step()
          })
        )
      }
      const isBehind = [...this.round.values()].includes("behind")
      const left = this.wanted.until - performance.now()
      if (isBehind && left > 0) {
        const waiting = timer(Math.min(this.pause, left), step)
        this.pause = Math.min(this.pause * 2, longestPause)
        this.round = new Map()
        this.giveUp = () => clearTimeout(waiting)
        return
      }
      if (this.wanted.otherwise === "fail") return end(this.refusal(), undefined)
      take(pool, (connection) => this.onPrimary(connection, end))
    }
    step()
    return () => {
      isOver = true
      this.giveUp()
    }
  }

  private passOver({ options: { database, observer, server } }: Pool, verdict: Verdict): void {
    this.round.set(server.name, verdict)
    if (verdict !== "caughtUp") {
      observer.observe(Observation.PassedOver({ database, server: server.name, reason: verdict }))
    }
  }

  private onPrimary(connection: Connection, settle: OnTaken): void {
    const { session, token } = this.wanted
    const isLost = [...this.round.values()].includes("lost")
    if (session === undefined || !isLost) return settle(undefined, connection)
    // from here on its reads have seen at least what this one is going to see
    connection.run(none, askPosition, none, (failure, flight) => {
      const fresh = failure === undefined ? tokenOf(token.database, readPosition(flight)) : undefined
      if (fresh !== undefined) session.note(token.database, fresh)
      settle(undefined, connection)
    })
  }

  private refusal(): NoReplicaCaughtUp | TokenFromLostTimeline {
    const { database } = this.options
    const { timeline } = this.wanted.token
    const of = (verdict: Verdict) => [...this.round].flatMap(([name, said]) => (said === verdict ? [name] : []))
    const [lost] = of("lost")
    return lost === undefined
      ? new NoReplicaCaughtUp({ database, waited: performance.now() - this.since, unproved: of("unproved") })
      : new TokenFromLostTimeline({ database, server: lost, timeline })
  }
}
