import * as Effect from "effect/Effect"
import { type Identity, run } from "./childProcess.js"
import { EmbeddedPostgresError } from "./error.js"

const lookup = (name: string) =>
  Effect.all([run("id", ["-u", name], { cwd: "/" }), run("id", ["-g", name], { cwd: "/" })], {
    concurrency: 2
  }).pipe(Effect.map(([uid, gid]): Identity => ({ name, uid: Number(uid), gid: Number(gid) })))

/** PostgreSQL refuses to run as root, so root lends it an unprivileged user that is already there; else it is ours. */
export const unprivilegedUser: Effect.Effect<Identity | undefined, EmbeddedPostgresError> = Effect.suspend(() =>
  process.getuid?.() === 0
    ? lookup("postgres").pipe(
        Effect.orElse(() => lookup("nobody")),
        Effect.mapError(
          (cause) =>
            new EmbeddedPostgresError({
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
