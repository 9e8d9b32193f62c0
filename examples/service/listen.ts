import { createServer, type Server } from "node:http"
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { Config, Context, Data, Effect, Layer, Schedule } from "effect"
import { encode, Unavailable } from "./failures.js"

class PortTaken extends Data.TaggedError("PortTaken")<{ readonly message: string }> {}

class NodeServer extends Context.Tag("example/NodeServer")<NodeServer, Server>() {}

/** Answers requests while the service has no handler, because it is starting or shutting down. */
const notNow = (server: Server) =>
  server.on("request", (_, response) => {
    if (server.listenerCount("request") > 1) return
    response.writeHead(503, { connection: "close", "content-type": "application/json" })
    response.end(JSON.stringify(encode(Unavailable.because("NotReady", "no"))))
  })

const port = (otherwise: number) =>
  Config.integer("PORT").pipe(
    Config.validate({
      message: "expected a port from 0 to 65535; 0 picks a free one",
      validation: (n) => n >= 0 && n < 65_536
    }),
    Config.withDefault(otherwise)
  )

const host = Config.withDefault(Config.string("HOST"), "127.0.0.1")

/** An HTTP server on the port of the settings. */
export const layer = (otherwise: number) =>
  Layer.unwrapEffect(
    Effect.gen(function* () {
      const address = yield* Config.all({ host, port: port(otherwise) })
      const server = createServer()
      notNow(server)
      return Layer.merge(
        NodeHttpServer.layer(() => server, address),
        Layer.succeed(NodeServer, server)
      ).pipe(
        Layer.mapError(
          ({ cause }) =>
            new PortTaken({
              message:
                cause instanceof Error && "code" in cause && cause.code === "EADDRINUSE"
                  ? `port ${address.port} is in use: stop what listens there, or choose another (PORT=0 picks a free one)`
                  : `cannot listen on ${address.host}:${address.port}: ${cause instanceof Error ? cause.message : String(cause)}`
            })
        )
      )
    })
  )

/** Stops accepting connections, and waits for the requests in progress, for a second at most. */
const drain = (server: Server) =>
  Effect.async<void>((resume) => {
    server.close(() => resume(Effect.void))
  }).pipe(
    // a connection that is kept alive becomes idle when its request is answered
    Effect.raceFirst(
      Effect.repeat(
        Effect.sync(() => server.closeIdleConnections()),
        Schedule.spaced("20 millis")
      )
    ),
    // `timeout` runs and interrupts it in another fiber; the fiber of the finalizer may be interrupted already
    Effect.interruptible,
    Effect.timeout("1 second"),
    Effect.ignore,
    Effect.ensuring(Effect.sync(() => server.closeAllConnections()))
  )

/** Drains the server when the scope ends. Resources acquired before this are still open for the requests in progress. */
export const drained = Effect.flatMap(NodeServer, (server) => Effect.addFinalizer(() => drain(server)))
