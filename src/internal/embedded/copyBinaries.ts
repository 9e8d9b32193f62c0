/**
 * A copy of the PostgreSQL programs that every user can run.
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

// A hard link takes no space, but has the mode of the original, which must not change. So a file
// that needs another mode is copied.
const linkOrCopy = async (from: string, to: string, isProgram: boolean) => {
  const needed = isProgram ? 0o555 : 0o444
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

const copy = async (from: string, to: string, isProgram: boolean): Promise<void> => {
  await fs.mkdir(to)
  // by chmod, because the umask changes the mode of mkdir
  await fs.chmod(to, 0o755)
  for (const entry of await fs.readdir(from, { withFileTypes: true })) {
    const source = path.join(from, entry.name)
    const target = path.join(to, entry.name)
    if (entry.isDirectory()) await copy(source, target, isProgram || entry.name === "bin")
    else if (entry.isSymbolicLink()) await fs.symlink(await fs.readlink(source), target)
    else await linkOrCopy(source, target, isProgram)
  }
}

// npm packages cannot contain symbolic links. An install script makes the links, but the script may
// be disabled.
const makeSymlinks = async (native: string) => {
  const text = await fs.readFile(path.join(native, "pg-symlinks.json"), "utf8").catch(() => "[]")
  const found: unknown = JSON.parse(text)
  for (const { source, target } of Array.isArray(found) ? found.filter(isLink) : []) {
    const link = path.resolve(native, "..", target)
    await fs.rm(link, { force: true })
    await fs.symlink(path.relative(path.dirname(target), source), link)
  }
}

/** Copies `native` to `to`, by hard links if possible, so that every user can run the programs. */
export const copyBinaries = (native: string, to: string): Effect.Effect<void, CommandFailed> =>
  Effect.tryPromise({
    try: async () => {
      await copy(native, to, false)
      await makeSymlinks(to)
    },
    catch: (cause) => new CommandFailed({ reason: `the copy failed: ${cause}`, output: [], cause })
    // uninterruptible, because an interruption would not stop the copy, and the folder is removed
    // afterwards
  }).pipe(Effect.uninterruptible)
