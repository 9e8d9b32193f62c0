import { ask, reason } from "./api.js"
import { byId, trouble } from "./dom.js"
import * as Watch from "./watch.js"

const panel = byId("servers", HTMLElement)
const kill = byId("kill", HTMLButtonElement)
const freeze = byId("freeze", HTMLButtonElement)
const replica = byId("replica", HTMLSpanElement)
const status = byId("servers-status", HTMLParagraphElement)
const failed = trouble(byId("servers-trouble", HTMLDivElement), () => kill)

/** Until when the replica is frozen. */
let until = 0
/** @type {number | undefined} */
let clock

const isFrozen = () => until > 0

const draw = () => {
  const seconds = Math.max(0, Math.ceil((until - performance.now()) / 1000))
  replica.textContent = isFrozen() ? `Replica frozen; it thaws by itself in ${seconds} s` : "Replica running"
  replica.classList.toggle("frozen", isFrozen())
  freeze.textContent = isFrozen() ? "Thaw replica" : "Freeze replica"
}

/** @param {{ readonly embedded: boolean, readonly frozenFor: number }} state */
const follow = ({ embedded, frozenFor }) => {
  panel.hidden = !embedded
  const was = isFrozen()
  until = frozenFor > 0 ? performance.now() + frozenFor * 1000 : 0
  clearInterval(clock)
  if (isFrozen()) {
    clock = setInterval(() => {
      draw()
      if (performance.now() > until) look()
    }, 1000)
  }
  draw()
  return was !== isFrozen()
}

/** Asks how the servers are; what cannot be asked now is asked again when the visitor comes back to the page. */
const look = async () => {
  try {
    const { value } = await ask("GET", "/servers")
    if (follow(value) && !isFrozen()) status.textContent = "The replica runs again."
  } catch (error) {
    clearInterval(clock)
    if (!panel.hidden) failed.show(reason(error), look)
  }
}

/**
 * Does something to the servers while searches go on.
 *
 * @param {HTMLButtonElement} button
 * @param {() => Promise<string>} act
 */
const disturb = async (button, act) => {
  if (button.hasAttribute("aria-disabled")) return
  button.setAttribute("aria-disabled", "true")
  Watch.begin()
  try {
    status.textContent = await act()
    failed.clear()
  } catch (error) {
    failed.show(reason(error), () => disturb(button, act))
  } finally {
    button.removeAttribute("aria-disabled")
  }
}

const killAll = async () => {
  const { value } = await ask("POST", "/servers/kill")
  return value.killed === 1 ? "One connection was ended." : `${value.killed} connections were ended.`
}

const turn = async () => {
  const { value } = await ask("POST", isFrozen() ? "/servers/thaw" : "/servers/freeze")
  follow(value)
  return isFrozen()
    ? "The replica is frozen. The first search may wait for it; those that follow go to the primary."
    : "The replica is thawed. Some seconds later it is asked again."
}

export const start = () => {
  kill.addEventListener("click", () => disturb(kill, killAll))
  freeze.addEventListener("click", () => disturb(freeze, turn))
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && look())
  Watch.start()
  return look()
}
