/** TCP servers of a test's own, each on a free port. */
import * as Net from "node:net"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"

/**
 * Starts a server on a free port, and returns the port. The server and its connections are closed
 * when the scope ends. Without `welcome` the server accepts connections and sends nothing.
 */
export const listenOnPort = (
  welcome: (socket: Net.Socket) => void = () => {},
  host = "127.0.0.1"
): Effect.Effect<number, never, Scope.Scope> => {
  const sockets = new Set<Net.Socket>()
  const server = Net.createServer((socket) => {
    sockets.add(socket)
    socket.on("error", () => {}).once("close", () => sockets.delete(socket))
    welcome(socket)
  })
  return Effect.acquireRelease(
    Effect.async<number>((resume) => {
      server.once("error", (cause) => resume(Effect.die(cause)))
      // the address of a TCP server is never a string
      server.listen(0, host, () => resume(Effect.sync(() => (server.address() as Net.AddressInfo).port)))
    }),
    () =>
      Effect.async<void>((resume) => {
        server.close(() => resume(Effect.void))
        for (const socket of sockets) socket.destroy()
      })
  )
}

/** Returns a port on which nothing listens. */
export const closedPort: Effect.Effect<number> = Effect.scoped(Effect.suspend(() => listenOnPort()))
