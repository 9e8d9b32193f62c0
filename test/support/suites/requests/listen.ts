/** Node's server, and the part of a framework that answers. */
import type * as http from "node:http"
import type { Listening } from "./site.js"

/** The port of a server that listens. */
export const portOf = (server: Pick<http.Server, "address">): number => {
  const address = server.address()
  return typeof address === "object" && address !== null ? address.port : 0
}

/** Waits until it listens. Its connections are closed with it, whatever they wait for. */
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
