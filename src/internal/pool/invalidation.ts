/** The invalidation of connections, and the eviction of those that it matches. */
import type { Connection } from "../connection/connection.js"

/** The connections that an invalidation closes. */
export interface Invalidation {
  /**
   * `"soft"` closes the connections at their next checkout or checkin, `"hard"` closes them now,
   * even if they are in use.
   */
  readonly mode: "soft" | "hard"
  /** Only connections opened until this moment of `performance.now()` are closed. */
  readonly before: number
  /** If set, only the connection with this server process is closed. */
  readonly processId?: number | undefined
}

/**
 * Marks the connections that an invalidation matches for eviction, and returns them. A marked
 * connection is not checked out any more.
 */
export const markForEviction = (
  all: Iterable<Connection>,
  before: number,
  processId: number | undefined
): ReadonlyArray<Connection> => {
  const matches = [...all].filter(
    (connection) =>
      connection.broken === undefined &&
      connection.createdAt <= before &&
      (processId === undefined || connection.processId === processId)
  )
  for (const connection of matches) {
    connection.retireAt = Number.NEGATIVE_INFINITY
    connection.retireAs = "invalidated"
  }
  return matches
}
