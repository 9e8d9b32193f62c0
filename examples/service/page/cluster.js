import { ask, reason } from "./api.js"
import { byId, make, trouble, write } from "./dom.js"
import * as Load from "./load.js"
import { inMillis, n } from "./numbers.js"

/**
 * @typedef {{
 *   readonly name: string, readonly address: string, readonly role: "primary" | "replica" | "none", readonly state: string,
 *   readonly reason: string | null, readonly lagMillis: number | null, readonly lagBytes: number | null,
 *   readonly latencyMillis: number | null, readonly timeline: number | null
 * }} Member
 */

const every = 1000

const panel = byId("cluster", HTMLElement)
const count = byId("members-count", HTMLSpanElement)
const text = byId("cluster-text", HTMLParagraphElement)
const table = byId("members", HTMLTableElement)
const stale = byId("members-stale", HTMLParagraphElement)
const actions = byId("cluster-actions", HTMLDivElement)
const loadButton = byId("load-turn", HTMLButtonElement)
const kill = byId("kill-primary", HTMLButtonElement)
const promote = byId("promote", HTMLButtonElement)
const again = byId("start-servers", HTMLButtonElement)
const status = byId("cluster-status", HTMLParagraphElement)
const happenings = byId("happenings", HTMLOListElement)
const failed = trouble(byId("cluster-trouble", HTMLDivElement), () => kill)

const own =
  "Send requests, kill the primary and promote a replica: requests wait, and go on with the new primary. Replication is asynchronous here, so the last writes of a killed primary may be lost."
const foreign = "These servers were not started by the service, so it only shows them, and does not disturb them."

/** @param {Member} member */
const lag = ({ lagBytes, lagMillis, role }) =>
  role !== "replica" || lagMillis === null ? "–" : `${inMillis(lagMillis)}, ${lagBytes ?? 0} bytes`

/** The cells of a server, in the order of the columns, without the first one. @param {Member} member */
const texts = (member) => {
  const served = Load.servedBy(member.address)
  return [
    member.role,
    member.reason === null ? member.state : `${member.state}: ${member.reason}`,
    lag(member),
    inMillis(member.latencyMillis),
    member.timeline === null ? "–" : String(member.timeline),
    served === undefined ? "–" : n(served.reads),
    served === undefined ? "–" : n(served.writes)
  ]
}

const labels = [...(table.tHead?.rows[0]?.cells ?? [])].map((cell) => cell.textContent ?? "")

/** @param {Member} member */
const newRow = ({ address, name }) =>
  make(
    "tr",
    { role: "row" },
    make("th", { scope: "row", role: "rowheader" }, name, ...(address === name ? [] : [make("small", {}, address)])),
    ...labels
      .slice(1)
      .map((label) =>
        make("td", { role: "cell", "data-label": label }, make("span", { class: "dot", hidden: "" }), make("span"))
      )
  )

/** @param {ReadonlyArray<Member>} members */
const showMembers = (members) => {
  const [body] = table.tBodies
  if (body === undefined) return
  if (body.rows.length !== members.length) body.replaceChildren(...members.map(newRow))
  for (const [i, member] of members.entries()) {
    const cells = [...(body.rows[i]?.cells ?? [])].slice(1)
    for (const [column, text] of texts(member).entries()) {
      const [dot, place] = cells[column]?.children ?? []
      if (!(dot instanceof HTMLElement && place instanceof HTMLElement)) continue
      write(place, text)
      if (column > 0) continue
      dot.className = `dot ${member.role}`
      dot.hidden = false
    }
  }
  const up = members.filter(({ role }) => role !== "none").length
  write(count, `${up} of ${members.length} running`)
}

/** @param {ReadonlyArray<{ readonly at: number, readonly text: string }>} events */
const showEvents = (events) => {
  const lines = events.slice(0, 8).map(({ at, text }) => ({ time: new Date(at), text }))
  const key = lines.map(({ text, time }) => `${time.getTime()} ${text}`).join()
  if (happenings.dataset.key === key) return
  happenings.dataset.key = key
  happenings.replaceChildren(
    ...lines.map(({ text, time }) =>
      make("li", {}, make("time", { datetime: time.toISOString() }, time.toLocaleTimeString("en-GB")), text)
    )
  )
}

/** Reads how the servers are. A failure is shown beside the figures, which are old then, and the next look tries again. */
const look = async () => {
  try {
    const { value } = await ask("GET", "/cluster")
    if (value.embedded) await Load.look()
    write(text, value.embedded ? own : foreign)
    actions.hidden = !value.embedded
    showMembers(value.servers)
    showEvents(value.events)
    stale.hidden = true
  } catch (error) {
    write(stale, `These figures are old. ${reason(error)}`)
    stale.hidden = false
  }
}

/** @param {ReadonlyArray<string>} servers */
const listed = (servers) => servers.join(" and ")

/**
 * Does something to the servers; the button says so until it is done.
 *
 * @param {HTMLButtonElement} button
 * @param {string} meanwhile
 * @param {() => Promise<string>} act
 */
const change = async (button, meanwhile, act) => {
  if (button.hasAttribute("aria-disabled")) return
  const name = button.textContent ?? ""
  button.setAttribute("aria-disabled", "true")
  button.textContent = meanwhile
  failed.clear()
  status.textContent = ""
  try {
    status.textContent = await act()
  } catch (error) {
    failed.show(reason(error))
  } finally {
    button.removeAttribute("aria-disabled")
    button.textContent = name
  }
  await look()
}

/**
 * @param {string} path
 * @param {(servers: string) => string} told
 */
const post = (path, told) => async () => {
  const { value } = await ask("POST", path)
  const said = told(listed(value.servers))
  return said.charAt(0).toUpperCase() + said.slice(1)
}

const killIt = post(
  "/cluster/kill",
  (server) => `${server}, the primary, is killed. Writes wait until a replica is promoted.`
)
const promoteOne = post("/cluster/promote", (server) => `${server} is the primary now.`)
const startAgain = post("/cluster/start", (servers) => `${servers} runs again.`)

/** On a narrow screen the rows are blocks, of which browsers would not say that they are a table. */
const nameParts = () => {
  table.setAttribute("role", "table")
  for (const part of table.querySelectorAll("thead, tbody")) part.setAttribute("role", "rowgroup")
  for (const part of table.querySelectorAll("thead tr")) part.setAttribute("role", "row")
  for (const part of table.querySelectorAll("thead th")) part.setAttribute("role", "columnheader")
}

export const start = () => {
  nameParts()
  Load.start()
  loadButton.addEventListener("click", () => change(loadButton, "One moment…", Load.turn))
  kill.addEventListener("click", () => change(kill, "Killing…", killIt))
  promote.addEventListener("click", () => change(promote, "Promoting…", promoteOne))
  again.addEventListener("click", () => change(again, "Starting…", startAgain))
  const next = async () => {
    if (document.visibilityState === "visible") await look()
    setTimeout(next, every)
  }
  panel.setAttribute("aria-busy", "true")
  return next().finally(() => panel.removeAttribute("aria-busy"))
}
