/**
 * Operations that root can run safely on the files of a server.
 *
 * The server's user may replace a file of its own folder with a link before root writes the file.
 * So root opens files without following links, and writes and changes them by the handle.
 */
import { constants } from "node:fs"
import * as fs from "node:fs/promises"
import * as Effect from "effect/Effect"
import type { Identity } from "./childProcess.js"
import { OperationFailed } from "./operationFailed.js"

/**
 * Runs an operation on files. It is uninterruptible, because an interruption would not stop the
 * promise, which could then write to the folder while it is removed.
 */
export const attempt = <A>(failed: string, run: () => Promise<A>): Effect.Effect<A, OperationFailed> =>
  Effect.tryPromise({
    try: run,
    catch: (cause) =>
      new OperationFailed({
        operation: "initialize",
        reason: `${failed}: ${cause instanceof Error ? cause.message : String(cause)}`,
        logs: [],
        cause
      })
  }).pipe(Effect.uninterruptible)

/** Writes a new file that only the server's user can read. Fails if the file exists. */
export const create = (file: string, text: string, user: Identity | undefined) =>
  attempt(`${file} could not be written`, async () => {
    // O_EXCL follows no link, and fails if the file exists
    const handle = await fs.open(file, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600)
    try {
      await handle.writeFile(text)
      if (user !== undefined) await handle.chown(user.uid, user.gid)
    } finally {
      await handle.close()
    }
  })

/** Appends to a file of the server's user. Fails for a link or a file of another user. */
export const append = (file: string, text: string, user: Identity | undefined) =>
  attempt(`${file} could not be written`, async () => {
    // without O_NONBLOCK, opening a pipe would block
    const flags = constants.O_WRONLY | constants.O_APPEND | constants.O_NOFOLLOW | constants.O_NONBLOCK
    const handle = await fs.open(file, flags)
    try {
      const found = await handle.stat()
      const isOwn = user === undefined || found.uid === user.uid
      if (!found.isFile() || found.nlink > 1 || !isOwn) throw new Error("it is not a regular file of the server's user")
      await handle.writeFile(text)
    } finally {
      await handle.close()
    }
  })

/** Removes a file, if it exists. */
export const remove = (file: string) => attempt(`${file} could not be removed`, () => fs.rm(file, { force: true }))
