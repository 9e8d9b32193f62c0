/**
 * A request for several attempts, each of which gets the same body.
 */
import type { RequestError } from "@effect/platform/HttpServerError"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as Effect from "effect/Effect"
import { isBodiless } from "./keepableRequest.js"

type Ask = HttpServerRequest.HttpServerRequest

/** Returns a request with a body that was read before. */
const withBody = (request: Ask, body: ArrayBuffer): Ask => {
  const type = request.headers["content-type"]
  const twin = HttpServerRequest.fromWeb(
    new Request("http://localhost/", {
      method: request.method,
      ...(type === undefined ? {} : { headers: { "content-type": type } }),
      // also if it is empty: the `stream` of a web request without a body fails
      body
    })
  )
  const own: PropertyDescriptorMap = {
    // a router that mounts another router shortens the path
    modify: { value: (options: Parameters<Ask["modify"]>[0]) => withBody(request.modify(options), body) }
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

/**
 * Checks if other code has read the body, which cannot be read a second time. Each attempt gets the
 * same request then, because a request caches a body that was read as text.
 */
const wasRead = ({ source }: Ask): boolean =>
  typeof source === "object" &&
  source !== null &&
  (("readableDidRead" in source && source.readableDidRead === true) ||
    ("bodyUsed" in source && source.bodyUsed === true))

/** Reads the body, and returns a function that makes the request of each attempt. */
export const makeReplayable = (request: Ask): Effect.Effect<() => Ask, RequestError> =>
  isBodiless(request.method) || wasRead(request)
    ? Effect.succeed(() => request)
    : Effect.map(request.arrayBuffer, (body) => () => withBody(request, body))
