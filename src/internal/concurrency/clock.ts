/**
 * How long somebody who waits for a server is patient.
 */

/**
 * Bounds for undoing something, in ms: the usual one, one for an interrupted caller that waits for it, and none where another bound holds.
 */
export const rollbackTimeout = { usual: 750, hurried: 400, patient: Number.POSITIVE_INFINITY }

/** The longest timer of Node, in ms: it fires a longer one at once. */
const longestTimer = 2_147_483_647

/** Sets a timer for any time, infinity included, as one timer of Node that goes round until the time is over. */
export const timer = (millis: number, act: () => void): NodeJS.Timeout => {
  if (millis <= longestTimer) return setTimeout(act, Math.max(0, millis))
  // equal rounds, for a timer starts again with the time that it was set with
  let rounds = Math.ceil(millis / longestTimer)
  const all = setTimeout(
    () => {
      if (--rounds > 0) all.refresh()
      else act()
    },
    Number.isFinite(millis) ? millis / rounds : longestTimer
  )
  return all
}

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
