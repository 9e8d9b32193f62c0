/**
 * The name of a request of @effect/platform, told to whoever asks from inside of it.
 */
import * as HttpRouter from "@effect/platform/HttpRouter"
import type { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import type { Describe } from "../unit.js"
import type { Work } from "../work.js"
import { checkedId, type Naming, pathOf, traceparentOf, workOf } from "./naming.js"

/** Describes a request; once, when its route is known. */
export const describe = (
  request: HttpServerRequest,
  naming: Naming,
  requestId: ((request: HttpServerRequest) => string | undefined) | undefined
): Describe => {
  let known: Work | undefined
  return (fiber) => {
    if (known !== undefined) return known
    const routed: HttpRouter.RouteContext | undefined = fiber.currentContext.unsafeMap.get(HttpRouter.RouteContext.key)
    const described = {
      method: request.method,
      route: routed?.route.path ?? pathOf(request.url),
      requestId: checkedId(requestId === undefined ? request.headers["x-request-id"] : requestId(request)),
      traceparent: naming.sqlComment === undefined ? undefined : traceparentOf(fiber.currentSpan)
    }
    const work = workOf(described, naming, routed !== undefined)
    if (routed !== undefined) known = work
    return work
  }
}
