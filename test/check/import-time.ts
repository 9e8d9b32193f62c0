/**
 * Prints the time that an import of the built package takes beyond `effect` and `pg`, which a program
 * with a database imports anyway: the shortest of several processes, because other programs delay
 * the rest. The goal is 150 ms; a slow machine takes longer, so the check fails only above five times
 * that.
 *
 * `--each` prints each public module by itself as well.
 */
import { execFileSync } from "node:child_process"
import * as fs from "node:fs"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"

const { values } = parseArgs({ options: { each: { type: "boolean", default: false } } })
const goal = 150
const limit = 5 * goal
const rounds = 7
const root = fileURLToPath(new URL("../../", import.meta.url))

const once = (module: string): number => {
  const program = `
    await Promise.all([import("effect"), import("pg")])
    const start = performance.now()
    await import("effect-db${module}")
    console.log(performance.now() - start)
  `
  // a package may import itself by its name, and gets the files that its users get
  return Number(execFileSync(process.execPath, ["--input-type=module", "-e", program], { cwd: root, encoding: "utf8" }))
}

const shortest = (module: string): number => Math.round(Math.min(...Array.from({ length: rounds }, () => once(module))))

if (!fs.existsSync(`${root}dist/index.js`)) throw new Error("there is no dist: npm run build")

if (values.each) {
  const modules = fs.readdirSync(`${root}src`).filter((file) => file.endsWith(".ts") && file !== "index.ts")
  for (const file of modules) {
    const module = `/${file.slice(0, -".ts".length)}`
    console.log(`effect-db${module}: ${shortest(module)} ms`)
  }
}

const time = shortest("")
console.log(`effect-db: ${time} ms beyond effect and pg (goal: ${goal} ms)`)
if (time > limit) {
  console.error(`that is more than ${limit} ms: --each shows which module takes it`)
  process.exitCode = 1
}
