/**
 * The element with an id.
 *
 * @template {HTMLElement} A
 * @param {string} id
 * @param {new () => A} type
 * @returns {A}
 */
export const byId = (id, type) => {
  const element = document.getElementById(id)
  if (element instanceof type) return element
  throw new Error(`there is no ${type.name} #${id}`)
}

/**
 * A new element. Texts become text, never HTML.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Readonly<Record<string, string>>} attributes
 * @param {ReadonlyArray<Node | string>} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value)
  element.append(...children)
  return element
}

/**
 * The drawing with an id.
 *
 * @param {string} id
 */
export const svgById = (id) => {
  const element = document.getElementById(id)
  if (element instanceof SVGSVGElement) return element
  throw new Error(`there is no drawing #${id}`)
}

/**
 * A new part of a drawing.
 *
 * @param {"rect" | "path" | "line"} tag
 * @param {Readonly<Record<string, string | number>>} attributes
 */
export const shape = (tag, attributes) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag)
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value))
  return element
}

/**
 * Changes a text only if it is another one, so that nothing is announced or selected anew.
 *
 * @param {HTMLElement} place
 * @param {string} text
 */
export const write = (place, text) => {
  if (place.textContent !== text) place.textContent = text
}

/**
 * A place for what went wrong, near what failed: a sentence, and a way to try again.
 *
 * @param {HTMLElement} place an element with the role "alert"
 * @param {() => HTMLElement} home where the focus goes when the button it is on goes away
 */
export const trouble = (place, home) => {
  const clear = () => {
    const hadFocus = place.contains(document.activeElement)
    place.replaceChildren()
    if (hadFocus) home().focus()
  }
  return {
    clear,
    /**
     * @param {string} sentence
     * @param {(() => unknown) | undefined} again
     */
    show: (sentence, again = undefined) => {
      /** @type {Array<HTMLElement>} */
      const parts = [make("p", {}, sentence)]
      /** @type {HTMLElement | undefined} */
      let button
      if (again !== undefined) {
        button = make("button", { type: "button" }, "Try again")
        button.addEventListener("click", again)
        parts.push(button)
      }
      const hadFocus = place.contains(document.activeElement)
      place.replaceChildren(...parts)
      if (hadFocus) (button ?? home()).focus()
    }
  }
}
