/** Embedded servers, and what they leave in the machine: processes, folders, ports. */
import * as fs from "node:fs"
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type { EmbeddedPostgres } from "effect-db/EmbeddedPostgres"
import * as Embedded from "effect-db/EmbeddedPostgres"
import { directory as memory } from "./directory.js"
import { query } from "./server.js"

export const make = (options: EmbeddedPostgres.Options = {}) => Embedded.make({ directory: memory, ...options })

export const isRoot = process.getuid?.() === 0

/** An empty folder that every user may enter, removed at the end. */
export const emptyFolderIn = (parent: string) =>
  Effect.acquireRelease(
    Effect.sync(() => {
      const folder = fs.mkdtempSync(path.join(parent, "embedded-test-"))
      fs.chmodSync(folder, 0o755)
      return folder
    }),
    (folder) => Effect.sync(() => fs.rmSync(folder, { recursive: true, force: true }))
  )

export const emptyFolder = emptyFolderIn(memory)

export const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    // dead, but no parent has reaped it: containers often have no init that would
    return process.platform !== "linux" || !/\) [ZX]/.test(fs.readFileSync(`/proc/${pid}/stat`, "utf8"))
  } catch {
    return false
  }
}

/** Returns every process of a server, from the server's own lists. */
export const pidsOf = (server: EmbeddedPostgres.Server, directory: string) =>
  Effect.map(
    query<{ pid: number }>(server.url(), "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"),
    (rows) => [
      Number.parseInt(fs.readFileSync(path.join(directory, server.name, "postmaster.pid"), "utf8"), 10),
      ...rows.map((row) => row.pid)
    ]
  )

/** Waits, within a bound, for a condition that no event reports. */
export const eventually = (what: string, condition: () => boolean) =>
  Effect.sync(condition).pipe(
    Effect.repeat({ until: (met) => met, schedule: Schedule.spaced("10 millis") }),
    Effect.timeoutFail({ duration: "20 seconds", onTimeout: () => new Error(`never: ${what}`) })
  )
