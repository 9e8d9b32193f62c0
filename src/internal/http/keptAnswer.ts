/**
 * The answer to a request that is stored with its key, and sent again for the same key.
 */

/** Answer with a body that is known as a whole. */
export interface KeptAnswer {
  readonly status: number
  readonly headers: ReadonlyArray<readonly [name: string, value: string]>
  readonly body: Uint8Array
}

/** The headers that are kept. Others, such as cookies, belong to one answer alone. */
const keptHeaders = new Set([
  "content-disposition",
  "content-encoding",
  "content-type",
  "content-language",
  "content-location",
  "etag",
  "last-modified",
  "link",
  "location",
  "vary"
])

/** The header of an answer that is sent again. */
const replayedHeader = ["idempotent-replayed", "true"] as const

const defaultMaxBytes = 65_536

/** Returns the length of the longest body that is kept, in bytes, or `undefined` if none is kept. */
export const maxBytesOf = (keepAnswer: boolean | { readonly maxBytes: number } | undefined): number | undefined =>
  typeof keepAnswer === "object" ? keepAnswer.maxBytes : keepAnswer === true ? defaultMaxBytes : undefined

/** Returns the text of an answer to keep, or `undefined` if it is not to be kept. */
export const encodeAnswer = (answer: KeptAnswer | undefined, maxBytes: number | undefined): string | undefined => {
  if (answer === undefined || maxBytes === undefined || answer.body.byteLength > maxBytes) return undefined
  const headers = answer.headers.filter(([name]) => keptHeaders.has(name.toLowerCase()))
  return JSON.stringify([answer.status, headers, Buffer.from(answer.body).toString("base64")])
}

/** Decodes the text of a kept answer. */
export const decodeAnswer = (text: string): KeptAnswer => {
  // the cast: `encodeAnswer` has made the text
  const [status, headers, body] = JSON.parse(text) as [number, KeptAnswer["headers"], string]
  return { status, headers: [...headers, replayedHeader], body: Buffer.from(body, "base64") }
}
