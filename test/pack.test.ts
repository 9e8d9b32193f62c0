import { execFile } from "node:child_process"
import * as fs from "node:fs/promises"
import * as os from "node:os"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest"

const root = fileURLToPath(new URL("../", import.meta.url))

/** The parts of a package's manifest that the tests read. */
interface Manifest {
  readonly version: string
  readonly peerDependencies: Readonly<Record<string, string>>
  readonly peerDependenciesMeta: Readonly<Record<string, { readonly optional?: boolean }>>
}

const json = async <A>(file: string): Promise<A> => JSON.parse(await fs.readFile(path.join(root, file), "utf8"))

const run = async (
  cwd: string,
  command: string,
  args: ReadonlyArray<string>,
  env: NodeJS.ProcessEnv = {}
): Promise<string> => {
  const { stdout } = await promisify(execFile)(command, [...args], { cwd, env: { ...process.env, ...env } }).catch(
    (error) => {
      throw new Error(`${command} ${args.join(" ")}\n${error.stdout}${error.stderr}`)
    }
  )
  return stdout
}

/**
 * Packs a copy of the project, so that the project's own `dist` is not touched; returns the tarball
 * and its contents.
 */
const pack = async (folder: string) => {
  const copy = path.join(folder, "project")
  const skipped = new Set(["node_modules", "dist", "docs", ".git"])
  await fs.cp(root, copy, { recursive: true, filter: (from) => !skipped.has(path.basename(from)) })
  await fs.symlink(path.join(root, "node_modules"), path.join(copy, "node_modules"))
  await run(copy, "npm", ["pack", "--silent", "--pack-destination", folder])
  const { version } = await json<Manifest>("package.json")
  const tarball = path.join(folder, `effect-db-${version}.tgz`)
  const list = await run(folder, "tar", ["-tzf", tarball])
  const files = list.split("\n").flatMap((line) => (line === "" ? [] : [line.replace(/^package\//, "")]))
  return { tarball, files }
}

/**
 * Installs the tarball as a user does, with the peer dependencies in the versions of the lock file;
 * optional ones are left out.
 */
const install = async (folder: string, tarball: string) => {
  const consumer = path.join(folder, "consumer")
  await fs.mkdir(consumer)
  await fs.writeFile(path.join(consumer, "package.json"), JSON.stringify({ private: true, type: "module" }))
  const { peerDependencies, peerDependenciesMeta } = await json<Manifest>("package.json")
  const lock = await json<{ readonly packages: Record<string, { readonly version: string }> }>("package-lock.json")
  const peers = Object.keys(peerDependencies).filter((name) => peerDependenciesMeta[name]?.optional !== true)
  await run(consumer, "npm", [
    ...["install", "--prefer-offline", "--no-audit", "--no-fund", "--ignore-scripts", "--silent", tarball],
    // the declarations of @effect/sql-pg need @types/pg, which it does not install
    ...[...peers, "@types/node", "@types/pg"].map((name) => `${name}@${lock.packages[`node_modules/${name}`]?.version}`)
  ])
  return consumer
}

let folder: string
let consumer: string
let files: ReadonlyArray<string>

beforeAll(async () => {
  folder = await fs.mkdtemp(path.join(os.tmpdir(), "effect-db-pack-"))
  const packed = await pack(folder)
  files = packed.files
  consumer = await install(folder, packed.tarball)
}, 300_000)

afterAll(() => fs.rm(folder, { recursive: true, force: true }))

const node = async (name: string, program: string, env: NodeJS.ProcessEnv = {}): Promise<unknown> => {
  await fs.writeFile(path.join(consumer, name), program)
  return JSON.parse(await run(consumer, process.execPath, [name], env))
}

describe("the tarball", () => {
  it("the tarball holds the build, the sources and the introductory documents, and nothing else", () => {
    const tops = new Set(files.map((file) => file.split("/")[0]))
    expect([...tops].sort()).toEqual(["CHANGELOG.md", "LICENSE", "README.md", "dist", "package.json", "src"])
    const kinds = new Set(files.filter((file) => /^(dist|src)\//.test(file)).map((file) => file.replace(/^[^.]*/, "")))
    expect([...kinds].sort()).toEqual([".d.ts", ".d.ts.map", ".js", ".js.map", ".ts"])
  })

  it("the tarball holds the program, the types and their maps for every source", () => {
    const sources = files.filter((file) => file.startsWith("src/"))
    const built = sources.flatMap((file) =>
      [".js", ".js.map", ".d.ts", ".d.ts.map"].map((end) => file.replace(/^src/, "dist").replace(/\.ts$/, end))
    )
    expect(files.filter((file) => file.startsWith("dist/")).sort()).toEqual(built.sort())
  })

  it("the declarations of the public modules import nothing internal", async () => {
    const declarations = files.filter((file) => /^dist\/[^/]+\.d\.ts$/.test(file))
    const texts = await Promise.all(
      declarations.map((file) => fs.readFile(path.join(consumer, "node_modules/effect-db", file), "utf8"))
    )
    const leaking = declarations.filter((_, index) => /["']\.\/internal\//.test(texts[index] ?? ""))
    expect(leaking.map((file) => path.basename(file, ".d.ts"))).toEqual([])
  })
})

describe("an installation of the package", () => {
  it("an installation runs in Node, against a server, and lets the process end", { timeout: 60_000 }, async () => {
    const rows = await node(
      "program.js",
      `
        import { Effect, Redacted } from "effect"
        import { Database, DatabaseError } from "effect-db"

        class App extends Database.Service()("app") {}

        const program = Effect.gen(function* () {
          const sql = yield* App.writer
          yield* sql\`CREATE TEMPORARY TABLE item (id int PRIMARY KEY) ON COMMIT DROP\`
          yield* sql\`INSERT INTO item \${sql.insert([{ id: 1 }, { id: 2 }])}\`
          const rows = yield* sql\`SELECT id FROM item ORDER BY id\`
          const twice = yield* sql\`INSERT INTO item (id) VALUES (1)\`.pipe(sql.withTransaction, DatabaseError.refine, Effect.flip)
          return { rows, twice: twice._tag }
        }).pipe(App.withTransaction({ isolation: "serializable" }))

        const result = await Effect.runPromise(
          Effect.provide(program, App.layer({ writer: Redacted.make(process.env.WRITER) }))
        )
        console.log(JSON.stringify(result))
      `,
      { WRITER: inject("postgres").writer }
    )
    expect(rows).toEqual({ rows: [{ id: 1 }, { id: 2 }], twice: "UniqueViolation" })
  })

  it("an installation can be required by CommonJS, and runs against a server", { timeout: 60_000 }, async () => {
    const answer = await node(
      "program.cjs",
      `
        const { Redacted } = require("effect")
        const { Database, DatabaseError, DatabaseRuntime } = require("effect-db")

        class App extends Database.Service()("app") {}
        const runtime = DatabaseRuntime.make({ app: App }, App.layer({ writer: Redacted.make(process.env.WRITER) }))

        const main = async () => {
          await runtime.open()
          const { app } = runtime.databases
          const rows = await runtime.unitOfWork(() => app.writer\`SELECT 1 AS one\`)
          const error = await app.writer\`SELECT 1 / 0\`.then(() => undefined, (error) => error)
          await runtime.close()
          console.log(JSON.stringify({
            rows,
            tag: error._tag,
            isOurs: DatabaseError.isDatabaseError(error),
            isSame: require("effect-db/Database").Service === Database.Service
          }))
        }
        main()
      `,
      { WRITER: inject("postgres").writer }
    )
    expect(answer).toMatchObject({ rows: [{ one: 1 }], isOurs: true, isSame: true })
  })

  it("an installation is one copy for imports and requires", { timeout: 60_000 }, async () => {
    const isSame = await node(
      "both.cjs",
      `
        const required = require("effect-db")
        import("effect-db").then((imported) => console.log(JSON.stringify(imported.Database.Service === required.Database.Service)))
      `
    )
    expect(isSame).toBe(true)
  })

  it("an installation exports each module under its own name, with the same values as in the root", {
    timeout: 60_000
  }, async () => {
    const modules = files.flatMap((file) => file.match(/^src\/([^./]+)\.ts$/)?.[1] ?? []).filter((_) => _ !== "index")
    const different = await node(
      "modules.js",
      `
        import * as all from "effect-db"
        const different = []
        for (const name of ${JSON.stringify(modules)}) {
          const module = await import("effect-db/" + name)
          // a module of types alone has no values
          const same = all[name] !== undefined && Object.keys(module).every((key) => module[key] === all[name][key])
          if (!same) different.push(name)
        }
        console.log(JSON.stringify(different))
      `
    )
    expect(different).toEqual([])
  })

  it("an installation does not export its internal files", { timeout: 60_000 }, async () => {
    const codes = await node(
      "internal.js",
      `
        const paths = ["internal/client/executor", "internal/client/executor.js", "internal/embedded/server", "dist/internal/client/executor.js", "dist/index.js"]
        const codes = paths.map((path) => import("effect-db/" + path).then(() => "imported", (error) => error.code))
        console.log(JSON.stringify(await Promise.all(codes)))
      `
    )
    expect(new Set(codes as ReadonlyArray<string>)).toEqual(
      new Set(["ERR_PACKAGE_PATH_NOT_EXPORTED", "ERR_MODULE_NOT_FOUND"])
    )
  })

  const source = `
    import * as Effect from "effect/Effect"
    import * as Layer from "effect/Layer"
    import * as Redacted from "effect/Redacted"
    import { DatabaseError, RequestTransaction, TestDatabase, UnitOfWork } from "effect-db"
    import * as Database from "effect-db/Database"

    export class App extends Database.Service<App>()("app") {}

    export const AppLive: Layer.Layer<App, DatabaseError.StartupError> = App.layer({ writer: Redacted.make("") })
    export const AppTest: Layer.Layer<App, DatabaseError.StartupError> = Layer.provide(TestDatabase.layer(App), AppLive)

    export const count: Effect.Effect<number, DatabaseError.DatabaseError, App> = Effect.gen(function* () {
      const sql = yield* App.reader
      const [row] = yield* sql<{ readonly count: number }>\`SELECT count(*)::int AS count FROM item\`
      return row?.count ?? 0
    }).pipe(UnitOfWork.run(), App.withTransaction({ access: "read only" }), DatabaseError.refine)

    export const middleware = RequestTransaction.middleware()
    export const running: Promise<number> = Effect.runPromise(Effect.provide(count, AppTest))

    // @ts-expect-error: the database is not provided
    export const failing: Promise<number> = Effect.runPromise(count)
    // @ts-expect-error: internal files cannot be imported
    export type { Engine } from "effect-db/internal/client/executor"
  `
  it("an installation makes the compiler say that withTransaction and run have to be called in a pipe", {
    timeout: 120_000
  }, async () => {
    const project = path.join(consumer, "uncalled")
    await fs.mkdir(project)
    await fs.writeFile(
      path.join(project, "uncalled.ts"),
      `
        import { Database, UnitOfWork } from "effect-db"
        class App extends Database.Service<App>()("app") {}
        export const transaction = App.writer.pipe(App.withTransaction)
        export const unit = App.writer.pipe(UnitOfWork.run)
      `
    )
    const compilerOptions = {
      module: "NodeNext",
      target: "ES2022",
      lib: ["ES2023"],
      types: ["node"],
      strict: true,
      noEmit: true,
      skipLibCheck: true
    }
    await fs.writeFile(path.join(project, "tsconfig.json"), JSON.stringify({ compilerOptions }))
    const compile = run(root, path.join(root, "node_modules/.bin/tsc"), ["-p", project, "--pretty", "false"])
    const output = await compile.then(
      () => "nothing",
      (error: Error) => error.message
    )
    expect(output).toContain("In a pipe it has to be called: withTransaction()")
    expect(output).toContain("In a pipe it has to be called: UnitOfWork.run()")
  })

  const settings = [
    { module: "NodeNext", moduleResolution: "NodeNext" },
    { module: "ESNext", moduleResolution: "Bundler" }
  ]
  for (const setting of settings) {
    it(`an installation has types for moduleResolution ${setting.moduleResolution}`, { timeout: 120_000 }, async () => {
      const project = path.join(consumer, setting.moduleResolution)
      await fs.mkdir(project)
      await fs.writeFile(path.join(project, "consumer.ts"), source)
      await fs.writeFile(
        path.join(project, "tsconfig.json"),
        JSON.stringify({
          compilerOptions: {
            ...setting,
            target: "ES2022",
            lib: ["ES2023"],
            types: ["node"],
            strict: true,
            exactOptionalPropertyTypes: true,
            declaration: true,
            noEmit: true,
            skipLibCheck: false
          }
        })
      )
      await run(root, path.join(root, "node_modules/.bin/tsc"), ["-p", project, "--pretty", "false"])
    })
  }
})
