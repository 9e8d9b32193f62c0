/** The release of an embedded cluster, by the end of its scope or of its program. */
import { spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as MarkedProcesses from "../../src/internal/embedded/markedProcesses.js"
import { compiled } from "../support/compiledTree.js"
import { emptyFolder, emptyFolderIn } from "../support/directory.js"
import { isAlive, isRoot, make, pidsOf, segmentsOf } from "../support/embedded.js"
import { until } from "../support/eventually.js"

/** Returns the folders of the clusters in `directory`. */
const foldersIn = (directory: string) => fs.readdirSync(directory).map((name) => path.join(directory, name))

const membersIn = (folder: string) =>
  ["primary", "replica-1"].flatMap((name) =>
    MarkedProcesses.members(path.join(folder, name)).map((member) => member.pid)
  )

/** The moments of a start, each with a check of the cluster's folder that detects it. */
const moments: ReadonlyArray<readonly [string, (folder: string) => boolean]> = [
  ["the folder is made", fs.existsSync],
  ["initdb runs", (folder) => fs.existsSync(path.join(folder, "primary", "base"))],
  ["initdb's own server runs", (folder) => fs.existsSync(path.join(folder, "primary", "postmaster.pid"))],
  ["the data folder is copied", (folder) => fs.existsSync(path.join(folder, "replica-1"))],
  ["the primary starts", (folder) => fs.existsSync(path.join(folder, "primary", "postmaster.opts"))],
  ["the replica starts", (folder) => fs.existsSync(path.join(folder, "replica-1", "postmaster.opts"))]
]

describe("the release of a cluster", () => {
  it.scopedLive("a release ends every process and removes the folder", () =>
    Effect.gen(function* () {
      const directory = yield* emptyFolderIn(os.tmpdir())
      const pids = yield* Effect.scoped(
        Effect.gen(function* () {
          const postgres = yield* make({ directory, replicas: 1 })
          expect(foldersIn(directory)).toEqual([postgres.directory])
          const servers = [postgres.primary, ...postgres.replicas]
          const found = yield* Effect.forEach(servers, (server) => pidsOf(server, postgres.directory))
          expect(membersIn(postgres.directory)).toEqual(expect.arrayContaining(found.flat()))
          return found.flat()
        })
      )
      expect(pids.length).toBeGreaterThan(8)
      expect(pids.filter(isAlive)).toEqual([])
      expect(segmentsOf(pids)).toEqual([])
      expect(fs.readdirSync(directory)).toEqual([])
    })
  )

  it.scopedLive("a release ends servers that are frozen, stopped, killed or orphaned as well", () =>
    Effect.gen(function* () {
      const directory = yield* emptyFolder
      const pids = yield* Effect.scoped(
        Effect.gen(function* () {
          const postgres = yield* make({ directory, replicas: 4 })
          const servers = [postgres.primary, ...postgres.replicas]
          const found = yield* Effect.forEach(servers, (server) => pidsOf(server, postgres.directory))
          const [one, two, three, four] = postgres.replicas
          yield* one?.stop ?? Effect.void
          yield* two?.kill ?? Effect.void
          yield* three?.freeze ?? Effect.void
          yield* four?.freeze ?? Effect.void
          process.kill(found[4]?.[0] ?? 0, "SIGKILL")
          yield* postgres.primary.freeze
          const all = found.flat()
          expect(process.platform !== "linux" || segmentsOf(all).length > 0).toBe(true)
          return all
        })
      )
      expect(segmentsOf(pids)).toEqual([])
      expect(pids.filter(isAlive)).toEqual([])
      expect(fs.readdirSync(directory)).toEqual([])
    })
  )

  it.scopedLive("a release refuses later operations", () =>
    Effect.gen(function* () {
      const { primary } = yield* Effect.scoped(make())
      expect((yield* Effect.flip(primary.start)).message).toContain("has been released")
      expect(yield* primary.isRunning).toBe(false)
    })
  )

  for (const [moment, reached] of moments) {
    it.scopedLive(`a release after an interruption while ${moment} leaves nothing`, () =>
      Effect.gen(function* () {
        const directory = yield* emptyFolder
        const starting = yield* Effect.fork(Effect.scoped(make({ directory, replicas: 1 })))
        yield* until(() => foldersIn(directory).some(reached))
        const [folder = ""] = foldersIn(directory)
        yield* Fiber.interrupt(starting)
        expect(fs.readdirSync(directory)).toEqual([])
        expect(membersIn(folder)).toEqual([])
      })
    )
  }
})

/** Returns the processes that have a text in their command lines. */
const processesWith = (text: string): ReadonlyArray<string> =>
  process.platform === "linux"
    ? fs
        .readdirSync("/proc")
        .filter((name) => /^\d+$/.test(name))
        .filter((pid) => {
          try {
            return fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").includes(text)
          } catch {
            return false
          }
        })
    : spawnSync("ps", ["-A", "-o", "command="], { encoding: "utf8" })
        .stdout.split("\n")
        .filter((line) => line.includes(text))

describe("a program with an embedded cluster", () => {
  const script = fileURLToPath(new URL("../support/holdCluster.ts", import.meta.url))
  const nobody = isRoot ? Number(spawnSync("id", ["-u", "nobody"], { encoding: "utf8" }).stdout) : 0
  const canRead = nobody > 0 && spawnSync("test", ["-r", script], { uid: nobody }).status === 0

  /** Starts a Node process that holds a cluster in `directory`; it is killed when the scope ends. */
  const program = (mode: "hold" | "leave", directory: string, uid?: number) =>
    Effect.gen(function* () {
      const ended = yield* Deferred.make<number | null>()
      const child = yield* Effect.acquireRelease(
        Effect.sync(() =>
          spawn(process.execPath, [...compiled(script), mode], {
            cwd: path.resolve(path.dirname(script), "../.."),
            stdio: ["ignore", "pipe", "inherit"],
            // in its own process group, to which a test can send SIGINT, as Ctrl-C does
            detached: true,
            env: { ...process.env, HOME: directory, TMPDIR: directory },
            ...(uid === undefined ? {} : { uid, gid: uid })
          })
        ),
        (process) => Effect.sync(() => process.kill("SIGKILL")).pipe(Effect.zipRight(Deferred.await(ended)))
      )
      child.once("close", (code) => Deferred.unsafeDone(ended, Exit.succeed(code)))
      const line = yield* Deferred.make<string, Error>()
      createInterface({ input: child.stdout }).once("line", (text) => Deferred.unsafeDone(line, Exit.succeed(text)))
      child.once("close", () => Deferred.unsafeDone(line, Exit.fail(new Error("it ended before it had a cluster"))))
      const up = Effect.map(Deferred.await(line), (text): Held => JSON.parse(text))
      return { child, ended, up }
    })

  interface Held {
    readonly directory: string
    readonly pids: ReadonlyArray<number>
  }

  /** Waits until the folder is gone, and all processes with its name: servers and watchdog. */
  const gone = (folder: string) =>
    until(() => !fs.existsSync(folder) && processesWith(path.basename(folder)).length === 0)

  it.scopedLive("a program that is killed with SIGKILL leaves no process and no folder", () =>
    Effect.gen(function* () {
      const { child, ended, up } = yield* program("hold", yield* emptyFolder)
      const { directory, pids } = yield* up
      expect(pids.filter(isAlive)).toEqual(pids)
      child.kill("SIGKILL")
      yield* Deferred.await(ended)
      yield* gone(directory)
      expect(pids.filter(isAlive)).toEqual([])
      expect(segmentsOf(pids)).toEqual([])
    })
  )

  it.scopedLive("a program that is killed while its servers are frozen leaves no process and no folder", () =>
    Effect.gen(function* () {
      const { child, ended, up } = yield* program("hold", yield* emptyFolder)
      const { directory, pids } = yield* up
      for (const pid of pids) process.kill(pid, "SIGSTOP")
      child.kill("SIGKILL")
      yield* Deferred.await(ended)
      yield* gone(directory)
      expect(pids.filter(isAlive)).toEqual([])
    })
  )

  for (const [moment, reached] of moments) {
    it.scopedLive(`a program that is killed while ${moment} leaves no process and no folder`, () =>
      Effect.gen(function* () {
        const directory = yield* emptyFolder
        const { child, ended } = yield* program("hold", directory)
        const clusters = () => foldersIn(directory).filter((name) => path.basename(name).startsWith("effect-db-"))
        yield* until(() => clusters().some(reached))
        const [folder = ""] = clusters()
        child.kill("SIGKILL")
        yield* Deferred.await(ended)
        yield* gone(folder)
      })
    )
  }

  it.scopedLive("a program that receives SIGINT leaves no process and no folder when it ends", () =>
    Effect.gen(function* () {
      const { child, ended, up } = yield* program("hold", yield* emptyFolder)
      const { directory, pids } = yield* up
      process.kill(-(child.pid ?? 0), "SIGINT")
      yield* Deferred.await(ended)
      expect(fs.existsSync(directory)).toBe(false)
      expect(processesWith(path.basename(directory))).toEqual([])
      expect(pids.filter(isAlive)).toEqual([])
    })
  )

  it.scopedLive("a program that does not release its cluster can end, and leaves no process and no folder", () =>
    Effect.gen(function* () {
      const { ended, up } = yield* program("leave", yield* emptyFolder)
      const { directory } = yield* up
      expect(yield* Deferred.await(ended)).toBe(0)
      yield* gone(directory)
    })
  )

  it.scopedLive.runIf(canRead)("a program of another user than root leaves no process and no folder", () =>
    Effect.gen(function* () {
      const home = yield* emptyFolder
      fs.chownSync(home, nobody, nobody)
      const { child, ended, up } = yield* program("hold", home, nobody)
      const { directory } = yield* up
      expect(path.dirname(directory)).toBe(home)
      expect(fs.statSync(directory).uid).toBe(nobody)
      child.kill("SIGTERM")
      yield* Deferred.await(ended)
      expect(fs.existsSync(directory)).toBe(false)
      expect(processesWith(path.basename(directory))).toEqual([])
    })
  )
})
