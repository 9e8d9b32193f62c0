/**
 * How long somebody who waits for a server is patient.
 */

const longestTimer = 2_147_483_647

/**
 * Calls back in so many ms, but not before what has arrived while the process was busy with something else has been read: it may be what
 * is waited for. It keeps no process alive. The returned function takes it back.
 */
export const later = (millis: number, act: () => void): (() => void) => {
  let soon: NodeJS.Immediate | undefined
  const timer = setTimeout(
    () => {
      soon = setImmediate(act)
    },
    Math.min(millis, longestTimer)
  )
  timer.unref()
  return () => {
    clearTimeout(timer)
    clearImmediate(soon)
  }
}
