/**
 * Copies of the PostgreSQL programs that the server's user can run.
 */
import * as fs from "node:fs/promises"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import { CommandFailed } from "./childProcess.js"

interface Link {
  readonly source: string
  readonly target: string
}

const isLink = (u: unknown): u is Link =>
  typeof u === "object" &&
  u !== null &&
  "source" in u &&
  typeof u.source === "string" &&
  "target" in u &&
  typeof u.target === "string"

const makeFolder = async (folder: string) => {
  await fs.mkdir(folder)
  // by chmod, because the umask changes the mode of mkdir
  await fs.chmod(folder, 0o755)
}

// A hard link takes no space, but has the mode of the original, which must not change. So a file
// that needs another mode is copied.
const linkOrCopy = async (from: string, to: string): Promise<void> => {
  const needed = path.basename(path.dirname(from)) === "bin" ? 0o555 : 0o444
  const { mode } = await fs.stat(from)
  if ((mode & needed) === needed) {
    try {
      return await fs.link(from, to)
    } catch {
      // the link fails if the target is on another file system, or if links to files of other users
      // are forbidden, and the file is copied
    }
  }
  await fs.copyFile(from, to)
  await fs.chmod(to, mode | needed)
}

/** Makes the folders of `from` in `to`. `place` makes their files. */
const mirror = async (from: string, to: string, place: (from: string, to: string) => Promise<void>): Promise<void> => {
  await makeFolder(to)
  for (const entry of await fs.readdir(from, { withFileTypes: true })) {
    const source = path.join(from, entry.name)
    const target = path.join(to, entry.name)
    if (entry.isDirectory()) await mirror(source, target, place)
    else if (entry.isSymbolicLink()) await fs.symlink(await fs.readlink(source), target)
    else await place(source, target)
  }
}

// npm packages cannot contain symbolic links. An install script makes the links, but the script may
// be disabled.
const makeSymlinks = async (native: string, to: string) => {
  const text = await fs.readFile(path.join(native, "pg-symlinks.json"), "utf8").catch(() => "[]")
  const found: unknown = JSON.parse(text)
  for (const { source, target } of Array.isArray(found) ? found.filter(isLink) : []) {
    const link = path.resolve(to, "..", target)
    await fs.rm(link, { force: true })
    await fs.symlink(path.relative(path.dirname(target), source), link)
  }
}

// uninterruptible, because an interruption would not stop the work, and the folder is removed
// afterwards
const attempt = (run: () => Promise<void>): Effect.Effect<void, CommandFailed> =>
  Effect.tryPromise({
    try: run,
    catch: (cause) => new CommandFailed({ reason: `the copy failed: ${cause}`, output: [], cause })
  }).pipe(Effect.uninterruptible)

/**
 * Copies the programs in `native` to `to`, by hard links if possible, and makes symbolic links to the
 * other files. A user who can read the files in `native` can run the programs.
 *
 * The programs are no symbolic links, because they resolve links in their own path before they look
 * for their libraries and files beside it. The folders of libraries are none, because a library looks
 * for others in `..`, which leads from a link to the original.
 */
export const linkBinaries = (native: string, to: string): Effect.Effect<void, CommandFailed> =>
  attempt(async () => {
    await makeFolder(to)
    await mirror(path.join(native, "bin"), path.join(to, "bin"), linkOrCopy)
    await mirror(path.join(native, "lib"), path.join(to, "lib"), (from, to) => fs.symlink(from, to))
    await fs.symlink(path.join(native, "share"), path.join(to, "share"))
    await makeSymlinks(native, to)
  })

/**
 * Copies `native` to `to`, by hard links if possible, so that every user can run the programs.
 * Replaces what `linkBinaries` has made there.
 */
export const copyBinaries = (native: string, to: string): Effect.Effect<void, CommandFailed> =>
  attempt(async () => {
    await fs.rm(to, { recursive: true, force: true })
    await mirror(native, to, linkOrCopy)
    await makeSymlinks(native, to)
  })
