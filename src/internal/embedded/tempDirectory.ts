/**
 * The folder of a cluster, and the data folders in it.
 */
import { randomBytes } from "node:crypto"
import type { Stats } from "node:fs"
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type Identity, run } from "./childProcess.js"
import { attempt, exists } from "./noFollowFiles.js"
import type { OperationFailed } from "./operationFailed.js"
import { toItsEnd, withRealClock } from "./realClock.js"
import { emptyFunction, guard } from "./watchdog.js"

/** Creates an empty folder for the data of a server, owned by its user. */
export const makeData = (folder: string, user: Identity | undefined) =>
  attempt(`${folder} could not be created`, async () => {
    await fs.mkdir(folder, { mode: 0o700 })
    if (user !== undefined) await fs.chown(folder, user.uid, user.gid)
  })

/** Returns the names in a folder. */
export const list = (folder: string) => attempt(`${folder} could not be read`, () => fs.readdir(folder))

/** Replaces the folder `to` by the folder `from`, and keeps the former folder as `old`. */
export const replace = (from: string, to: string, old: string) =>
  attempt(`${to} could not be replaced`, async () => {
    await fs.rename(to, old)
    await fs.rename(from, to)
  })

/**
 * Removes the data folder of a server that has ended, if it exists. The server's user removes the
 * files, because root would follow links. A failure is ignored: the folder is removed with that of
 * the cluster.
 */
export const clear = (folder: string, user: Identity | undefined): Effect.Effect<void> =>
  exists(folder).pipe(
    Effect.filterOrFail((exists) => exists),
    Effect.zipRight(run("/bin/sh", ["-c", `${emptyFunction}\nempty "$1"`, "effect-db", folder], { cwd: "/", user })),
    Effect.zipRight(attempt(`${folder} could not be removed`, () => fs.rmdir(folder))),
    // the server's user could put a pipe in the place of a file
    Effect.timeout("10 seconds"),
    Effect.ignore,
    withRealClock,
    toItsEnd
  )

/** Checks if a user can replace files of other users in a folder. */
const isChangedBy = (user: Identity, { gid, mode, uid }: Stats): boolean => {
  if (uid === user.uid) return true
  const isSticky = (mode & 0o1000) !== 0
  return !isSticky && ((mode & 0o002) !== 0 || ((mode & 0o020) !== 0 && gid === user.gid))
}

/**
 * Throws if the server's user can change a folder or any folder above it, because then a path could
 * lead elsewhere when root writes a file.
 */
const checkAbove = async (folder: string, user: Identity): Promise<void> => {
  if (isChangedBy(user, await fs.stat(folder))) {
    throw new Error(`OS user ${user.name} can change ${folder}: choose another directory, such as /tmp`)
  }
  if (folder !== path.dirname(folder)) await checkAbove(path.dirname(folder), user)
}

/**
 * Creates a folder in `parent` that is removed when the scope is closed or Node ends. The folder
 * belongs to the current user. `user` may read and enter it, and owns the data folders in it.
 */
export const make = (parent: string, user: Identity | undefined): Effect.Effect<string, OperationFailed, Scope.Scope> =>
  Effect.gen(function* () {
    const real = yield* attempt(`the directory ${parent} cannot be used`, async () => {
      const real = await fs.realpath(parent)
      if (user !== undefined) await checkAbove(real, user)
      return real
    })
    const folder = path.join(real, `effect-db-${randomBytes(6).toString("hex")}`)
    // the watchdog starts first, so that the folder never exists without a watchdog
    yield* guard(folder, user)
    yield* attempt(`no folder could be created in ${real}`, () => fs.mkdir(folder, { mode: 0o700 }))
    if (user !== undefined) {
      yield* attempt(`${folder} could not be made accessible to ${user.name}`, async () => {
        await fs.chown(folder, -1, user.gid)
        await fs.chmod(folder, 0o750)
      })
    }
    return folder
  })
