/**
 * The check that a request can be kept for another attempt.
 */

/** The length of the longest body that is kept, in bytes. */
const maxBodyLength = 1_048_576

const bodiless = new Set(["GET", "HEAD", "OPTIONS"])
const withBody = new Set(["POST", "PUT", "PATCH", "DELETE"])

/** Checks if requests with a method have no body. */
export const isBodiless = (method: string): boolean => bodiless.has(method)

/** Checks if a request of Node or of the web is known to have no body. */
const endsWithHeaders = (source: unknown): boolean => {
  if (typeof source !== "object" || source === null) return false
  if ("body" in source) return source.body === null
  // HTTP/1 announces a body by `content-length` or `transfer-encoding`, and the caller has found
  // neither
  if ("httpVersionMajor" in source && source.httpVersionMajor === 1) return true
  return (
    "stream" in source &&
    typeof source.stream === "object" &&
    source.stream !== null &&
    "endAfterHeaders" in source.stream &&
    source.stream.endAfterHeaders === true
  )
}

/**
 * Checks if a request can be kept. A body of unknown length is not kept, because it may be long and
 * may arrive slowly.
 */
export const isReplayableRequest = (
  method: string,
  header: (name: string) => string | null | undefined,
  source: unknown
): boolean => {
  if ((header("transfer-encoding") ?? "") !== "") return false
  const length = header("content-length") ?? ""
  if (bodiless.has(method)) return length === "" || length === "0"
  if (!withBody.has(method)) return false
  return length === "" ? endsWithHeaders(source) : /^\d+$/.test(length) && Number(length) <= maxBodyLength
}
