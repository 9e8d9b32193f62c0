/**
 * The opening of a database in a PGlite, which runs in this process.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { ConfigInvalid } from "../../DatabaseError.js"
import type { ServerSocket } from "../../ServerConfig.js"
import { thrownMessage } from "../protocol/thrownValue.js"
import { type Pglite, PgliteSession } from "./pgliteSession.js"
import { PgliteSocket } from "./pgliteSocket.js"

/** Opens a PGlite until the end of a scope, and returns the server that connects to it. */
export const pgliteServer = (
  database: string,
  given: Effect.Effect<Pglite, unknown>
): Effect.Effect<ServerSocket, ConfigInvalid, Scope.Scope> =>
  Effect.gen(function* () {
    const opened = Effect.mapError(
      given,
      (cause) =>
        new ConfigInvalid({
          database,
          setting: "pglite",
          given: `an effect that fails: ${thrownMessage(cause)}`,
          expected: "an effect that opens a PGlite"
        })
    )
    const pglite = yield* Effect.acquireRelease(opened, (pglite) => Effect.promise(() => pglite.close()))
    const session = new PgliteSession(pglite)
    return {
      socket: Effect.sync(() => new PgliteSocket(session)),
      name: "pglite",
      database: "postgres",
      username: "postgres",
      ssl: false
    }
  })
