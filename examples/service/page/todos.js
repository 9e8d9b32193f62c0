import { ask, Failure, reason, sign } from "./api.js"
import * as Audit from "./audit.js"
import { byId, make, trouble } from "./dom.js"

/** @typedef {{ readonly id: string, readonly title: string, readonly done: boolean }} Todo */

const longest = 200

const form = byId("add", HTMLFormElement)
const input = byId("title", HTMLInputElement)
const addButton = /** @type {HTMLButtonElement} */ (form.querySelector("button"))
const list = byId("todo-list", HTMLUListElement)
const empty = byId("todo-empty", HTMLParagraphElement)
const count = byId("todo-count", HTMLSpanElement)
const status = byId("todo-status", HTMLParagraphElement)
const servedBy = byId("todo-served", HTMLParagraphElement)
const addTrouble = trouble(byId("add-trouble", HTMLDivElement), () => input)
const listTrouble = trouble(byId("todo-trouble", HTMLDivElement), () => input)

/** The last answer of the service about each todo. @type {Map<string, Todo>} */
const known = new Map()

/** @param {string} title */
const quoted = (title) => `“${title.length > 60 ? `${title.slice(0, 59)}…` : title}”`

const recount = () => {
  const done = [...known.values()].filter((todo) => todo.done).length
  count.textContent = known.size === 0 ? "" : `${known.size - done} open, ${done} done`
  empty.hidden = known.size > 0
}

/**
 * @param {string} said
 * @param {import("./api.js").Served | undefined} by
 */
const answered = (said, by) => {
  status.textContent = said
  sign(servedBy, by)
  Audit.look()
}

/** An id of our own lets a creation be sent again safely. `crypto.randomUUID` is missing where the page does not come from localhost. */
const newId = () => [...crypto.getRandomValues(new Uint8Array(8))].map((n) => n.toString(16).padStart(2, "0")).join("")

/**
 * Takes a todo out of the list; the focus goes to the next one.
 *
 * @param {string} id
 * @param {HTMLLIElement} item
 */
const leave = (id, item) => {
  const next = item.nextElementSibling ?? item.previousElementSibling
  const hadFocus = item.contains(document.activeElement)
  known.delete(id)
  item.remove()
  recount()
  if (hadFocus) /** @type {HTMLElement} */ (next?.querySelector("button") ?? input).focus()
}

/** @param {Todo} todo */
const itemOf = ({ done, id, title }) => {
  const box = make("input", { type: "checkbox", id: `todo-${id}` })
  box.checked = done
  const button = make("button", { type: "button", class: "quiet", "aria-label": `Delete ${title}` }, "Delete")
  const alert = make("div", { class: "trouble", role: "alert" })
  const item = make("li", {}, box, make("label", { for: box.id }, title), button, alert)
  const failed = trouble(alert, () => box)

  // one change at a time; of several clicks the last one counts
  let busy = false
  const tick = async () => {
    if (busy) return
    busy = true
    try {
      while (known.get(id)?.done !== box.checked) {
        const { by, value } = await ask("PATCH", `/todos/${id}`, { done: box.checked })
        known.set(id, value)
        failed.clear()
        recount()
        answered(`${value.done ? "Done" : "Open again"}: ${quoted(title)}.`, by)
      }
      failed.clear()
    } catch (error) {
      const wanted = box.checked
      box.checked = known.get(id)?.done === true
      failed.show(reason(error), () => {
        box.checked = wanted
        return tick()
      })
    } finally {
      busy = false
    }
  }

  const remove = async () => {
    if (busy) return
    busy = true
    button.setAttribute("aria-disabled", "true")
    try {
      const { by } = await ask("DELETE", `/todos/${id}`)
      leave(id, item)
      answered(`Deleted ${quoted(title)}.`, by)
    } catch (error) {
      if (error instanceof Failure && error.tag === "TodoNotFound") {
        leave(id, item)
        answered(`${quoted(title)} was deleted already.`, undefined)
      } else failed.show(reason(error), remove)
    } finally {
      busy = false
      button.removeAttribute("aria-disabled")
    }
  }

  box.addEventListener("change", tick)
  button.addEventListener("click", remove)
  return item
}

/**
 * Adds those that are not in the list yet.
 *
 * @param {ReadonlyArray<Todo>} todos
 * @param {Node | null} before where; at the end
 */
const show = (todos, before = null) => {
  for (const todo of todos) {
    if (known.has(todo.id)) continue
    known.set(todo.id, todo)
    list.insertBefore(itemOf(todo), before)
  }
  recount()
}

/** @param {string} said */
const refuse = (said) => {
  input.setAttribute("aria-invalid", "true")
  addTrouble.show(said)
  input.focus()
}

/** The creation whose outcome is not known; sent again it has the same id. @type {Pick<Todo, "id" | "title"> | undefined} */
let open

const add = async () => {
  if (addButton.hasAttribute("aria-disabled")) return
  const title = input.value.trim()
  if (title === "") return refuse("Write what there is to do, then add it.")
  if (title.length > longest) return refuse(`A title has at most ${longest} characters; this one has ${title.length}.`)
  input.removeAttribute("aria-invalid")
  addButton.setAttribute("aria-disabled", "true")
  if (open?.title !== title) open = { id: newId(), title }
  const { id } = open
  try {
    const { by, value } = await ask("POST", "/todos", { id, title }).catch((error) => {
      // the answer to the first attempt was lost, not the todo
      if (error instanceof Failure && error.tag === "TodoExists") return ask("GET", `/todos/${id}`)
      throw error
    })
    open = undefined
    show([value])
    addTrouble.clear()
    // what was typed meanwhile stays
    if (input.value.trim() === title) input.value = ""
    answered(`Added ${quoted(title)}.`, by)
  } catch (error) {
    addTrouble.show(reason(error), add)
  } finally {
    addButton.removeAttribute("aria-disabled")
  }
}

const load = async () => {
  try {
    const { by, value } = await ask("GET", "/todos")
    // what was added meanwhile is newer
    show(value, list.firstChild)
    listTrouble.clear()
    sign(servedBy, by)
  } catch (error) {
    listTrouble.show(reason(error), load)
  }
}

export const start = () => {
  form.addEventListener("submit", (event) => {
    event.preventDefault()
    return add()
  })
  input.addEventListener("input", () => {
    if (!input.hasAttribute("aria-invalid")) return
    input.removeAttribute("aria-invalid")
    addTrouble.clear()
  })
  return load()
}
