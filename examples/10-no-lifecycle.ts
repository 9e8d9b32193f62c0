/**
 * A platform without start and end, which may load its functions again at any time. Ctrl-C ends the server; with `--once` it sends
 * requests to itself and ends.
 */
import type { Server } from "node:http"
import { serve } from "@hono/node-server"
import { main } from "./main.js"
import { closed, host, isOnce, listening, port, serveUntil } from "./requests.js"

type Route = typeof import("./route.js")

let loads = 0
const runtimes = new Set<unknown>()

/** Loads the route again, as a new module each time. */
const load = async (): Promise<Route> => {
  const route: Route = await import(`./route.js?${++loads}`)
  runtimes.add(route.runtime)
  return route
}

/** Answers each request with functions that have just been loaded. */
const fetch = async (request: Request): Promise<Response> => {
  const { GET, POST } = await load()
  return request.method === "POST" ? POST(request) : GET(request)
}

main(async (signal) => {
  // the cast: without options for HTTP/2 it is a server of HTTP/1
  const server = serve({ fetch, hostname: host, port }) as Server
  try {
    await serveUntil(signal, await listening(server))
    if (isOnce) console.log(`loaded: the module ${loads} times, its databases ${runtimes.size} time`)
  } finally {
    await closed(server)
    // a platform would not close the databases; an example cleans up
    await (await load()).runtime.close()
  }
})
