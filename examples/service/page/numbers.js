/** A number with separators between the thousands. @param {number} count */
export const n = (count) => count.toLocaleString("en")

/** A time without its unit; one below 10 ms has a fraction. @param {number} millis */
export const rounded = (millis) => (millis < 10 ? millis.toFixed(1) : n(Math.round(millis)))

/** A time that may be unknown. @param {number | null} millis */
export const inMillis = (millis) => (millis === null ? "–" : `${rounded(millis)} ms`)
