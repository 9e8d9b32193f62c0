/** The fast tier: the test files that need no server, found by what they import, without the simulation. */
import * as fs from "node:fs"
import * as path from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("../../", import.meta.url))

/** Matches the use of a server: of the one for the whole run, or of one that a test starts. */
const server = /\binject\("postgres"\)|\bEmbeddedPostgres\.(?:make|layer)\b/

const known = new Map<string, boolean>()

/** Checks whether a file, or a file of the tests that it imports, uses a server. */
const needsServer = (file: string): boolean => {
  const found = known.get(file)
  if (found !== undefined) return found
  // a circle of imports ends here
  known.set(file, false)
  const text = fs.readFileSync(file, "utf8")
  const imported = [...text.matchAll(/\sfrom "(\.[^"]+)\.js"/g)]
    .map(([, name]) => path.join(path.dirname(file), `${name}.ts`))
    .filter((name) => name.startsWith(path.join(root, "test")) && fs.existsSync(name))
  const needs = server.test(text) || imported.some(needsServer)
  known.set(file, needs)
  return needs
}

/** Returns the test files of the fast tier. */
export const fastTests = (): Array<string> =>
  fs
    .readdirSync(path.join(root, "test"), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".test.ts") && !needsServer(path.join(root, "test", name)))
    // it takes longer than all others together
    .filter((name) => !name.startsWith("simulation"))
    .map((name) => `test/${name}`)
    .sort()
