/**
 * The facts of a request of @effect/platform for its label.
 */
import type { RouteContext } from "@effect/platform/HttpRouter"
import type { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import type * as Fiber from "effect/Fiber"
import { type HttpRequestInfo, pathOf } from "./requestLabel.js"
import { Route } from "./routeContextTag.js"

const pattern = (fiber: Fiber.RuntimeFiber<unknown, unknown>): string | undefined => {
  const routed: RouteContext | undefined = fiber.currentContext.unsafeMap.get(Route.key)
  return routed?.route.path
}

/** Makes the function that returns the facts of a request. `x-request-id` is the default id. */
export const describeRequest =
  (requestId: ((request: HttpServerRequest) => string | undefined) | undefined) =>
  (request: HttpServerRequest): HttpRequestInfo => ({
    method: request.method,
    pattern,
    path: () => pathOf(request.url),
    requestId: () => (requestId === undefined ? request.headers["x-request-id"] : requestId(request))
  })
