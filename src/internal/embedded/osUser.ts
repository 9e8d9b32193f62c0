/**
 * The operating system user of embedded servers.
 */
import * as Effect from "effect/Effect"
import { type Identity, run } from "./childProcess.js"
import { OperationFailed } from "./operationFailed.js"

const lookup = (name: string) =>
  Effect.all([run("id", ["-u", name], { cwd: "/" }), run("id", ["-g", name], { cwd: "/" })], {
    concurrency: 2
  }).pipe(Effect.map(([uid, gid]): Identity => ({ name, uid: Number(uid), gid: Number(gid) })))

/**
 * Finds the user that runs PostgreSQL. Returns `undefined` for the current user. If Node runs as
 * root, returns the user `postgres` or `nobody`, because PostgreSQL refuses to run as root.
 */
export const unprivilegedUser: Effect.Effect<Identity | undefined, OperationFailed> = Effect.suspend(() =>
  process.getuid?.() === 0
    ? lookup("postgres").pipe(
        Effect.orElse(() => lookup("nobody")),
        Effect.mapError(
          (cause) =>
            new OperationFailed({
              operation: "install",
              reason:
                "PostgreSQL refuses to run as root, and there is no OS user `postgres` or `nobody` to run it as: " +
                "add one of them, or run as another user",
              logs: cause.output
            })
        )
      )
    : Effect.succeed(undefined)
)
