/**
 * The tokens that causal sessions record after writes. They are made of WAL positions.
 */
import type { Session, Token } from "../../Consistency.js"
import type { WalStatus } from "./queryPosition.js"

/**
 * Returns the end of the last WAL record, given the start of the next. If the next record is the
 * first of a page, the header of the page is between the two.
 */
const recordEnd = (lsn: bigint, pageSize: number): bigint => {
  if (!(pageSize > 0)) return lsn
  const offset = lsn % BigInt(pageSize)
  return offset === 24n || offset === 40n ? lsn - offset : lsn
}

/** Fields of a token, as a causal session records them. */
export type TokenFields = Pick<Token, "database" | "systemId" | "timeline" | "lsn">

/**
 * Returns a token that covers a write; `undefined` if the timeline is unknown. If the COMMIT has
 * waited for the flush of its WAL, the token is the position on disk, and WAL on disk is sent to
 * replicas. Otherwise the token is the end of the last record, and possibly the server sends the
 * WAL up to that position only after another commit.
 */
const tokenOf = (
  database: string,
  { flushed, pageSize, position }: WalStatus,
  isOnDisk: boolean
): TokenFields | undefined => {
  const { systemId, timeline } = position
  if (timeline === undefined) return undefined
  const lsn = isOnDisk && flushed !== undefined ? flushed : recordEnd(position.lsn, pageSize)
  return { database, systemId, timeline, lsn }
}

/**
 * Recorder of tokens for causal sessions. It must be created before the position query, because the
 * answer covers only the writes before the creation.
 */
export class TokenRecorder {
  private readonly sessions: ReadonlyArray<readonly [session: Session, queriedAt: number]>

  constructor(
    private readonly database: string,
    sessions: Iterable<Session>
  ) {
    this.sessions = Array.from(sessions, (session) => [session, session.beginQuery()] as const)
  }

  /**
   * Records the token of a COMMIT, unless the COMMIT had nothing to commit. Without a status the
   * position counts as unknown.
   */
  recordCommit(status: WalStatus | undefined): void {
    const [synchronous = "", xid = ""] = status?.commitInfo.split(" ") ?? []
    if (status !== undefined && synchronous !== "" && xid === "") return
    const isOnDisk = synchronous !== "" && synchronous !== "off"
    this.record(status === undefined ? undefined : tokenOf(this.database, status, isOnDisk))
  }

  /**
   * Records a token after a write whose COMMIT was not observed. Without a status the position
   * counts as unknown.
   */
  recordWrite(status: WalStatus | undefined): void {
    this.record(status === undefined ? undefined : tokenOf(this.database, status, false))
  }

  private record(token: TokenFields | undefined): void {
    for (const [session, queriedAt] of this.sessions) session.record(this.database, token, queriedAt)
  }
}
