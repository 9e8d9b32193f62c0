/**
 * What a server says of how far it is, what that is a token of, and whether it is far enough.
 */

import { type Session, Token } from "../../Consistency.js"
import * as clock from "../concurrency/clock.js"
import type { Connection, Request } from "../connection/connection.js"
import type { Exchange } from "../protocol/exchange.js"
import { constantStep, type Step } from "../protocol/messages.js"
import { isLsn, type Position, parseLsn } from "../sql/lsn.js"

/**
 * Asks a server how far it is, a primary or a standby. The timeline is read after the position, never before: a standby may go over to
 * another one in between, and then what was read before would be taken for a part of it. `OFFSET 0` keeps the two apart. A receiver that
 * does not stream says which timeline it was on, while the server may replay another one from an archive.
 *
 * `pg_last_wal_replay_lsn` is no proof alone: after a failover another history may have got that far.
 */
const question: Request = {
  text: `SELECT s.system_identifier, p.lsn,
  CASE WHEN p.standby THEN NULL ELSE pg_catalog.pg_walfile_name(p.lsn) END,
  (SELECT r.received_tli FROM pg_catalog.pg_stat_wal_receiver r
    WHERE p.standby AND p.lsn IS NOT NULL AND r.status OPERATOR(pg_catalog.=) 'streaming'),
  p.flushed, pg_catalog.current_setting('effect_db.commit', true), pg_catalog.current_setting('wal_block_size')
FROM (SELECT r.standby, CASE WHEN r.standby THEN pg_catalog.pg_last_wal_replay_lsn()
  ELSE pg_catalog.pg_current_wal_insert_lsn() END AS lsn,
  CASE WHEN r.standby THEN NULL ELSE pg_catalog.pg_current_wal_flush_lsn() END AS flushed
  FROM (SELECT pg_catalog.pg_is_in_recovery() AS standby OFFSET 0) r OFFSET 0) p, pg_catalog.pg_control_system() s`,
  values: [],
  // what a program reads its columns with is no matter of this one
  rows: "raw",
  prepare: true,
  simple: false
}

/** Before COMMIT: how it is going to be, and whether there is anything to store, for a `SET LOCAL` is forgotten by it. */
const beforeCommit: Step = constantStep(
  `SELECT pg_catalog.set_config('effect_db.commit', pg_catalog.concat(pg_catalog.current_setting('synchronous_commit'), ' ',
  pg_catalog.pg_current_xact_id_if_assigned()), false)`
)

/** Where the last record ends, of where the next one is going to begin: at the end of a page its header is between. */
const endOf = (lsn: bigint, page: number): bigint => {
  if (!(page > 0)) return lsn
  const into = lsn % BigInt(page)
  return into === 24n || into === 40n ? lsn - into : lsn
}

/** The first eight digits of the name of a part of the log. */
const timelineOf = (file: string): number => Number.parseInt(file.slice(0, 8), 16)

/** What a server has answered. */
export interface WalStatus {
  readonly position: Position
  /** What it had on its disk. */
  readonly flushed: bigint | undefined
  /** What {@link beforeCommit} has noted last. */
  readonly commit: string
  readonly page: number
}

const lsnIn = (text: unknown): bigint | undefined =>
  typeof text === "string" && isLsn(text) ? parseLsn(text) : undefined

const textIn = (text: unknown): string => (typeof text === "string" ? text : "")

const read = (flight: Exchange): WalStatus | undefined => {
  const row = flight.result.rows[0]
  const [systemId, at, file, followed, flushed, commit, page]: ReadonlyArray<unknown> = Array.isArray(row) ? row : []
  const lsn = lsnIn(at)
  if (typeof systemId !== "string" || lsn === undefined) return undefined
  const timeline =
    typeof file === "string" ? timelineOf(file) : typeof followed === "string" ? Number(followed) : undefined
  return {
    position: { systemId, lsn, timeline },
    flushed: lsnIn(flushed),
    commit: textIn(commit),
    page: Number(textIn(page))
  }
}

/** Asks a connection; without an answer there is none. */
export const queryPosition = (connection: Connection, told: (answer: WalStatus | undefined) => void): void =>
  connection.run(none, question, none, (failure, flight) => told(failure === undefined ? read(flight) : undefined))

/** How long a server has to answer, in ms, that can be done without. */
export const positionTimeout = 1000

/** Asks a connection, which is closed where it does not answer in time; the returned function gives up. */
export const queryPositionWithin = (
  connection: Connection,
  patience: number,
  told: (answer: WalStatus | undefined) => void
): (() => void) => {
  let isTold = false
  const tell: typeof told = (answer) => {
    if (isTold) return
    isTold = true
    clock.clear(impatient)
    told(answer)
  }
  const abort = () => {
    connection.abort("cancelled")
    tell(undefined)
  }
  const impatient = clock.timer(patience, abort)
  queryPosition(connection, tell)
  return abort
}

const none: ReadonlyArray<never> = []

/** What the COMMIT of a transaction with witnesses has brought: what it was answered, and where the server was after it. */
export interface Committed {
  readonly isKept: boolean
  readonly answer: WalStatus | undefined
}

const commitAndSay = [beforeCommit, constantStep("COMMIT")]

/** Behind a pooler the session is everybody's, and nothing is left in it. */
const forget = [constantStep("RESET effect_db.commit")]

/** Commits, and asks in the same flight. `done` is told of a failure only where the COMMIT was not answered. */
export const commitAndQueryPosition = (
  connection: Connection,
  done: (failure: Parameters<Parameters<Connection["steps"]>[1]>[0], committed: Committed) => void
): void =>
  connection.run(commitAndSay, question, connection.isPooled ? forget : none, (failure, flight) => {
    const isAnswered = flight.acknowledged >= commitAndSay.length
    const answer = failure === undefined ? read(flight) : undefined
    // whatever comes after its answer cannot undo it
    done(isAnswered ? undefined : failure, { isKept: flight.lead !== "ROLLBACK", answer })
  })

/**
 * A place after what was stored. What a COMMIT has waited for is on the disk, which a replica may have; of any other it is only known that it
 * is before where the next record begins, which may be far beyond what anybody sends before somebody else commits.
 */
const tokenOf = (database: string, { flushed, page, position }: WalStatus, isOnDisk: boolean): Token | undefined => {
  const { systemId, timeline } = position
  if (timeline === undefined) return undefined
  const lsn = isOnDisk && flushed !== undefined ? flushed : endOf(position.lsn, page)
  // made of what was checked when it was read
  return new Token({ database, systemId, timeline, lsn }, { disableValidation: true })
}

/** Asks for sessions: what is answered counts as of now. */
export class TokenRecorder {
  private readonly asked: ReadonlyArray<readonly [session: Session, at: number]>

  constructor(
    private readonly database: string,
    sessions: Iterable<Session>
  ) {
    this.asked = Array.from(sessions, (session) => [session, session.ask()] as const)
  }

  /** What a COMMIT has stored; it may be nothing. */
  committed(answer: WalStatus | undefined): void {
    const [synchronous = "", xid = ""] = answer?.commit.split(" ") ?? []
    if (answer !== undefined && synchronous !== "" && xid === "") return
    const isOnDisk = synchronous !== "" && synchronous !== "off"
    this.note(answer === undefined ? undefined : tokenOf(this.database, answer, isOnDisk))
  }

  /** What was stored in a way that nobody has seen. */
  stored(answer: WalStatus | undefined): void {
    this.note(answer === undefined ? undefined : tokenOf(this.database, answer, false))
  }

  private note(token: Token | undefined): void {
    for (const [session, at] of this.asked) session.note(this.database, token, at)
  }
}

/**
 * Whether a server has what a token tells of.
 *
 * - `caughtUp`: it has.
 * - `behind`: it is on its way there.
 * - `unproved`: it does not say which history it is in.
 * - `lost`: its history is another one, by a failover or because it is another cluster.
 */
export type Freshness = "caughtUp" | "behind" | "unproved" | "lost"

const judgeOne = ({ lsn, systemId, timeline }: Position, database: string, token: Token): Freshness => {
  if (database !== token.database || systemId !== token.systemId) return "lost"
  if (timeline === undefined) return "unproved"
  if (timeline > token.timeline) return "lost"
  return timeline === token.timeline && lsn >= token.lsn ? "caughtUp" : "behind"
}

const worse: ReadonlyArray<Freshness> = ["lost", "unproved", "behind"]

/** The same for all of several tokens. */
export const judgeFreshness = (
  position: Position | undefined,
  database: string,
  tokens: ReadonlyArray<Token>
): Freshness => {
  if (position === undefined) return "unproved"
  const all = tokens.map((token) => judgeOne(position, database, token))
  return worse.find((verdict) => all.includes(verdict)) ?? "caughtUp"
}
