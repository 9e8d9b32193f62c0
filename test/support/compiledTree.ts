/**
 * The programs of the tests and the examples as JavaScript. The tests start hundreds of programs,
 * and a loader of TypeScript takes three seconds of CPU time at each start, because it handles every
 * module that is loaded.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { transform } from "esbuild"

const root = fileURLToPath(new URL("../../", import.meta.url))

/** The folder of the compiled files. It is in `node_modules`, so that imports of packages work. */
const compiledTree = path.join(root, "node_modules/.cache/effect-db/")

/** Checks by the content if a copy is outdated: a file that is moved keeps its modification time. */
const isOutdated = (copy: string, text: Uint8Array): boolean =>
  !fs.existsSync(copy) || !fs.readFileSync(copy).equals(text)

/** Writes a file in one step, because another run may read it at the same time. */
const write = (file: string, content: string | Uint8Array): void => {
  fs.mkdirSync(path.dirname(file), { recursive: true })
  const temporary = `${file}.${process.pid}`
  fs.writeFileSync(temporary, content)
  fs.renameSync(temporary, file)
}

const compile = async (name: string): Promise<void> => {
  const source = path.join(root, name)
  // the TypeScript is copied too, because a thread of a program may load it
  const copy = path.join(compiledTree, name)
  const text = fs.readFileSync(source)
  if (!isOutdated(copy, text)) return
  if (name.endsWith(".ts")) {
    const { code } = await transform(text, {
      loader: "ts",
      format: "esm",
      target: "es2022",
      sourcefile: source,
      sourcemap: "inline",
      sourcesContent: false
    })
    write(copy.replace(/\.ts$/, ".js"), code)
  }
  write(copy, text)
}

/** Compiles the files that have changed, and makes `effect-db` resolve to the compiled files. */
export const compileTree = async (): Promise<void> => {
  const names = ["src", "test/support", "examples"].flatMap((folder) =>
    fs
      .readdirSync(path.join(root, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => path.relative(root, path.join(entry.parentPath, entry.name)))
  )
  await Promise.all(names.map(compile))
  const meta: Record<string, unknown> = JSON.parse(fs.readFileSync(path.join(root, "package.json"), "utf8"))
  const exports = { ".": "./src/index.js", "./package.json": "./package.json", "./*": "./src/*.js" }
  write(path.join(compiledTree, "package.json"), JSON.stringify({ ...meta, exports }))
}

/** Returns the arguments of Node that run a TypeScript file, given by its path in the project. */
export const compiled = (name: string): ReadonlyArray<string> => [
  "--enable-source-maps",
  path.join(compiledTree, path.relative(root, path.resolve(root, name)).replace(/\.ts$/, ".js"))
]
