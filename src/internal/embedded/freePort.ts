/**
 * The choice of a free TCP port.
 */
import { randomInt } from "node:crypto"
import * as net from "node:net"
import * as Effect from "effect/Effect"

const listen = (port: number): Effect.Effect<number, Error> =>
  Effect.async<number, Error>((resume) => {
    const server = net.createServer()
    server.once("error", (cause) => resume(Effect.fail(cause)))
    server.listen(port, "127.0.0.1", () => {
      const address = server.address()
      server.close(() => resume(Effect.succeed(typeof address === "object" && address !== null ? address.port : port)))
    })
  })

/**
 * Returns a port that is free now, if possible below the range of outgoing connections. Inside of
 * that range, a client that reconnects to a stopped server may get the port of the server for its
 * own side, so that the server could not start on its port again.
 */
export const freePort: Effect.Effect<number, Error> = Effect.sync(() => randomInt(15_000, 32_000)).pipe(
  Effect.flatMap(listen),
  Effect.retry({ times: 20 }),
  Effect.orElse(() => listen(0))
)
