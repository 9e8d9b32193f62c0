/**
 * A platform without start and end, which loads its functions again whenever it likes.
 * Ctrl-C ends the server; with `--once` it sends requests to itself and ends.
 */
import type { Server } from "node:http"
import { serve } from "@hono/node-server"
import { main } from "./main.js"
import { closed, host, isOnce, listening, port, serveUntil } from "./requests.js"

type Route = typeof import("./route.js")

let loads = 0
const runtimes = new Set<unknown>()

/** Loads the route as it is now, which is a module of its own each time. */
const load = async (): Promise<Route> => {
  const route: Route = await import(`./route.js?${++loads}`)
  runtimes.add(route.runtime)
  return route
}

/** Each request may meet a function that has just been loaded. */
const fetch = async (request: Request): Promise<Response> => {
  const { GET, POST } = await load()
  return request.method === "POST" ? POST(request) : GET(request)
}

main(async (signal) => {
  // without options for HTTP/2 it is a server of HTTP/1
  const server = serve({ fetch, hostname: host, port }) as Server
  try {
    await serveUntil(signal, await listening(server))
    if (isOnce) console.log(`loaded: the module ${loads} times, its databases ${runtimes.size} time`)
  } finally {
    await closed(server)
    // no platform would do this; an example cleans up
    await (await load()).runtime.close()
  }
})
