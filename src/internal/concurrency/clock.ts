/**
 * Time, timers and random numbers. No other file uses those of the process, so that they can be
 * replaced as a whole. All times are in ms.
 */
import { randomUUID } from "node:crypto"

/** Timer that has been set. `clear` stops it; its `unref` lets the process end before it fires. */
export type Timer = NodeJS.Timeout

/** Callback that runs after the pending input and output; `clearImmediate` stops it. */
export type Immediate = NodeJS.Immediate

/** Returns the monotonic time since the start of the process. */
export const now = (): number => performance.now()

/** Returns a random number from 0 up to 1. */
export const random = (): number => Math.random()

/** Returns the time in ms since 1970 as 12 hexadecimal digits, with a hyphen as in a UUID. */
const uuidTime = (age: number): string => {
  const millis = Math.max(0, Math.floor(performance.timeOrigin + performance.now() - age))
  const digits = millis.toString(16).padStart(12, "0")
  return `${digits.slice(0, 8)}-${digits.slice(8)}`
}

/**
 * Returns a new UUID of version 7: the time, and 74 random bits. An index receives such values in
 * their order, so that it writes few pages.
 */
export const uuid = (): string => `${uuidTime(0)}-7${randomUUID().slice(15)}`

/** Returns the least UUID of version 7 of the time `age` ms ago. */
export const uuidBefore = (age: number): string => `${uuidTime(age)}-7000-8000-000000000000`

/** Stops a timer, if there is one. */
export const clear = (timer: Timer | undefined): void => clearTimeout(timer)

/** Runs a callback after the pending input and output. */
export const immediate = (callback: () => void): Immediate => setImmediate(callback)

/** Stops a callback that `immediate` has set, if there is one. */
export const clearImmediate = (pending: Immediate | undefined): void => globalThis.clearImmediate(pending)

/** The longest delay of a timer of Node. Node fires a timer with a longer delay at once. */
const longestTimer = 2_147_483_647

/**
 * Sets a timer for any delay, infinity included: a delay beyond Node's maximum is divided into
 * equal rounds of one timer.
 */
export const timer = (millis: number, callback: () => void): Timer => {
  if (millis <= longestTimer) return setTimeout(callback, Math.max(0, millis))
  // the rounds are equal because `refresh` repeats the delay that the timer was set with
  let rounds = Math.ceil(millis / longestTimer)
  const repeated = setTimeout(
    () => {
      if (--rounds > 0) repeated.refresh()
      else callback()
    },
    Number.isFinite(millis) ? millis / rounds : longestTimer
  )
  return repeated
}

/**
 * Calls back after a delay. If the process was busy, the input that has arrived is read first,
 * because the awaited answer may be in it. The timer does not keep the process alive. The returned
 * function cancels it.
 */
export const later = (millis: number, callback: () => void): (() => void) => {
  let pending: Immediate | undefined
  const delay = timer(millis, () => {
    pending = setImmediate(callback)
  })
  delay.unref()
  return () => {
    clearTimeout(delay)
    globalThis.clearImmediate(pending)
  }
}
