/**
 * Which requests can be kept for another attempt.
 */

/** A longer body is not kept, nor one that does not say how long it is: such a request is answered once. */
const longestBody = 1_048_576

const bodiless = new Set(["GET", "HEAD", "OPTIONS"])
const withBody = new Set(["POST", "PUT", "PATCH", "DELETE"])

export const isBodiless = (method: string): boolean => bodiless.has(method)

/** Whether a request can be kept for another attempt. */
export const isKeepable = (method: string, header: (name: string) => string | null | undefined): boolean =>
  bodiless.has(method) ||
  (withBody.has(method) &&
    (header("transfer-encoding") ?? "") === "" &&
    Number(header("content-length") ?? 0) <= longestBody)
