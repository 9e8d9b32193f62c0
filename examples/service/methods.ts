import { HttpApiBuilder, type HttpServerRequest } from "@effect/platform"
import { Chunk, Effect } from "effect"

/** Checks if a path matches a route such as `/todos/:id`. */
const matches = (route: ReadonlyArray<string>, path: ReadonlyArray<string>): boolean =>
  route.length === path.length && route.every((part, i) => part === path[i] || (part.startsWith(":") && path[i] !== ""))

/** The methods that the path of a request is there for; none where there is no such path. */
export const allowed = ({ url }: HttpServerRequest.HttpServerRequest) =>
  Effect.map(HttpApiBuilder.Router.router, ({ routes }) => {
    const path = (url.split("?")[0] ?? "").split("/")
    return Chunk.toReadonlyArray(routes).flatMap((route) =>
      matches(route.path.split("/"), path) ? [route.method] : []
    )
  })
