import { make } from "./dom.js"
import { rounded } from "./numbers.js"

/** The time to wait for an answer, in milliseconds. */
const patience = 15_000
/** The same for a change of the servers. */
const longPatience = 60_000

/** Something did not work; its message is a sentence for the visitor. */
export class Failure extends Error {
  /**
   * @param {string} message
   * @param {string} tag what it is called in the API
   */
  constructor(message, tag) {
    super(message)
    this.tag = tag
  }
}

/** @param {string} text */
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".")

/**
 * The servers that did the work of an answer, as its headers say.
 *
 * @typedef {{ readonly database: string, readonly server: string, readonly transaction: boolean, readonly millis: number }} Served
 *
 * @param {Headers} headers
 * @returns {Served | undefined}
 */
const served = (headers) => {
  const server = headers.get("x-served-by")
  if (server === null) return undefined
  const millis = Number(/dur=([\d.]+)/.exec(headers.get("server-timing") ?? "")?.[1])
  return {
    database: headers.get("x-database") ?? "",
    server,
    transaction: headers.get("x-transaction") === "yes",
    millis
  }
}

/** @param {Served} by */
export const isReplica = (by) => by.server.startsWith("replica")

/** @param {Served} by */
export const describe = ({ database, millis, server, transaction }) =>
  `${database} · ${server} · ${transaction ? "transaction" : "no transaction"} · ${rounded(millis)}\u00a0ms`

/**
 * Shows who gave an answer.
 *
 * @param {HTMLElement} place
 * @param {Served | undefined} by
 */
export const sign = (place, by) => {
  if (by === undefined) return place.replaceChildren()
  place.replaceChildren(make("span", { class: isReplica(by) ? "dot replica" : "dot primary" }), describe(by))
}

/**
 * @param {Response} response
 * @returns {Promise<any>} what the API says it is
 */
const body = async (response) => {
  try {
    return await response.json()
  } catch {
    return undefined
  }
}

/**
 * Asks the service. Fails with a `Failure`, and with nothing else.
 *
 * @param {string} method
 * @param {string} path
 * @param {unknown} payload
 * @returns {Promise<{ readonly value: any, readonly by: Served | undefined }>}
 */
export const ask = async (method, path, payload = undefined) => {
  let response
  try {
    response = await fetch(path, {
      method,
      signal: AbortSignal.timeout(path.startsWith("/cluster/") ? longPatience : patience),
      ...(payload === undefined
        ? {}
        : { body: JSON.stringify(payload), headers: { "content-type": "application/json" } })
    })
  } catch (error) {
    throw error instanceof DOMException && error.name === "TimeoutError"
      ? new Failure("The service did not answer in time.", "Timeout")
      : new Failure("The service cannot be reached: it may have been stopped.", "Unreachable")
  }
  const value = response.status === 204 ? undefined : await body(response)
  if (response.ok) return { value, by: served(response.headers) }
  const text = value?.message ?? value?.title ?? `the service answered with status ${response.status}`
  throw new Failure(sentence(text), value?._tag ?? String(response.status))
}

/**
 * The sentence for whatever was thrown.
 *
 * @param {unknown} error
 */
export const reason = (error) => {
  if (error instanceof Failure) return error.message
  throw error
}
