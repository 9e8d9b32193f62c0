/**
 * A request that is answered again from its start: its body is read once and given to each attempt.
 */
import type { RequestError } from "@effect/platform/HttpServerError"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as Effect from "effect/Effect"
import { isBodiless } from "./keepableBody.js"

type Ask = HttpServerRequest.HttpServerRequest

/** The same request, each time with a body that was read before. */
const again = (request: Ask, body: ArrayBuffer): Ask => {
  const type = request.headers["content-type"]
  const twin = HttpServerRequest.fromWeb(
    new Request("http://localhost/", {
      method: request.method,
      ...(type === undefined ? {} : { headers: { "content-type": type } }),
      // also an empty one, which is read as the request's own
      body
    })
  )
  const own: PropertyDescriptorMap = {
    // a router that mounts another one cuts the path
    modify: { value: (options: Parameters<Ask["modify"]>[0]) => again(request.modify(options), body) }
  }
  for (const part of [
    "text",
    "json",
    "urlParamsBody",
    "arrayBuffer",
    "stream",
    "multipart",
    "multipartStream"
  ] as const) {
    own[part] = { get: () => twin[part] }
  }
  return Object.create(request, own)
}

/** Whether its body was read by somebody around: what he has read is kept by the request itself, and nothing is left to be read. */
const wasRead = ({ source }: Ask): boolean =>
  typeof source === "object" &&
  source !== null &&
  (("readableDidRead" in source && source.readableDidRead === true) ||
    ("bodyUsed" in source && source.bodyUsed === true))

/** What gives the request to each attempt. */
export const makeReplayable = (request: Ask): Effect.Effect<() => Ask, RequestError> =>
  isBodiless(request.method) || wasRead(request)
    ? Effect.succeed(() => request)
    : Effect.map(request.arrayBuffer, (body) => () => again(request, body))
