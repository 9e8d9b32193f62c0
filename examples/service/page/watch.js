import { ask, describe, isReplica, reason } from "./api.js"
import { byId, make } from "./dom.js"

const every = 1000
const mostBars = 60
const mostLines = 6

const button = byId("watch", HTMLButtonElement)
const place = byId("watched", HTMLDivElement)
const tally = byId("tally", HTMLSpanElement)
const bars = byId("bars", HTMLDivElement)
const answers = byId("answers", HTMLOListElement)

let isOn = false
let answered = 0
let failed = 0

/**
 * @param {"replica" | "primary" | "failed"} kind
 * @param {number} took
 * @param {string} text
 */
const note = (kind, took, text) => {
  if (kind === "failed") failed++
  else answered++
  tally.textContent = `${answered} answered, ${failed} failed`
  const bar = make("span", { class: kind })
  // each step of ten is as high as the one before
  bar.style.height = `${Math.min(100, 12 + 22 * Math.log10(1 + took))}%`
  bars.append(bar)
  while (bars.childElementCount > mostBars) bars.firstElementChild?.remove()
  const line = make(
    "li",
    {},
    make("time", {}, new Date().toLocaleTimeString("en-GB")),
    make("span", { class: `dot ${kind}` }),
    text
  )
  answers.prepend(line)
  while (answers.childElementCount > mostLines) answers.lastElementChild?.remove()
}

/** One search, as any visitor's. The next one comes a second after it began, or when it has ended. */
const look = async () => {
  const began = performance.now()
  try {
    const { by } = await ask("GET", "/records?size=1")
    if (by !== undefined) note(isReplica(by) ? "replica" : "primary", by.millis, describe(by))
  } catch (error) {
    note("failed", performance.now() - began, reason(error))
  }
  if (isOn) setTimeout(look, Math.max(0, began + every - performance.now()))
}

/** @param {boolean} on */
const turn = (on) => {
  if (on === isOn) return
  isOn = on
  button.setAttribute("aria-pressed", String(on))
  place.hidden = false
  if (on) look()
}

export const begin = () => turn(true)

export const start = () => button.addEventListener("click", () => turn(!isOn))
