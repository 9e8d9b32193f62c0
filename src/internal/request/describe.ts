/**
 * The name of a request of @effect/platform, told to whoever asks from inside of it.
 */
import type { RouteContext } from "@effect/platform/HttpRouter"
import type { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import type { Describe } from "../unit.js"
import { describing, type Naming, pathOf } from "./naming.js"
import { Route } from "./route.js"

export const describe = (
  request: HttpServerRequest,
  naming: Naming,
  requestId: ((request: HttpServerRequest) => string | undefined) | undefined
): Describe =>
  describing(
    {
      method: request.method,
      pattern: (fiber) => {
        const routed: RouteContext | undefined = fiber.currentContext.unsafeMap.get(Route.key)
        return routed?.route.path
      },
      path: () => pathOf(request.url),
      requestId: () => (requestId === undefined ? request.headers["x-request-id"] : requestId(request))
    },
    naming
  )
