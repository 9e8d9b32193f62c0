import { ask, reason, sign } from "./api.js"
import { byId, make, trouble } from "./dom.js"
import { n } from "./numbers.js"

/**
 * @typedef {{ readonly iata: string, readonly name: string, readonly city: string, readonly state: string, readonly country: string }} Airport
 * @typedef {{ readonly total: number, readonly page: number, readonly pages: number, readonly records: ReadonlyArray<Airport> }} Page
 */

const size = 10

const form = byId("find", HTMLFormElement)
const input = byId("search", HTMLInputElement)
const table = byId("results", HTMLTableElement)
const empty = byId("find-empty", HTMLParagraphElement)
const pages = byId("pages", HTMLElement)
const pageOf = byId("page-of", HTMLSpanElement)
const previous = byId("previous", HTMLButtonElement)
const next = byId("next", HTMLButtonElement)
const status = byId("find-status", HTMLParagraphElement)
const servedBy = byId("find-served", HTMLParagraphElement)
const failed = trouble(byId("find-trouble", HTMLDivElement), () => input)

const given = new URLSearchParams(location.search)
/** The page that is shown. */
let shown = { search: given.get("search") ?? "", page: Math.max(1, Number(given.get("page")) || 1), pages: 1 }

/** @param {Airport} airport */
const row = ({ city, country, iata, name, state }) =>
  make(
    "tr",
    {},
    make("th", { scope: "row" }, iata),
    make("td", {}, name),
    make("td", {}, [city, state, country].filter((part) => part !== "").join(", "))
  )

/**
 * A button that cannot be used now, yet keeps the focus.
 *
 * @param {HTMLButtonElement} button
 * @param {boolean} usable
 */
const allow = (button, usable) => {
  if (usable) button.removeAttribute("aria-disabled")
  else button.setAttribute("aria-disabled", "true")
}

/** @param {Page} found */
const show = ({ page, pages: last, records, total }) => {
  table.tBodies[0]?.replaceChildren(...records.map(row))
  table.hidden = records.length === 0
  empty.hidden = records.length > 0
  empty.textContent = shown.search === "" ? "There are no airports." : `No airport has “${shown.search}” in it.`
  pages.hidden = last < 2
  pageOf.textContent = `Page ${n(page)} of ${n(last)}`
  allow(previous, page > 1)
  allow(next, page < last)
  status.textContent =
    total === 1 ? "1 airport." : `${n(total)} airports${last > 1 ? `, page ${n(page)} of ${n(last)}` : ""}.`
}

const remember = () => {
  const query = new URLSearchParams()
  if (shown.search !== "") query.set("search", shown.search)
  if (shown.page > 1) query.set("page", String(shown.page))
  history.replaceState(null, "", query.size === 0 ? location.pathname : `?${query}`)
}

// of several searches the last one counts
let latest = 0

/**
 * @param {string} search
 * @param {number} page
 */
const find = async (search, page) => {
  const turn = ++latest
  table.setAttribute("aria-busy", "true")
  try {
    const { by, value } = await ask(
      "GET",
      `/records?${new URLSearchParams({ search, page: String(page), size: String(size) })}`
    )
    if (turn !== latest) return
    // the address may name a page beyond the last one
    if (value.pages > 0 && page > value.pages) return find(search, value.pages)
    shown = { search, page, pages: value.pages }
    failed.clear()
    show(value)
    sign(servedBy, by)
    remember()
  } catch (error) {
    if (turn === latest) failed.show(reason(error), () => find(search, page))
  } finally {
    if (turn === latest) table.removeAttribute("aria-busy")
  }
}

export const start = () => {
  input.value = shown.search
  form.addEventListener("submit", (event) => {
    event.preventDefault()
    return find(input.value.trim(), 1)
  })
  input.addEventListener("input", () => {
    // emptied, it asks for all again
    if (input.value === "" && shown.search !== "") find("", 1)
  })
  previous.addEventListener("click", () => shown.page > 1 && find(shown.search, shown.page - 1))
  next.addEventListener("click", () => shown.page < shown.pages && find(shown.search, shown.page + 1))
  return find(shown.search, shown.page)
}
