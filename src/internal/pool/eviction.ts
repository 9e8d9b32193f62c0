/**
 * Which connections an invalidation means, and that they have had their time.
 */
import type { Connection } from "../connection/connection.js"

/** Marks those that were opened before a moment, or the one of a server process, as not to be handed out any more; gives them. */
export const markForEviction = (
  all: Iterable<Connection>,
  before: number,
  processId: number | undefined
): ReadonlyArray<Connection> => {
  const meant = [...all].filter(
    (connection) =>
      connection.broken === undefined &&
      connection.createdAt <= before &&
      (processId === undefined || connection.processId === processId)
  )
  for (const connection of meant) {
    connection.retireAt = Number.NEGATIVE_INFINITY
    connection.retireAs = "invalidated"
  }
  return meant
}
