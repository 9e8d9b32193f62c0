import { randomBytes } from "node:crypto"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type Identity, run } from "./command.js"
import { EmbeddedPostgresError } from "./error.js"
import { guard } from "./watchdog.js"

// Not interruptible: a promise would go on by itself, while the folder is being removed.
const attempt = <A>(what: string, run: () => Promise<A>): Effect.Effect<A, EmbeddedPostgresError> =>
  Effect.tryPromise({
    try: run,
    catch: (cause) =>
      new EmbeddedPostgresError({
        operation: "initialize",
        reason: `${what}: ${cause instanceof Error ? cause.message : String(cause)}`,
        logs: [],
        cause
      })
  }).pipe(Effect.uninterruptible)

/** Writes a file that only the server's user can read. */
export const write = (file: string, text: string, user: Identity | undefined) =>
  attempt(`${file} could not be written`, async () => {
    await fs.writeFile(file, text, { mode: 0o600, flag: "a" })
    if (user !== undefined) await fs.chown(file, user.uid, user.gid)
  })

/** Removes a file or folder, if it is there. */
export const remove = (file: string) =>
  attempt(`${file} could not be removed`, () =>
    fs.rm(file, { recursive: true, force: true, maxRetries: 5, retryDelay: 50 })
  )

// A server that was killed leaves a small segment of shared memory behind; its pid file names it.
const forgetSharedMemory = (folder: string) =>
  Effect.gen(function* () {
    for (const name of yield* attempt("", () => fs.readdir(folder))) {
      const text = yield* attempt("", () => fs.readFile(path.join(folder, name, "postmaster.pid"), "utf8")).pipe(
        Effect.orElseSucceed(() => "")
      )
      const segment = /^\s*\d+\s+(\d+)\s*$/.exec(text.split("\n")[6] ?? "")?.[1]
      if (segment !== undefined) yield* run("ipcrm", ["-m", segment], { cwd: "/" })
    }
  })

/** A new folder in `parent` that belongs to `user`; it goes with the scope, or with node, whichever ends first. */
export const make = (
  parent: string,
  user: Identity | undefined
): Effect.Effect<string, EmbeddedPostgresError, Scope.Scope> =>
  Effect.gen(function* () {
    const real = yield* attempt(`the directory ${parent} cannot be used`, () => fs.realpath(parent))
    const folder = path.join(real, `effect-db-${randomBytes(6).toString("hex")}`)
    // first: there must be no moment at which a folder exists that nobody would remove
    yield* guard(folder)
    yield* Effect.acquireRelease(
      attempt(`no folder could be made in ${real}`, () => fs.mkdir(folder, { mode: 0o700 })),
      // what cannot be removed now is left to the guard, which tries once more
      () => Effect.zipRight(Effect.ignore(forgetSharedMemory(folder)), Effect.ignore(remove(folder)))
    )
    if (user !== undefined) {
      yield* attempt(`${folder} could not be given to ${user.name}`, () => fs.chown(folder, user.uid, user.gid))
    }
    return folder
  })
