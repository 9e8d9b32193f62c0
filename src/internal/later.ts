/**
 * How long somebody who waits for a server is patient.
 */

/**
 * How long what undoes something may take, in ms; how long where somebody has been interrupted and waits for it; and where another bound
 * holds.
 */
export const longestUndo = { usual: 750, hurried: 400, patient: Number.POSITIVE_INFINITY }

/** What Node takes for none at all is anything longer. */
const longestTimer = 2_147_483_647

/** A timer for any time: one that is too long for Node, or infinite, is the longest there is. */
export const timer = (millis: number, act: () => void): NodeJS.Timeout =>
  setTimeout(act, Math.min(Math.max(0, millis), longestTimer))

/**
 * Calls back in so many ms, but not before what has arrived while the process was busy with something else has been read: it may be what
 * is waited for. It keeps no process alive. The returned function takes it back.
 */
export const later = (millis: number, act: () => void): (() => void) => {
  let soon: NodeJS.Immediate | undefined
  const waiting = timer(millis, () => {
    soon = setImmediate(act)
  })
  waiting.unref()
  return () => {
    clearTimeout(waiting)
    clearImmediate(soon)
  }
}
