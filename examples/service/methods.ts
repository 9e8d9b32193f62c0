import { HttpApiBuilder, type HttpServerRequest } from "@effect/platform"
import { Chunk, Effect } from "effect"

/** Checks if a path matches a route such as `/todos/:id`. */
const matches = (route: ReadonlyArray<string>, path: ReadonlyArray<string>): boolean =>
  route.length === path.length && route.every((part, i) => part === path[i] || (part.startsWith(":") && path[i] !== ""))

/** Returns the methods of the routes that match the path of a request. */
export const allowed = ({ url }: HttpServerRequest.HttpServerRequest) =>
  Effect.map(HttpApiBuilder.Router.router, ({ routes }) => {
    const path = (url.split("?")[0] ?? "").split("/")
    return Chunk.toReadonlyArray(routes).flatMap((route) =>
      matches(route.path.split("/"), path) ? [route.method] : []
    )
  })
