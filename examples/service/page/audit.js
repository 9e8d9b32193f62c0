import { ask, reason, sign } from "./api.js"
import { byId, make, trouble } from "./dom.js"

/** @typedef {{ readonly at: string, readonly what: string, readonly subject: string }} Event */

const most = 5

const panel = byId("audit", HTMLElement)
const list = byId("events", HTMLOListElement)
const servedBy = byId("events-served", HTMLParagraphElement)
const failed = trouble(byId("events-trouble", HTMLDivElement), () => panel)

/** @param {Event} event */
const line = ({ at, subject, what }) =>
  make(
    "li",
    {},
    make("time", { datetime: at }, new Date(at).toLocaleTimeString("en-GB")),
    make("span", { class: "what" }, what),
    subject
  )

// of several looks the last one counts
let latest = 0

/** Shows the latest events again; each change has one. */
export const look = async () => {
  const turn = ++latest
  try {
    const { by, value } = await ask("GET", "/events")
    if (turn !== latest) return
    list.replaceChildren(...value.slice(0, most).map(line))
    failed.clear()
    sign(servedBy, by)
  } catch (error) {
    if (turn === latest) failed.show(reason(error), look)
  }
}
