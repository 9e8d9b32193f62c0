/**
 * The servers of a program that runs as root run as another user. That user may write in the folders
 * of its servers at any time, and must not gain access to files of root by that.
 */
import { spawn, spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import * as EmbeddedPostgres from "effect-db/EmbeddedPostgres"
import * as Files from "../../src/internal/embedded/noFollowFiles.js"
import * as OsUser from "../../src/internal/embedded/osUser.js"
import * as Folder from "../../src/internal/embedded/tempDirectory.js"
import { directory, emptyFolder } from "../support/directory.js"

const isRoot = process.getuid?.() === 0
const suite = isRoot ? "the server's user" : "the server's user (skipped: only a program of root has one)"

const user = Effect.flatMap(OsUser.unprivilegedUser, (user) =>
  user === undefined ? Effect.dieMessage("there is no unprivileged user") : Effect.succeed(user)
)

/** A folder that every user may enter, with a file of root in it. */
const withTarget = Effect.gen(function* () {
  const folder = yield* emptyFolder
  const target = path.join(folder, "target")
  fs.writeFileSync(target, "# root's\n", { mode: 0o644 })
  return { folder, target }
})

const isUntouched = (target: string) => {
  expect(fs.readFileSync(target, "utf8")).toBe("# root's\n")
  expect(fs.statSync(target)).toMatchObject({ uid: 0, gid: 0, nlink: 1 })
}

/** Runs a Node program as the server's user; it is killed when the scope ends. */
const runAs = (program: string, ...args: ReadonlyArray<string>) =>
  Effect.flatMap(user, ({ gid, uid }) =>
    Effect.acquireRelease(
      Effect.sync(() => spawn(process.execPath, ["-e", program, ...args], { uid, gid, cwd: "/", stdio: "inherit" })),
      (child) => Effect.sync(() => child.kill("SIGKILL"))
    )
  )

/** A program that replaces all files that a start writes by links to a target, again and again. */
const planter = `
  const fs = require("fs")
  const [parent, target] = process.argv.slice(1)
  const attempt = (f) => { try { f() } catch {} }
  for (;;) {
    for (const name of fs.readdirSync(parent)) {
      if (!name.startsWith("effect-db-")) continue
      const folder = parent + "/" + name
      attempt(() => fs.symlinkSync(target, folder + "/pwfile"))
      for (const data of ["primary", "replica-1"]) {
        for (const file of ["postgresql.conf", "postgresql.auto.conf", "standby.signal"]) {
          // initdb has not ended yet, and must find these files as it has left them
          if (!fs.existsSync(folder + "/" + data + "/global/pg_control")) continue
          attempt(() => fs.unlinkSync(folder + "/" + data + "/" + file))
          attempt(() => fs.symlinkSync(target, folder + "/" + data + "/" + file))
        }
      }
    }
  }`

describe.skipIf(!isRoot)(suite, () => {
  it.scopedLive("the server's user cannot change a file of root by links in place of files that a start writes", () =>
    Effect.gen(function* () {
      const { folder, target } = yield* withTarget
      yield* runAs(planter, folder, target)
      // the start may fail, because the server's user can prevent it
      yield* Effect.ignore(EmbeddedPostgres.make({ directory: folder, replicas: 1, startTimeout: "5 seconds" }))
      isUntouched(target)
    })
  )

  it.scopedLive("the server's user cannot write into the cluster's folder, but into those of its servers", () =>
    Effect.gen(function* () {
      const { directory: folder } = yield* EmbeddedPostgres.make({ directory })
      const { gid, uid } = yield* user
      const tries = (name: string) => spawnSync("touch", [path.join(folder, name)], { uid, gid }).status === 0
      expect([tries("pwfile"), tries("native"), tries("primary/mine")]).toEqual([false, false, true])
    })
  )

  it.scopedLive("the server's user cannot have a file written over a link, a pipe or a file of root", () =>
    Effect.gen(function* () {
      const { folder, target } = yield* withTarget
      const owner = yield* user
      const data = path.join(folder, "data")
      yield* Folder.makeData(data, owner)
      const at = (name: string) => path.join(data, name)
      fs.symlinkSync(target, at("symbolic"))
      fs.linkSync(target, at("hard"))
      spawnSync("mkfifo", [at("pipe")])
      fs.writeFileSync(at("other"), "")
      for (const name of ["symbolic", "hard", "pipe", "other"]) {
        const written = yield* Effect.all([
          Effect.exit(Files.append(at(name), "mine", owner)),
          Effect.exit(Files.create(at(name), "mine", owner))
        ])
        expect(written.map(Exit.isFailure), name).toEqual([true, true])
      }
      fs.unlinkSync(at("hard"))
      isUntouched(target)
      yield* Files.create(at("own"), "a\n", owner)
      yield* Files.append(at("own"), "b\n", owner)
      expect(fs.readFileSync(at("own"), "utf8")).toBe("a\nb\n")
      expect(fs.statSync(at("own"))).toMatchObject({ uid: owner.uid, gid: owner.gid, mode: 0o100600 })
    })
  )

  it.scopedLive(
    "the server's user cannot remove foreign shared memory by a forged pid file, nor block the release by a pipe",
    () =>
      Effect.gen(function* () {
        const owner = yield* user
        const made = spawnSync("ipcmk", ["-M", "4096"], { encoding: "utf8" })
        const segment = /\d+/.exec(made.stdout)?.[0] ?? ""
        yield* Effect.addFinalizer(() => Effect.sync(() => spawnSync("ipcrm", ["-m", segment])))
        const isThere = () =>
          fs
            .readFileSync("/proc/sysvipc/shm", "utf8")
            .split("\n")
            .some((line) => line.trim().split(/\s+/)[1] === segment)
        expect(isThere()).toBe(true)
        for (const pidFile of ['printf \'\\n\\n\\n\\n\\n\\n0 %s\\n\' "$2" >"$1"', 'mkfifo "$1"']) {
          const scope = yield* Scope.make()
          const cluster = yield* Scope.extend(EmbeddedPostgres.make({ directory }), scope)
          yield* cluster.primary.stop
          const file = path.join(cluster.directory, "primary", "postmaster.pid")
          const planted = spawnSync("/bin/sh", ["-c", pidFile, "sh", file, segment], { uid: owner.uid, gid: owner.gid })
          expect(planted.status).toBe(0)
          yield* Scope.close(scope, Exit.void)
          expect(fs.existsSync(cluster.directory)).toBe(false)
          expect(isThere()).toBe(true)
        }
      })
  )

  it.scopedLive("a cluster is refused in a folder that the server's user can change", () =>
    Effect.gen(function* () {
      const { folder } = yield* withTarget
      const owner = yield* user
      const parent = path.join(folder, "parent")
      const tries = (mode: number, uid = 0, gid = 0) => {
        fs.chmodSync(parent, mode)
        fs.chownSync(parent, uid, gid)
        return Effect.map(Effect.exit(Effect.scoped(Folder.make(parent, owner))), Exit.isSuccess)
      }
      fs.mkdirSync(parent)
      expect(yield* tries(0o755)).toBe(true)
      expect(yield* tries(0o1777)).toBe(true)
      expect(yield* tries(0o777)).toBe(false)
      expect(yield* tries(0o755, owner.uid)).toBe(false)
      expect(yield* tries(0o1777, owner.uid)).toBe(false)
      expect(yield* tries(0o775, 0, owner.gid)).toBe(false)
      const error = yield* Effect.flip(Folder.make(parent, owner))
      expect(error.reason).toContain(`OS user ${owner.name} can change ${parent}`)
    })
  )
})
