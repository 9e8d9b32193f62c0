/**
 * Checks the docstrings of the public modules, as a step of `npm run check`:
 *
 * - every module has a docstring with `@since`, every export one with `@since` and `@category`
 * - every exported function has an example that is fenced as `ts`, and a `@see`
 * - every field of an interface, and every optional field of another type, has a docstring
 * - every optional field of an interface of options or settings has a `@default`
 *
 * An export with `@internal` is exempt. Prints each place and fails if there is one.
 */
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("../../", import.meta.url))

interface Module {
  readonly file: string
  readonly text: string
  /** The text with blanks in place of comments, so that their words and braces are not taken for code. */
  readonly code: string
}

interface Declaration {
  readonly kind: string
  readonly name: string
  readonly index: number
  readonly doc: string
  /** The code after the name. */
  readonly rest: string
}

interface Finding {
  readonly file: string
  readonly line: number
  readonly text: string
}

const readModule = (file: string): Module => {
  const text = fs.readFileSync(path.join(root, file), "utf8")
  return {
    file,
    text,
    code: text.replace(/\/\*[\s\S]*?\*\/|^\s*\/\/.*$/gm, (comment) => comment.replace(/[^\n]/g, " "))
  }
}

/** Returns the docstring that ends at an index. */
const docstringAt = (text: string, index: number): string => {
  const before = text.slice(0, index).trimEnd()
  return before.endsWith("*/") ? before.slice(before.lastIndexOf("/*")) : ""
}

const hasTag = (doc: string, tag: string): boolean => new RegExp(`^[ /]*\\*+ *@${tag} +\\S`, "m").test(doc)
const hasExample = (doc: string): boolean => /^ *\* ```ts$/m.test(doc)

const finding = ({ file, text }: Module, index: number, problem: string): Finding => ({
  file,
  line: text.slice(0, index).split("\n").length,
  text: problem
})

// ---- exports

const declaration =
  /^export (?:default )?(?:declare )?(?:abstract )?(?:async )?(?:(const|let|function\*?|class|interface|type|namespace|enum) ([\w$]+)|const \{([^}]*)\})/gm

/**
 * The names in `export { ... }`; types that are only re-exported, with `export type { ... }`, are
 * left out.
 */
const list = /^export \{([^}]*)\}/gm

const declarationsOf = ({ code, text }: Module): ReadonlyArray<Declaration> => {
  const overloaded = new Set<string>()
  return [...code.matchAll(declaration)].flatMap((match) => {
    const { 1: kind = "const", 2: name = `{${match[3]}}`, index } = match
    // the docstring of a function stands at its first overload, that of a namespace at its class
    if (overloaded.has(name) && (kind === "function" || kind === "namespace")) return []
    overloaded.add(name)
    return [{ kind, name, index, doc: docstringAt(text, index), rest: code.slice(index + match[0].length) }]
  })
}

/** Returns the declaration of a name that a module lists in `export { ... }`. */
const listedOf = (module: Module): ReadonlyArray<Declaration> =>
  [...module.code.matchAll(list)].flatMap(({ 1: names = "", index: start }) =>
    [...names.matchAll(/([\w$]+)(?: as ([\w$]+))?/g)].map((match) => {
      const index = start + "export {".length + match.index
      const { 1: origin = "", 2: name = origin } = match
      const at = new RegExp(`^(?:const|function) ${origin}\\b`, "m").exec(module.code)
      return {
        kind: "const",
        name,
        index,
        doc: docstringAt(module.text, index) || docstringAt(module.text, start),
        rest: at === null ? "" : module.code.slice(at.index + at[0].length)
      }
    })
  )

/** Checks if a declaration is a function: by its keyword, its type, or the beginning of its value. */
const isFunction = ({ kind, rest }: Declaration): boolean =>
  kind.startsWith("function") ||
  (kind === "const" && /^(?:: \{?\s*[(<]|: [^=\n]*=>| = (?:async )?[(<]|\s*=\s*dual\(|\s*=\s*<)/.test(rest))

const checkExport = (module: Module, one: Declaration): ReadonlyArray<Finding> => {
  const { doc, index, name } = one
  if (doc.includes("@internal")) return []
  const missing =
    doc === ""
      ? ["a docstring"]
      : [
          ...["since", "category"].filter((tag) => !hasTag(doc, tag)).map((tag) => `@${tag}`),
          ...(isFunction(one) && !hasExample(doc) ? ["an example, fenced as ts"] : []),
          ...(isFunction(one) && !hasTag(doc, "see") ? ["@see"] : [])
        ]
  return missing.length === 0 ? [] : [finding(module, index, `export ${name} lacks ${missing.join(" and ")}`)]
}

// ---- fields

/** Returns the code of a block, from the index of its brace to the end of the block. */
const blockAt = (code: string, open: number): string => {
  let depth = 0
  for (let i = open; i < code.length; i++) {
    if (code[i] === "{") depth++
    if (code[i] === "}" && --depth === 0) return code.slice(open, i)
  }
  return code.slice(open)
}

const checkField = (module: Module, owner: string, name: string, index: number, isOption: boolean) => {
  const doc = docstringAt(module.text, index)
  const missing = doc === "" ? "a docstring" : isOption && !hasTag(doc, "default") ? "@default" : undefined
  return missing === undefined ? [] : [finding(module, index, `field ${owner}.${name} lacks ${missing}`)]
}

const interfaceFields = (module: Module): ReadonlyArray<Finding> =>
  [...module.code.matchAll(/^( *)(?:export )?interface ([\w$]+)[^{]*\{/gm)].flatMap((match) => {
    const { 1: margin = "", 2: owner = "", index } = match
    const open = index + match[0].length - 1
    const isOptions = /(?:Options|Settings)$/.test(owner)
    const field = new RegExp(`^${margin}  (?:readonly )?([\\w$]+)(\\??):`, "gm")
    return [...blockAt(module.code, open).matchAll(field)].flatMap((member) => {
      const at = open + member.index + member[0].search(/\S/)
      return checkField(module, owner, member[1] ?? "", at, isOptions && member[2] === "?")
    })
  })

const typeFields = (module: Module): ReadonlyArray<Finding> =>
  [...module.code.matchAll(/^(?:export )?type ([\w$]+)/gm)].flatMap(({ 1: owner = "", index }) => {
    // up to the next line that is not indented
    const [body = ""] = /^.*(?:\n(?!\S).*)*/.exec(module.code.slice(index)) ?? []
    return [...body.matchAll(/^ +readonly ([\w$]+)\?:/gm)].flatMap((member) =>
      checkField(module, owner, member[1] ?? "", index + member.index + member[0].search(/\S/), false)
    )
  })

const modules = fs
  .readdirSync(path.join(root, "src"))
  .filter((file) => file.endsWith(".ts") && file !== "index.ts")
  .sort()
  .map((file) => readModule(`src/${file}`))
const all = modules.map((module) => ({ module, exports: [...declarationsOf(module), ...listedOf(module)] }))
const findings = all.flatMap(({ exports, module }) => [
  ...(/^\/\*\*(?:(?!\*\/)[\s\S])*@since \S/.test(module.text)
    ? []
    : [finding(module, 0, "the module lacks a docstring with @since")]),
  ...exports.flatMap((one) => checkExport(module, one)),
  ...interfaceFields(module),
  ...typeFields(module)
])

for (const { file, line, text } of findings) console.log(`${file}:${line}: ${text}`)
const names = all.flatMap(({ exports }) => exports)
const functions = names.filter((one) => !one.doc.includes("@internal") && isFunction(one)).length
console.log(`${names.length} exports, ${functions} of them functions; ${findings.length} problems`)
if (findings.length > 0) process.exitCode = 1
