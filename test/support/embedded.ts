/** Embedded servers, their folders and their processes. */
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

/** Creates an empty folder that every user may enter; it is removed when the scope ends. */
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
    // state Z or X: dead, but not reaped, because many containers have no init for that
    return process.platform !== "linux" || !/\) [ZX]/.test(fs.readFileSync(`/proc/${pid}/stat`, "utf8"))
  } catch {
    return false
  }
}

/** Returns all processes of a server, as postmaster.pid and pg_stat_activity list them. */
export const pidsOf = (server: EmbeddedPostgres.Server, directory: string) =>
  Effect.map(
    query<{ pid: number }>(server.url(), "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"),
    (rows) => [
      Number.parseInt(fs.readFileSync(path.join(directory, server.name, "postmaster.pid"), "utf8"), 10),
      ...rows.map((row) => row.pid)
    ]
  )

/** Waits for a condition that no event reports; fails after 20 seconds. */
export const eventually = (what: string, condition: () => boolean) =>
  Effect.sync(condition).pipe(
    Effect.repeat({ until: (met) => met, schedule: Schedule.spaced("10 millis") }),
    Effect.timeoutFail({ duration: "20 seconds", onTimeout: () => new Error(`never: ${what}`) })
  )
