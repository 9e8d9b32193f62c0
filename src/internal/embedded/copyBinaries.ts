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

// A link costs nothing, but shares owner and mode with the original, which is not ours to change.
const linkOrCopy = async (from: string, to: string, program: boolean) => {
  const needed = program ? 0o555 : 0o444
  const { mode } = await fs.stat(from)
  if ((mode & needed) === needed) {
    try {
      return await fs.link(from, to)
    } catch {
      // another file system, or links to other users' files are forbidden: a copy does
    }
  }
  await fs.copyFile(from, to)
  await fs.chmod(to, mode | needed)
}

const copy = async (from: string, to: string, program: boolean): Promise<void> => {
  await fs.mkdir(to)
  // said afterwards, since mkdir listens to the umask
  await fs.chmod(to, 0o755)
  for (const entry of await fs.readdir(from, { withFileTypes: true })) {
    const source = path.join(from, entry.name)
    const target = path.join(to, entry.name)
    if (entry.isDirectory()) await copy(source, target, program || entry.name === "bin")
    else if (entry.isSymbolicLink()) await fs.symlink(await fs.readlink(source), target)
    else await linkOrCopy(source, target, program)
  }
}

// npm packages cannot hold symbolic links: an install script makes them, unless such scripts are not run.
const makeSymlinks = async (native: string) => {
  const text = await fs.readFile(path.join(native, "pg-symlinks.json"), "utf8").catch(() => "[]")
  const found: unknown = JSON.parse(text)
  for (const { source, target } of Array.isArray(found) ? found.filter(isLink) : []) {
    const at = path.resolve(native, "..", target)
    await fs.rm(at, { force: true })
    await fs.symlink(path.relative(path.dirname(target), source), at)
  }
}

/** Makes `to` a folder of programs that every user can run, out of `native`, with hard links where possible. */
export const copyBinaries = (native: string, to: string): Effect.Effect<void, CommandFailed> =>
  Effect.tryPromise({
    try: async () => {
      await copy(native, to, false)
      await makeSymlinks(to)
    },
    catch: (cause) => new CommandFailed({ reason: `it could not be copied: ${cause}`, output: [], cause })
    // a promise would go on by itself, while the folder is being removed
  }).pipe(Effect.uninterruptible)
