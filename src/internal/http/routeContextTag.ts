import type { RouteContext } from "@effect/platform/HttpRouter"
import * as Context from "effect/Context"

/**
 * Tag of the route of a request, with the key of the router's own tag. Importing the router itself
 * would load an HTTP client and a server.
 */
export const Route = Context.GenericTag<RouteContext>("@effect/platform/HttpRouter/RouteContext")
