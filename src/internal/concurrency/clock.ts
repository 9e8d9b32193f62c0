/**
 * Time, timers and random numbers. No other file asks the process for them, so that they can be replaced as a whole. All times are in ms.
 */

/** A timer that has been set; `clear` stops it, its `unref` lets the process end before it fires. */
export type Timer = NodeJS.Timeout

/** A callback that runs after the input and output that is pending; `clearImmediate` stops it. */
export type Immediate = NodeJS.Immediate

/** Returns the monotonic time since the start of the process. */
export const now = (): number => performance.now()

/** Returns a random number from 0 up to 1. */
export const random = (): number => Math.random()

/** Stops a timer, if there is one. */
export const clear = (timer: Timer | undefined): void => clearTimeout(timer)

/** Runs a callback after the input and output that is pending. */
export const immediate = (act: () => void): Immediate => setImmediate(act)

/** Stops a callback that `immediate` has set, if there is one. */
export const clearImmediate = (pending: Immediate | undefined): void => globalThis.clearImmediate(pending)

/** Bounds for a ROLLBACK: the usual one, one for an interrupted caller that waits for it, and none if another bound holds. */
export const rollbackTimeout = { usual: 750, hurried: 400, patient: Number.POSITIVE_INFINITY }

/** The longest timer of Node, in ms: it fires a longer one at once. */
const longestTimer = 2_147_483_647

/** Sets a timer for any time, infinity included: a time beyond Node's maximum is divided into equal rounds of one timer. */
export const timer = (millis: number, act: () => void): Timer => {
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
 * Calls back after a time, but not before the input that arrived while the process was busy has been read, for the awaited answer may be in
 * it. Does not keep the process alive. The returned function cancels it.
 */
export const later = (millis: number, act: () => void): (() => void) => {
  let soon: Immediate | undefined
  const waiting = timer(millis, () => {
    soon = setImmediate(act)
  })
  waiting.unref()
  return () => {
    clearTimeout(waiting)
    globalThis.clearImmediate(soon)
  }
}
