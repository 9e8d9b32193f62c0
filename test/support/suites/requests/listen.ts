/** The start, the port and the close of a Node server. */
import type * as http from "node:http"
import type { Listening } from "./site.js"

/** Returns the port of a server that listens. */
export const portOf = (server: Pick<http.Server, "address">): number => {
  const address = server.address()
  return typeof address === "object" && address !== null ? address.port : 0
}

/** Waits until a server listens. `close` also closes its connections, with a request or not. */
export const listening = (server: http.Server): Promise<Listening> =>
  new Promise((resolve, reject) => {
    server.once("error", reject)
    server.once("listening", () =>
      resolve({
        port: portOf(server),
        close: () =>
          new Promise((closed) => {
            server.close(() => closed())
            server.closeAllConnections()
          })
      })
    )
  })
