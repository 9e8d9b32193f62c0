import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { describe, expect, it } from "vitest"

const root = fileURLToPath(new URL("../", import.meta.url))

/**
 * The public modules by floor, the first floor first. A module uses lower floors only.
 *
 * Files in `internal/` have no floor: they are part of whoever imports them, and what they reach counts as reached by that module.
 */
const floors: ReadonlyArray<ReadonlyArray<string>> = [
  ["SqlState", "Observation", "Notification", "Consistency", "Copy"],
  ["DatabaseError"],
  ["DatabaseConfig", "RetryPolicy", "Connection"],
  ["Pool", "EmbeddedPostgres", "Tenant"],
  ["Topology", "Transaction"],
  ["Router", "UnitOfWork"],
  ["Client"],
  ["Database", "RequestTransaction"],
  ["TestDatabase", "DatabaseRuntime", "Migrations"]
]

/** Public modules that know the types of another one on their own floor. */
const neighbours = [
  // what to connect to is said in the words of the settings
  "Connection -> DatabaseConfig"
]

/** Files that know each other's types. None of them needs the other to be loaded first. */
const typeCircles = [
  // the carrier maps names to transactions, a unit of work is one, and a transaction stands in a carrier
  [
    "Transaction",
    "internal/transaction/context",
    "internal/transaction/hooks",
    "internal/transaction/propagation",
    "internal/transaction/contextSlot",
    "internal/transaction/joinedPart",
    "internal/unitOfWork/unitOfWork"
  ]
]

/** Who imports which package. `effect`, `@effect/sql` and `node:` are free. */
const packages: Readonly<Record<string, ReadonlyArray<string>>> = {
  "@effect/experimental": [
    "Client",
    "Database",
    "TestDatabase",
    "internal/client/lifecycleHooks",
    "internal/transaction/invalidations"
  ],
  // HTTP is nobody else's business
  "@effect/platform": [
    "RequestTransaction",
    "internal/http/replayableRequest",
    "internal/http/apiErrors",
    "internal/http/describeRequest",
    "internal/http/enterUnitOfWork",
    "internal/http/routeTag"
  ],
  "@effect/sql-pg": ["Client", "Copy", "Database", "DatabaseConfig", "internal/client/clientConfig"],
  // the server of tests is steered by sessions of its own, below everything that it is there to test
  pg: [
    "internal/protocol/pgDriver",
    "internal/embedded/adminSession",
    "internal/sql/quote",
    "internal/protocol/parameterEncoder",
    "internal/protocol/typeNames"
  ],
  "pg-protocol": ["internal/protocol/messages"]
}

/** The classes that SQLSTATEs of PostgreSQL begin with. */
const sqlStateClass = "0[0-3689ABFLPZ]|10|2[0-8BDF]|3[489BDF]|4[024]|5[34578]|72|F0|HV|P0|XX"

/** One import or re-export. */
interface Import {
  readonly from: string
  /** A file of `src` by its name, or the specifier of a package. */
  readonly to: string
  readonly local: boolean
  readonly typeOnly: boolean
}

const filesBelow = (folder: string): ReadonlyArray<string> =>
  fs.existsSync(path.join(root, folder))
    ? fs
        .readdirSync(path.join(root, folder), { recursive: true, encoding: "utf8" })
        .filter((file) => file.endsWith(".ts") && !file.includes("node_modules"))
        .sort()
    : []

const read = (file: string): string => fs.readFileSync(path.join(root, file), "utf8")

/** Without comments; strings stay, also those that look like a comment. */
const code = (text: string): string =>
  text.replace(/\/\*[\s\S]*?\*\/|\/\/[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`/g, (match) =>
    match.startsWith("/") ? "" : match
  )

const specifiers = (text: string): ReadonlyArray<{ readonly specifier: string; readonly typeOnly: boolean }> =>
  // verbatimModuleSyntax: `import { type X }` loads the file, only `import type` does not
  [...text.matchAll(/^(?:import|export)\s+(type\s+)?(?:[\w$*\s{},]*?\sfrom\s*)?"([^"]+)"/gm)].map((match) => ({
    specifier: match[2] ?? "",
    typeOnly: match[1] !== undefined
  }))

const sources: ReadonlyMap<string, string> = new Map(
  filesBelow("src").map((file) => [file.slice(0, -".ts".length), code(read(`src/${file}`))])
)

const imports: ReadonlyArray<Import> = [...sources].flatMap(([from, text]) =>
  specifiers(text).map(({ specifier, typeOnly }) => {
    const local = specifier.startsWith(".")
    const to = local ? path.posix.join(path.posix.dirname(from), specifier).replace(/\.js$/, "") : specifier
    return { from, to, local, typeOnly }
  })
)

const isInternal = (name: string): boolean => name.startsWith("internal/")
const modules = [...sources.keys()].filter((name) => !isInternal(name) && name !== "index")
// what lies in the folder of a module is part of the module
const owner = (name: string): string => name.split("/")[0] ?? name
const floorOf = (name: string): number => floors.findIndex((floor) => floor.includes(owner(name))) + 1

const uses = (name: string, which: (one: Import) => boolean): ReadonlyArray<string> =>
  imports.filter((one) => one.from === name && one.local && which(one)).map((one) => one.to)

const atRuntime = (one: Import): boolean => !one.typeOnly
const always = (): boolean => true

/** The public modules that a file leads to, directly or through internal ones, with the way. */
const reached = (name: string, way: ReadonlyArray<string> = [name]): ReadonlyArray<ReadonlyArray<string>> =>
  uses(name, atRuntime).flatMap((next) =>
    !isInternal(next) ? [[...way, next]] : way.includes(next) ? [] : reached(next, [...way, next])
  )

/** Everything that a file leads to. */
const closure = (name: string, which: (one: Import) => boolean): ReadonlySet<string> => {
  const seen = new Set<string>()
  const visit = (from: string) => {
    for (const next of uses(from, which)) {
      if (!seen.has(next)) {
        seen.add(next)
        visit(next)
      }
    }
  }
  visit(name)
  return seen
}

/** The groups of files that lead to one another. */
const circles = (which: (one: Import) => boolean): ReadonlyArray<ReadonlyArray<string>> => {
  const leads = new Map([...sources.keys()].map((name) => [name, closure(name, which)]))
  const groups = [...leads].flatMap(([name, to]) =>
    to.has(name) ? [[...to].filter((other) => leads.get(other)?.has(name)).sort()] : []
  )
  return groups.filter((group, index) => groups.findIndex((other) => other[0] === group[0]) === index)
}

/** Each place in `src` where a pattern occurs, as `file: text`. */
const occurrences = (pattern: RegExp, except: ReadonlyArray<string> = []): ReadonlyArray<string> =>
  [...sources].flatMap(([name, text]) =>
    except.includes(name) ? [] : [...text.matchAll(pattern)].map((match) => `${name}: ${match[0]}`)
  )

describe("floors", () => {
  it("every public module has a floor, and no other name has one", () => {
    expect([...new Set(modules.map(owner))].sort()).toEqual(floors.flat().sort())
  })

  it("a module uses lower floors only, also through internal files", () => {
    const wrong = modules.flatMap((name) =>
      reached(name).filter(
        (way) => floorOf(way.at(-1) ?? "") >= floorOf(name) && owner(way.at(-1) ?? "") !== owner(name)
      )
    )
    expect(wrong.map((way) => way.join(" -> "))).toEqual([])
  })

  it("a module takes types from no higher floor, and from its own only where that is listed", () => {
    const direct = imports.filter((one) => one.local && modules.includes(one.from) && modules.includes(one.to))
    const apart = direct.filter((one) => owner(one.from) !== owner(one.to))
    const show = (some: ReadonlyArray<Import>) => some.map((one) => `${one.from} -> ${one.to}`)
    expect(show(apart.filter((one) => floorOf(one.to) > floorOf(one.from)))).toEqual([])
    expect(show(apart.filter((one) => floorOf(one.to) === floorOf(one.from)))).toEqual(neighbours)
  })

  it("no file leads back to itself at run time", () => {
    expect(circles(atRuntime)).toEqual([])
  })

  it("types go in circles only where that is listed", () => {
    expect(circles(always)).toEqual(typeCircles)
  })

  it("every import is written at the top of its file, where this test sees it", () => {
    expect(occurrences(/\bimport\s*\(|\brequire\s*\(/g)).toEqual([])
  })
})

describe("secrets of one file", () => {
  it("SQLSTATEs stand in SqlState only", () => {
    const sqlState = `(?=[A-Z]*\\d)(?:${sqlStateClass})[\\dA-Z]{3}`
    expect(occurrences(new RegExp(`(["'\`])${sqlState}\\1|^\\s*${sqlState}:`, "gm"), ["SqlState"])).toEqual([])
  })

  it("error codes of Node and OpenSSL stand in SqlState only", () => {
    const errno = Object.keys(os.constants.errno).join("|")
    expect(
      occurrences(new RegExp(`\\b(?:${errno}|ENOTFOUND|(?:EAI|ERR|CERT|UND_ERR)_[A-Z_]+)\\b`, "g"), ["SqlState"])
    ).toEqual([])
  })

  it("timers are set in one file, which knows how long Node's may be", () => {
    expect(occurrences(/\bset(?:Timeout|Interval)\s*\(/g, ["internal/concurrency/clock"])).toEqual([])
  })

  it("each package is imported only where it is listed", () => {
    const name = (specifier: string) => specifier.match(/^(@[^/]+\/[^/]+|[^/]+)/)?.[0] ?? specifier
    const free = /^(node:|effect\/|@effect\/sql\/)/
    const foreign = imports.filter((one) => !one.local && !free.test(one.to))
    const users = [...new Set(foreign.map((one) => name(one.to)))].map((of) => [
      of,
      [...new Set(foreign.filter((one) => name(one.to) === of).map((one) => one.from))].sort()
    ])
    expect(Object.fromEntries(users)).toEqual(packages)
  })

  it("node-postgres and its protocol are used by their entry points", () => {
    expect(imports.filter((one) => /^pg(-[a-z-]+)?\//.test(one.to))).toEqual([])
  })

  it("Effect packages are imported module by module", () => {
    expect(imports.filter((one) => /^(effect|@effect\/[^/]+)$/.test(one.to))).toEqual([])
  })
})

describe("manners", () => {
  it("the index names every public module and does nothing else", () => {
    const lines = modules
      .filter((name) => !name.includes("/"))
      .map((name) => `export * as ${name} from "./${name}.js"\n`)
      .sort()
    expect(read("src/index.ts")).toBe(lines.join(""))
  })

  it("nothing is written to the console", () => {
    expect(occurrences(/\bconsole\b|process\.std(?:out|err)\b/g)).toEqual([])
  })

  it("internal files are not for users", () => {
    const { exports } = JSON.parse(read("package.json")) as { readonly exports: Readonly<Record<string, unknown>> }
    expect(exports["./internal/*"]).toBe(null)
    expect(Object.keys(exports).filter((key) => key.includes("internal"))).toEqual(["./internal/*"])
  })

  it("examples use the package as its users do", () => {
    const wrong = filesBelow("examples").flatMap((file) =>
      specifiers(read(`examples/${file}`))
        .filter(
          ({ specifier }) => /(^|\/)(src|internal|dist)(\/|$)/.test(specifier) || /^(\.\.\/)+test/.test(specifier)
        )
        .map(({ specifier }) => `examples/${file}: ${specifier}`)
    )
    expect(wrong).toEqual([])
  })
})
