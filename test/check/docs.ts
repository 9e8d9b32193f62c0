/**
 * Compiles the examples of the documentation, as a step of `npm run check`: every `@example` in
 * `src`, and every block fenced as `ts` in docstrings, READMEs and guides, is a module.
 *
 * A block whose first line is a comment with a file name (`// db.ts`) can be imported under that
 * name by the other blocks of its document. A text other than a program has another fence.
 */
import { spawnSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("../../", import.meta.url))
const read = (file: string): string => fs.readFileSync(path.join(root, file), "utf8")
const lineOf = (text: string, index: number): number => text.slice(0, index).split("\n").length

const sources = fs
  .readdirSync(path.join(root, "src"), { recursive: true, encoding: "utf8" })
  .filter((file) => file.endsWith(".ts") && file !== "index.ts")
  .sort()
  .map((file) => `src/${file}`)
interface Example {
  readonly file: string
  /** The first line, counted from 1. */
  readonly line: number
  readonly lines: ReadonlyArray<string>
}

const examplesOfSource = (file: string): ReadonlyArray<Example> => {
  const text = read(file)
  return [...text.matchAll(/\/\*\*[\s\S]*?\*\//g)].flatMap((doc) => {
    const first = lineOf(text, doc.index)
    const lines = doc[0].split("\n").slice(0, -1)
    let next = 0
    return lines.flatMap((line, index): ReadonlyArray<Example> => {
      if (index < next) return []
      const isFence = /^\s*\*\s*```ts\s*$/.test(line)
      if (!isFence && !/^\s*\*\s*@example\b/.test(line)) return []
      const rest = lines.slice(index + 1)
      const end = rest.findIndex((other) => (isFence ? /^\s*\*\s*```/ : /^\s*\*\s*@[a-z]/).test(other))
      const body = rest
        .slice(0, end === -1 ? rest.length : end)
        // blanks in place of the margin, so that the columns in errors are those of the document
        .map((other) => other.replace(/^\s*\*?/, (margin) => " ".repeat(margin.length)).replace(/^\s*```.*$/, ""))
      next = index + 1 + body.length
      return [{ file, line: first + index + 1, lines: body }]
    })
  })
}

const examplesOfDocument = (file: string): ReadonlyArray<Example> => {
  if (!fs.existsSync(path.join(root, file))) return []
  const lines = read(file).split("\n")
  return lines.flatMap((line, index): ReadonlyArray<Example> => {
    if (!/^\s*```ts\s*$/.test(line)) return []
    const rest = lines.slice(index + 1)
    const end = rest.findIndex((other) => /^\s*```\s*$/.test(other))
    return [{ file, line: index + 2, lines: rest.slice(0, end === -1 ? rest.length : end) }]
  })
}

const compile = (examples: ReadonlyArray<Example>): ReadonlyArray<string> => {
  const cache = path.join(root, "node_modules/.cache")
  fs.mkdirSync(cache, { recursive: true })
  // inside of the project, so that packages are found from there
  const folder = fs.mkdtempSync(path.join(cache, "effect-db-docs-"))
  try {
    const written = new Map<string, Example>()
    for (const example of examples) {
      const named = example.lines[0]?.match(/^\/\/ ([\w.-]+\.ts)\b/)?.[1]
      const byName = path.join(example.file, named ?? "")
      const name = named === undefined || written.has(byName) ? path.join(example.file, `${example.line}.ts`) : byName
      written.set(name, example)
      fs.mkdirSync(path.join(folder, example.file), { recursive: true })
      // empty lines first, so that the lines in errors are those of the document
      fs.writeFileSync(path.join(folder, name), "\n".repeat(example.line - 1) + example.lines.join("\n"))
    }
    fs.writeFileSync(path.join(folder, "package.json"), JSON.stringify({ type: "module" }))
    fs.writeFileSync(
      path.join(folder, "tsconfig.json"),
      JSON.stringify({
        extends: "../../../tsconfig.json",
        compilerOptions: { noUnusedLocals: false },
        include: [],
        files: [...written.keys()]
      })
    )
    const { error, status, stderr, stdout } = spawnSync(
      path.join(root, "node_modules/.bin/tsc"),
      ["-p", folder, "--pretty", "false"],
      { cwd: root, encoding: "utf8" }
    )
    if (error !== undefined) throw error
    const lines = `${stdout}${stderr}`.split("\n").filter((line) => line.trim() !== "")
    if (status !== 0 && lines.length === 0) return [`tsc ended with status ${status}`]
    const prefix = `${path.relative(root, folder)}${path.sep}`
    return lines.map((line) => {
      const at = line.startsWith(prefix) ? line.slice(prefix.length).match(/^(.*)\((\d+,\d+)\)(.*)$/) : null
      const example = at === null ? undefined : written.get(at[1] ?? "")
      return example === undefined ? line : `${example.file}:${at?.[2]?.replace(",", ":")}${at?.[3]}`
    })
  } finally {
    fs.rmSync(folder, { recursive: true, force: true })
  }
}

const guides = fs
  .readdirSync(path.join(root, "examples/guides"))
  .filter((file) => file.endsWith(".md"))
  .sort()
  .map((file) => `examples/guides/${file}`)
const documents = ["README.md", "examples/README.md", ...guides]
const examples = [...sources.flatMap(examplesOfSource), ...documents.flatMap(examplesOfDocument)]
const errors = compile(examples)

for (const error of errors) console.error(error)
const inDocuments = examples.filter((example) => documents.includes(example.file)).length
console.log(
  `${examples.length - inDocuments} examples in src and ${inDocuments} in ${documents.length} documents, ${errors.length} errors`
)
process.exitCode = errors.length === 0 ? 0 : 1
