import { byId, shape, svgById, write } from "./dom.js"

/**
 * @typedef {{
 *   readonly at: number, readonly reads: number, readonly writes: number, readonly failed: number,
 *   readonly medianMillis: number | null, readonly p95Millis: number | null
 * }} Second
 */

const requests = svgById("requests-chart")
const latency = svgById("latency-chart")
const failed = svgById("failed-chart")
const requestsCaption = byId("requests-caption", HTMLElement)
const failedCaption = byId("failed-caption", HTMLElement)

/** The seconds that fit; a second is one unit wide. */
const span = 120

/** The height of a latency: each step of ten is as high as the one before. @param {number} millis */
const height = (millis) => Math.min(100, Math.max(0, 25 * Math.log10(Math.max(1, millis))))

/**
 * A line through the values; it is broken where there is none.
 *
 * @param {ReadonlyArray<readonly [x: number, millis: number | null]>} points
 * @param {string} name
 */
const line = (points, name) => {
  let d = ""
  let isOpen = false
  for (const [x, millis] of points) {
    if (millis === null) {
      isOpen = false
      continue
    }
    // a point of its own is a short line
    d += `${isOpen ? "L" : "M"}${x} ${100 - height(millis)}${isOpen ? "" : "h0.5"}`
    isOpen = true
  }
  return shape("path", { class: name, d })
}

/**
 * @param {string} name
 * @param {number} x
 * @param {number} y the upper edge
 * @param {number} tall
 */
const bar = (name, x, y, tall) => shape("rect", { class: name, x, y, width: 0.9, height: tall })

/**
 * Draws the last two minutes.
 *
 * @param {ReadonlyArray<Second>} seconds
 * @param {number} now in milliseconds
 */
export const draw = (seconds, now) => {
  const last = Math.floor(now / 1000)
  const placed = seconds.map((second) => /** @type {const} */ ([span - (last - second.at), second]))
  const mostRequests = Math.max(10, ...seconds.map(({ reads, writes }) => reads + writes))
  const mostFailed = Math.max(5, ...seconds.map((second) => second.failed))
  const gaps = () =>
    placed.flatMap(([x, { writes }]) =>
      writes > 0 ? [] : [shape("rect", { class: "gap", x, y: 0, width: 1, height: 100 })]
    )
  requests.replaceChildren(
    ...gaps(),
    ...placed.flatMap(([x, { reads, writes }]) => {
      const [low, high] = [(reads / mostRequests) * 100, (writes / mostRequests) * 100]
      return [bar("reads", x, 100 - low, low), bar("writes", x, 100 - low - high, high)]
    })
  )
  latency.replaceChildren(
    ...gaps(),
    ...[10, 100, 1000].map((millis) =>
      shape("line", { x1: 0, x2: span, y1: 100 - height(millis), y2: 100 - height(millis) })
    ),
    line(
      placed.map(([x, { medianMillis }]) => [x + 0.5, medianMillis]),
      "median"
    ),
    line(
      placed.map(([x, { p95Millis }]) => [x + 0.5, p95Millis]),
      "p95"
    )
  )
  failed.replaceChildren(
    ...gaps(),
    ...placed.map(([x, second]) => {
      const tall = (second.failed / mostFailed) * 100
      return bar("failed", x, 100 - tall, tall)
    })
  )
  write(requestsCaption, `Requests a second, up to ${mostRequests}`)
  write(failedCaption, `Failed requests a second, up to ${mostFailed}`)
}
