/**
 * A request for several attempts, each of which gets the same body.
 */
import type { RequestError } from "@effect/platform/HttpServerError"
import * as HttpServerRequest from "@effect/platform/HttpServerRequest"
import * as Effect from "effect/Effect"
import { isBodiless } from "./isReplayableRequest.js"

type Ask = HttpServerRequest.HttpServerRequest

/** The key of the function that makes another request with the same body. */
const again = Symbol("again")

/** The key of the mark by which `HttpApp.toHandled` sends one response. */
const handled = Symbol.for("@effect/platform/HttpApp/handled")

/** Returns a request whose body was read before, and can be read any number of times. */
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
    // a router that mounts another router modifies the path
    modify: { value: (options: Parameters<Ask["modify"]>[0]) => withBody(request.modify(options), body) },
    [again]: { value: () => withBody(request, body) },
    // the platform reads this mark of a sent response from the request that it has made
    [handled]: {
      get: () => Reflect.get(request, handled),
      set: (isHandled: unknown) => Reflect.set(request, handled, isHandled)
    }
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
  // as Node's own requests have it, for payloads that are optional
  if (body.byteLength === 0 && isNodeSource(request.source)) own.json = { value: Effect.succeed(null) }
  return Object.create(request, own)
}

const isNodeSource = (source: unknown): boolean =>
  typeof source === "object" && source !== null && "readableDidRead" in source

/**
 * Checks if other code has read the body, which cannot be read a second time. Each attempt gets the
 * same request then, because a request caches a body that was read as text.
 */
export const wasRead = ({ source, [again]: copy }: Ask & { readonly [again]?: () => Ask }): boolean =>
  copy === undefined &&
  typeof source === "object" &&
  source !== null &&
  (("readableDidRead" in source && source.readableDidRead === true) ||
    // an empty body has no data that could have been read, but its end is emitted only once
    ("readableEnded" in source && source.readableEnded === true) ||
    ("bodyUsed" in source && source.bodyUsed === true))

/**
 * Reads the body, and returns a function that makes the request of each attempt. If there is no
 * body, or if other code has read it, all attempts get the same request.
 */
export const makeReplayable = (
  request: Ask & { readonly [again]?: () => Ask }
): Effect.Effect<() => Ask, RequestError> =>
  request[again] !== undefined
    ? Effect.succeed(request[again])
    : isBodiless(request.method) || wasRead(request)
      ? Effect.succeed(() => request)
      : Effect.map(request.arrayBuffer, (body) => () => withBody(request, body))
