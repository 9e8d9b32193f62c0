import type { RouteContext } from "@effect/platform/HttpRouter"
import * as Context from "effect/Context"

/** The route of a request, under the key of its router; importing that itself would load an HTTP client and a server with it. */
export const Route = Context.GenericTag<RouteContext>("@effect/platform/HttpRouter/RouteContext")
