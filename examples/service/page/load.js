import { ask } from "./api.js"
import * as Chart from "./chart.js"
import { byId, make, write } from "./dom.js"
import { inMillis, n } from "./numbers.js"

/**
 * @typedef {{
 *   readonly rate: number, readonly now: number, readonly answered: number, readonly failed: number, readonly lost: number,
 *   readonly served: ReadonlyArray<{ readonly address: string, readonly reads: number, readonly writes: number }>,
 *   readonly pause: { readonly since: number, readonly millis: number, readonly failed: number, readonly isOver: boolean } | null,
 *   readonly seconds: ReadonlyArray<Chart.Second>
 * }} Load
 */

const rate = 30

const button = byId("load-turn", HTMLButtonElement)
const place = byId("load", HTMLDivElement)
const summary = byId("load-summary", HTMLParagraphElement)
const tally = byId("load-tally", HTMLSpanElement)
const table = byId("seconds", HTMLDetailsElement)
const scroll = byId("seconds-scroll", HTMLDivElement)
const rows = byId("seconds-rows", HTMLTableSectionElement)

/** The figures that are shown. @type {Load | undefined} */
let shown

/** @param {number} count */
const requests = (count) => (count === 1 ? "1 request" : `${n(count)} requests`)
/** @param {number} millis */
const inSeconds = (millis) => `${(millis / 1000).toFixed(1)} s`

/** The state in a sentence, which changes only with the state, because it is announced. @param {Load} load */
const sentence = ({ lost, pause, rate }) => {
  if (rate === 0) return "The load is off."
  if (pause === null) return `${rate} requests are sent a second, and writes are stored.`
  if (!pause.isOver) return "No write is stored any more."
  const losses = lost === 0 ? "" : ` ${n(lost)} acknowledged writes are lost, because replication is asynchronous here.`
  return `Writes are stored again. None was for ${inSeconds(pause.millis)}, while ${requests(pause.failed)} failed.${losses}`
}

/** @param {Chart.Second} second */
const row = ({ at, failed, medianMillis, p95Millis, reads, writes }) =>
  make(
    "tr",
    {},
    make("th", { scope: "row" }, new Date(at * 1000).toLocaleTimeString("en-GB")),
    ...[n(reads), n(writes), inMillis(medianMillis), inMillis(p95Millis), n(failed)].map((text) => make("td", {}, text))
  )

const drawTable = () => {
  if (table.open && shown !== undefined) rows.replaceChildren(...shown.seconds.toReversed().map(row))
}

/** @param {Load} load */
const show = (load) => {
  shown = load
  const isOn = load.rate > 0
  button.setAttribute("aria-pressed", String(isOn))
  if (isOn || load.answered + load.failed > 0) place.hidden = false
  write(summary, sentence(load))
  const now = load.pause?.isOver === false ? `, no write for ${inSeconds(load.pause.millis)}` : ""
  write(tally, `${n(load.answered)} answered, ${n(load.failed)} failed${now}`)
  Chart.draw(load.seconds, load.now)
  drawTable()
}

/** The requests that a server has answered. @param {string} address */
export const servedBy = (address) => shown?.served.find((served) => served.address === address)

/** Reads the figures again. */
export const look = async () => show((await ask("GET", "/load")).value)

/** Begins or ends the load. */
export const turn = async () => {
  const isOn = shown !== undefined && shown.rate > 0
  show((await ask("PUT", "/load", { rate: isOn ? 0 : rate })).value)
  return isOn ? "The load is off." : "The load is on: two of three requests read, one writes."
}

export const start = () => {
  // the rows that are out of sight are reached with the keyboard
  scroll.tabIndex = 0
  scroll.setAttribute("role", "region")
  scroll.setAttribute("aria-label", "Figures by the second")
  table.addEventListener("toggle", drawTable)
}
