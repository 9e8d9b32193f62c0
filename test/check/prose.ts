/**
 * Checks the words of the code by the rules of CONTRIBUTING.md: the first word of docstrings, pronouns that stand for a term of the
 * glossary, and the first word of test names. Prints each place and fails if there is one. `--count` prints a count by file instead.
 */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("../../", import.meta.url))

interface Finding {
  readonly file: string
  readonly line: number
  readonly text: string
}

const questionWord =
  /^\/\*\*[\s*]*(?:@internal\s+)?((?:What|How|Whether|Where|Who|Whose|Whoever|Those|Nobody|Somebody)\b[^\n]*)/
// in quotes it is the name of an OS user
const pronoun = /(?<!["`])\b(?:nobody|somebody|whoever|whomever|whom)\b(?!["`])/i
const testName = /\b(?:it|test|describe)(?:\.\w+)*(?:\([^()]*\))?\(\s*(["'`])((?:and|nor|of|that|where|so)\b.*?)\1/g

const files = execFileSync("git", ["ls-files"], { cwd: root, encoding: "utf8" }).trim().split("\n")
const lineOf = (text: string, index: number): number => text.slice(0, index).split("\n").length

const docstrings = (file: string, text: string): ReadonlyArray<Finding> =>
  [...text.matchAll(/\/\*\*[\s\S]*?\*\//g)].flatMap((match) => {
    const first = questionWord.exec(match[0])?.[1]
    return first === undefined ? [] : [{ file, line: lineOf(text, match.index), text: first.replace(/\s*\*\/$/, "") }]
  })

const pronouns = (file: string, text: string): ReadonlyArray<Finding> =>
  text.split("\n").flatMap((line, index) => (pronoun.test(line) ? [{ file, line: index + 1, text: line.trim() }] : []))

const testNames = (file: string, text: string): ReadonlyArray<Finding> =>
  [...text.matchAll(testName)].map((match) => ({ file, line: lineOf(text, match.index), text: match[2] ?? "" }))

const findings = files.flatMap((file) => {
  const isSource = /^(?:src|examples)\/.*\.[jt]s$/.test(file)
  const isProse = /^(?:README|CHANGELOG|CONTRIBUTING|SECURITY)\.md$|^examples\/.*\.md$/.test(file)
  const isTest = /^test\/.*\.ts$/.test(file)
  if (!isSource && !isProse && !isTest) return []
  const text = fs.readFileSync(path.join(root, file), "utf8")
  return [
    ...(isSource || isTest ? docstrings(file, text) : []),
    ...(isSource || (isProse && file !== "CONTRIBUTING.md") ? pronouns(file, text) : []),
    ...(isTest ? testNames(file, text) : [])
  ]
})

if (process.argv.includes("--count")) {
  const counts = new Map<string, number>()
  for (const { file } of findings) counts.set(file, (counts.get(file) ?? 0) + 1)
  for (const [file, count] of [...counts].sort((a, b) => b[1] - a[1])) console.log(`${count}\t${file}`)
} else for (const { file, line, text } of findings) console.log(`${file}:${line}: ${text}`)
console.log(`${findings.length} places in ${files.length} files`)
if (findings.length > 0) process.exitCode = 1
