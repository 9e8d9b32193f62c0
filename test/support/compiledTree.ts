/**
 * The library, the programs of the tests and the examples as JavaScript, because a loader of
 * TypeScript takes seconds of CPU time at each start, and the tests start hundreds of programs.
 *
 * Each program is also bundled with the packages of Effect, which makes its start twice as fast: Node
 * then loads a few files, and not a thousand.
 *
 * The files are in a tree, a folder whose name is a hash of the sources. So a run keeps its tree while
 * the sources are edited.
 */
import { createHash } from "node:crypto"
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath, pathToFileURL } from "node:url"
import { build, type Plugin, transform } from "esbuild"

const root = fileURLToPath(new URL("../../", import.meta.url))

/** The folder of the trees. It is in `node_modules`, so that imports of packages work. */
const cache = path.join(root, "node_modules/.cache/effect-db/")

/** The environment variable with the tree of a run, for the workers of the run. */
const variable = "EFFECT_DB_TEST_COMPILED"

/** The age at which an unused tree is removed, in ms. */
const maxAge = 86_400_000

interface Source {
  /** The path in the project. */
  readonly name: string
  readonly content: Buffer
}

const readSources = (): ReadonlyArray<Source> =>
  ["src", "test/support", "test/simulation", "examples"].flatMap((folder) =>
    fs
      .readdirSync(path.join(root, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => path.relative(root, path.join(entry.parentPath, entry.name)))
      // `npm run simulate` compiles to a folder of its own
      .filter((name) => !name.includes(`${path.sep}.out${path.sep}`))
      .sort()
      .map((name) => ({ name, content: fs.readFileSync(path.join(root, name)) }))
  )

const hashOf = (sources: ReadonlyArray<Source>): string => {
  const hash = createHash("sha256")
  for (const name of ["package-lock.json", "test/support/compiledTree.ts"])
    hash.update(fs.readFileSync(path.join(root, name)))
  for (const { content, name } of sources) hash.update(`${name}\0${content.length}\0`).update(content)
  return hash.digest("hex").slice(0, 16)
}

const toJavaScript = (name: string): string => name.replace(/\.ts$/, ".js")

const write = (file: string, content: string | Uint8Array): void => {
  fs.mkdirSync(path.dirname(file), { recursive: true })
  fs.writeFileSync(file, content)
}

/** Compiles a file, and copies the TypeScript, because a thread of a program may load it. */
const compile = async (tree: string, { content, name }: Source): Promise<void> => {
  if (name.endsWith(".ts")) {
    const { code } = await transform(content, {
      loader: "ts",
      format: "esm",
      target: "es2022",
      sourcefile: path.join(root, name),
      sourcemap: "inline",
      sourcesContent: false
    })
    write(path.join(tree, toJavaScript(name)), code)
  }
  write(path.join(tree, name), content)
}

/** An empty source map for the packages: with their own maps, a program would start slower. */
const noMap = `\n//# sourceMappingURL=data:application/json;base64,${btoa('{"version":3,"sources":[""],"mappings":"A"}')}`

/** Resolves the library to its sources, and bundles no package but those of Effect. */
const bundling = (folder: string): Plugin => ({
  name: "programs",
  setup: ({ onLoad, onResolve }) => {
    onResolve({ filter: /^effect-db(\/|$)/ }, ({ path: name }) =>
      name === "effect-db/package.json"
        ? { path: name, external: true }
        : { path: path.join(root, "src", name === "effect-db" ? "index.ts" : `${name.slice("effect-db/".length)}.ts`) }
    )
    onResolve({ filter: /^[^./]/ }, ({ kind, path: name }) =>
      kind === "entry-point" || /^(effect|@effect)\//.test(`${name}/`) ? undefined : { path: name, external: true }
    )
    onLoad({ filter: /\.ts$/ }, ({ path: file }) => {
      const url = pathToFileURL(toJavaScript(path.join(folder, path.relative(root, file)))).href
      const contents = fs
        .readFileSync(file, "utf8")
        // in a bundle, `import.meta.url` is the URL of the bundle, and not that of the program
        .replaceAll("import.meta.url", JSON.stringify(url))
        .replace(/new URL\("(\.[^"]+)\.ts"/g, 'new URL("$1.js"')
      return { contents, loader: "ts" }
    })
    onLoad({ filter: /[\\/]node_modules[\\/].*\.js$/ }, ({ path: file }) => ({
      contents: fs.readFileSync(file, "utf8") + noMap,
      loader: "js"
    }))
  }
})

/** Programs that are not bundled, because they import a module several times by different URLs. */
const unbundled = new Set(["examples/10-no-lifecycle.ts"])

/** The programs, and threads of programs, that are not directly in `examples`. */
const programs = (
  JSON.parse(fs.readFileSync(path.join(root, "package.json"), "utf8")).knip.entry as ReadonlyArray<string>
)
  .filter((name) => name.startsWith("test/support/"))
  .concat("test/support/syncThread.ts", "examples/sync/todos.ts", "examples/service/main.ts")

const bundle = (tree: string, finalTree: string, sources: ReadonlyArray<Source>) => {
  const folder = path.join(tree, "programs")
  const isEntry = ({ name }: Source) =>
    !unbundled.has(name) && (programs.includes(name) || /^examples\/[^/]+(?<!\.test)\.ts$/.test(name))
  for (const { content, name } of sources) if (!name.endsWith(".ts")) write(path.join(folder, name), content)
  return build({
    absWorkingDir: root,
    entryPoints: sources.filter(isEntry).map(({ name }) => name),
    outbase: root,
    outdir: folder,
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "node",
    target: "node20",
    sourcemap: "linked",
    sourcesContent: false,
    logLevel: "error",
    plugins: [bundling(path.join(finalTree, "programs"))]
  })
}

/** Compiles the sources, unless they have a tree already, and sets the variable. */
export const compileTree = async (): Promise<void> => {
  const sources = readSources()
  const tree = path.join(cache, hashOf(sources))
  process.env[variable] = tree
  if (fs.existsSync(tree)) return fs.utimesSync(tree, new Date(), new Date())
  fs.mkdirSync(cache, { recursive: true })
  for (const name of fs.readdirSync(cache)) {
    const old = path.join(cache, name)
    if (Date.now() - fs.statSync(old).mtimeMs > maxAge) fs.rmSync(old, { recursive: true, force: true })
  }
  // another run may compile at the same time, or use the tree as soon as it exists
  const temporary = fs.mkdtempSync(path.join(cache, "new-"))
  fs.chmodSync(temporary, 0o755)
  await Promise.all([...sources.map((source) => compile(temporary, source)), bundle(temporary, tree, sources)])
  const meta: Record<string, unknown> = JSON.parse(fs.readFileSync(path.join(root, "package.json"), "utf8"))
  const exports = { ".": "./src/index.js", "./package.json": "./package.json", "./*": "./src/*.js" }
  write(path.join(temporary, "package.json"), JSON.stringify({ ...meta, exports }))
  try {
    fs.renameSync(temporary, tree)
  } catch (cause) {
    fs.rmSync(temporary, { recursive: true, force: true })
    if (!fs.existsSync(tree)) throw cause
  }
}

/** Returns the tree of this run. */
const currentTree = (): string => {
  const tree = process.env[variable]
  if (tree === undefined) throw new Error(`${variable} is not set: vitest.config.ts compiles the sources`)
  return tree
}

/** Returns the compiled copy of a TypeScript file, given by its path in the project. */
export const compiledFile = (name: string): string =>
  path.join(currentTree(), toJavaScript(path.relative(root, path.resolve(root, name))))

/** Returns the arguments of Node that run a TypeScript file, given by its path in the project. */
export const compiled = (name: string): ReadonlyArray<string> => {
  const copy = compiledFile(name)
  const program = path.join(currentTree(), "programs", path.relative(currentTree(), copy))
  return ["--enable-source-maps", fs.existsSync(program) ? program : copy]
}
