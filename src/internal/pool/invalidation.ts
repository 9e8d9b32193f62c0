/** The invalidation of connections, and the eviction of those that it matches. */
import type { Connection } from "../connection/connection.js"

/** The connections that an invalidation closes. */
export interface Invalidation {
  /**
   * `"soft"`: closes them at their next checkout or checkin. `"hard"`: closes them now, also those
   * in use.
   */
  readonly mode: "soft" | "hard"
  /** Limits it to connections opened before this moment of `performance.now()`. */
  readonly before: number
  /** Limits it to the connection of this server process. */
  readonly processId?: number | undefined
}

/**
 * Marks the connections that were opened before a moment, or that of a server process, for
 * eviction, so that they are not checked out any more. Returns them.
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
