/**
 * Which requests can be kept for another attempt.
 */

/** A longer body is not kept, in bytes. */
const longestBody = 1_048_576

const bodiless = new Set(["GET", "HEAD", "OPTIONS"])
const withBody = new Set(["POST", "PUT", "PATCH", "DELETE"])

export const isBodiless = (method: string): boolean => bodiless.has(method)

/** Checks whether a request of Node's or of the web ends with its headers, as far as it tells. */
const endsWithHeaders = (source: unknown): boolean => {
  if (typeof source !== "object" || source === null) return false
  if ("body" in source) return source.body === null
  // HTTP/1 announces a body by a header
  if ("httpVersionMajor" in source && source.httpVersionMajor === 1) return true
  return (
    "stream" in source &&
    typeof source.stream === "object" &&
    source.stream !== null &&
    "endAfterHeaders" in source.stream &&
    source.stream.endAfterHeaders === true
  )
}

/** Checks whether a request can be kept: a body that does not say how long it is may be of any length, and may be sent bit by bit. */
export const isKeepable = (
  method: string,
  header: (name: string) => string | null | undefined,
  source: unknown
): boolean => {
  if ((header("transfer-encoding") ?? "") !== "") return false
  const length = header("content-length") ?? ""
  if (bodiless.has(method)) return length === "" || length === "0"
  if (!withBody.has(method)) return false
  return length === "" ? endsWithHeaders(source) : /^\d+$/.test(length) && Number(length) <= longestBody
}
