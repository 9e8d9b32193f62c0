/**
 * The head of a held answer: the header that the library adds, and late changes that it undoes.
 */
import type { OutgoingHttpHeaders, ServerResponse } from "node:http"
import type { Header } from "../http/sessionTokens.js"

const cookies = "set-cookie"

/** The headers that stay as they were when a held answer began: they belong to its body. */
const ofBody = /^(content-.*|transfer-encoding|trailer|etag|last-modified|location)$/

const added = new WeakMap<ServerResponse, Header>()

/** Stores the header to add to an answer when it is sent. A later header replaces it. */
export const addHeader = (response: ServerResponse, header: Header | undefined): void => {
  if (header !== undefined) added.set(response, header)
}

/** Checks if two cookies have the same name. */
const isSame = (one: string, other: string): boolean => one.startsWith(other.slice(0, other.indexOf("=") + 1))

/**
 * Returns the arguments of `writeHead` with all values of each header, if a header was added to the
 * response. An added cookie is included, because Node replaces cookies that were set before by
 * those of the arguments. Of several headers of one name in a list, Node would send only the last.
 */
export const withHeader = <Args extends ReadonlyArray<unknown>>(args: Args, response: ServerResponse): Args => {
  const header = added.get(response)
  const head: unknown = args.at(-1)
  if (header === undefined || typeof head !== "object" || head === null) return args
  const pairs: ReadonlyArray<ReadonlyArray<unknown>> = Array.isArray(head)
    ? head.flatMap((name, i) => (i % 2 === 0 ? [[name, head[i + 1]]] : []))
    : Object.entries(head)
  const all = new Map<string, { readonly name: unknown; readonly values: Array<unknown> }>()
  for (const [name, value] of pairs) {
    const known = all.get(String(name).toLowerCase())
    if (known === undefined) all.set(String(name).toLowerCase(), { name, values: [value].flat() })
    else known.values.push(...[value].flat())
  }
  const own = all.get(cookies)
  if (header[0] === cookies && own !== undefined) own.values.push(header[1])
  const made = Object.fromEntries(
    Array.from(all.values(), ({ name, values }) => [name, values.length === 1 ? values[0] : values])
  )
  // the cast: only the headers differ, and Node takes a record as well as a list
  return [...args.slice(0, -1), made] as unknown as Args
}

/** Checks if a response has a status message. HTTP/2 has none, and Node warns if it is read. */
export const hasMessage = (response: ServerResponse): boolean => Object.hasOwn(response, "statusMessage")

/** Head of an answer at the moment when the answer begins. */
export class AnswerHead {
  readonly headers: OutgoingHttpHeaders
  readonly statusMessage: string

  constructor(
    response: ServerResponse,
    readonly status: number
  ) {
    this.headers = response.getHeaders()
    this.statusMessage = hasMessage(response) ? response.statusMessage : ""
  }
}

/**
 * Restores the head of an answer, so that it is not mixed with a later answer. Without a second
 * answer (`hasSecond`) only the headers of the body and the status are restored. `isSent` is true
 * if a kept `writeHead` sends the status.
 */
export const restoreHead = (response: ServerResponse, head: AnswerHead, isSent: boolean, hasSecond: boolean): void => {
  for (const name of new Set([...Object.keys(head.headers), ...response.getHeaderNames()])) {
    if (!hasSecond && !ofBody.test(name)) continue
    const value = head.headers[name]
    if (value === undefined) response.removeHeader(name)
    else if (value !== response.getHeader(name)) response.setHeader(name, value)
  }
  // the status at the beginning of the answer has decided between commit and rollback, so the client
  // gets that one; a kept `writeHead` sends it by itself
  if (isSent) return
  response.statusCode = head.status
  if (hasMessage(response)) response.statusMessage = head.statusMessage
}

/** Sets the added header in the response. A cookie is added to the other cookies. */
export const setAdded = (response: ServerResponse): void => {
  const header = added.get(response)
  if (header === undefined) return
  const [name, value] = header
  const set = name === cookies ? [response.getHeader(name) ?? []].flat().map(String) : []
  // several middlewares may hold the same response and add the same cookie
  response.setHeader(name, [...set.filter((one) => !isSame(one, value)), value])
}
