import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { describe, expect, it } from "vitest"

const root = fileURLToPath(new URL("../", import.meta.url))

/**
 * The folders of `src/internal` and the public modules, bottom first. A file imports only from its own folder and from layers before its own,
 * type imports included.
 */
const layers: ReadonlyArray<string> = [
  "SqlState ServerConfig Observation Notification Copy Router",
  "DatabaseOptions",
  "concurrency",
  "protocol",
  "sql",
  "errors",
  "DatabaseError",
  "Consistency Fault Pool RetryPolicy Transaction",
  "Topology",
  "Recording",
  "observability",
  "config",
  "DatabaseConfig Discovery",
  "connection",
  "consistency outcome pool",
  "topology",
  "statement",
  "edge",
  "transaction",
  "unitOfWork Tenant",
  "UnitOfWork",
  "client http",
  "listen",
  "Database RequestTransaction",
  "runtime",
  "DatabaseRuntime Migrations",
  "testing",
  "TestDatabase"
]

/** Layers that stand beside the others, and import only `protocol` of them. */
const beside: ReadonlyArray<string> = ["embedded", "EmbeddedPostgres"]

/** Layers that may import those beside the others: a run of tests starts its own server. */
const aboveAll: ReadonlyArray<string> = ["testing", "TestDatabase"]

/** The folders, and single files, that load nothing of Effect, so that their callbacks cannot depend on fibers. */
const core: ReadonlyArray<string> = [
  "concurrency",
  "protocol",
  "sql",
  "errors",
  "connection",
  "consistency",
  "outcome",
  "pool",
  "topology",
  "statement",
  ...[
    "begin",
    "outcomesByMarker",
    "outcomesByStatus",
    "connectionHolder",
    "emulatedCommit",
    "endingStatement",
    "hook",
    "idTracker",
    "isolation",
    "level",
    "levelCommit",
    "levelExchange",
    "levelFailure",
    "levelLock",
    "levelRollback",
    "levelStatement",
    "markedConnectionSource",
    "pendingBegin",
    "portal",
    "resolution",
    "sandboxedLevel",
    "savepoint",
    "settingsByDatabase",
    "siblingTurn",
    "transaction"
  ].map((name) => `internal/transaction/${name}`),
  ...[
    "connection",
    "connector",
    "deliveryProbe",
    "failure",
    "handover",
    "connectionLifecycle",
    "listeners",
    "manager",
    "nextCommand",
    "outage",
    "reports",
    "state"
  ].map((name) => `internal/listen/${name}`)
]

/** The files that import each package. `effect`, `@effect/sql` and `node:` are free. */
const packages: Readonly<Record<string, ReadonlyArray<string>>> = {
  "@effect/experimental": [
    "Database",
    "TestDatabase",
    "internal/client/client",
    "internal/client/lifecycleHooks",
    "internal/client/openDatabase",
    "internal/testing/clones",
    "internal/testing/dropDatabase",
    "internal/testing/openFaults",
    "internal/testing/openInstrumented",
    "internal/testing/replicas",
    "internal/testing/serverOfRun",
    "internal/testing/templateDatabase",
    "internal/testing/templates",
    "internal/testing/testRun",
    "internal/transaction/invalidations"
  ],
  "@effect/platform": [
    "Discovery",
    "RequestTransaction",
    "internal/http/answerWithRetry",
    "internal/http/apiFailureResponse",
    "internal/http/apiMiddleware",
    "internal/http/describeRequest",
    "internal/http/enterUnitOfWork",
    "internal/http/middleware",
    "internal/http/platformIdempotency",
    "internal/http/problemResponse",
    "internal/http/replayableRequest",
    "internal/http/requestAttempt",
    "internal/http/requestPlan",
    "internal/http/routeContextTag",
    "internal/http/sessionMiddleware"
  ],
  "@effect/sql-pg": ["Copy", "Database", "DatabaseOptions", "internal/client/client", "internal/client/sqlPgConfig"],
  // the embedded server is administered by sessions of its own, apart from those that tests examine
  pg: ["internal/embedded/adminSession", "internal/protocol/pgDriver"],
  "pg-protocol": ["internal/protocol/frontendMessages"]
}

/** The classes of PostgreSQL's SQLSTATEs: their first two characters. */
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

/** Returns a text without its comments; strings stay, also those that look like a comment. */
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
/** Returns the folder of an internal file, or the name of a public module. */
const folderOf = (name: string): string => (isInternal(name) ? (name.split("/")[1] ?? name) : name)
const layerOf = (name: string): number => layers.findIndex((layer) => layer.split(" ").includes(folderOf(name)))

/** Returns the shortest chain of imports from a file to Effect, if it loads Effect. */
const chainToEffect = (file: string): ReadonlyArray<string> | undefined => {
  const chains: Array<ReadonlyArray<string>> = [[file]]
  const seen = new Set([file])
  for (const chain of chains) {
    for (const { from, to, typeOnly } of imports) {
      if (typeOnly || from !== chain.at(-1) || seen.has(to)) continue
      if (/^(effect|@effect)(\/|$)/.test(to)) return [...chain, to]
      seen.add(to)
      chains.push([...chain, to])
    }
  }
  return undefined
}

/** Returns each place in `src` where a pattern occurs, as `file: text`. */
const occurrences = (pattern: RegExp, except: ReadonlyArray<string> = []): ReadonlyArray<string> =>
  [...sources].flatMap(([name, text]) =>
    except.includes(name) ? [] : [...text.matchAll(pattern)].map((match) => `${name}: ${match[0]}`)
  )

describe("layers", () => {
  it("every internal file is in the folder of a layer, and every public module has a layer", () => {
    const folders = [...new Set([...sources.keys()].filter((name) => name !== "index").map(folderOf))]
    expect(folders.sort()).toEqual([...layers.flatMap((layer) => layer.split(" ")), ...beside].sort())
    expect([...sources.keys()].filter((name) => /^internal\/[^/]+$/.test(name))).toEqual([])
  })

  it("a file imports only from its own folder and from lower layers, type imports included", () => {
    const isAllowed = ({ from, to }: Import): boolean =>
      folderOf(from) === folderOf(to) ||
      from === "index" ||
      (beside.includes(folderOf(from))
        ? [...beside, "protocol"].includes(folderOf(to))
        : (layerOf(to) >= 0 && layerOf(to) < layerOf(from)) ||
          (aboveAll.includes(folderOf(from)) && beside.includes(folderOf(to))))
    const wrong = imports.filter((one) => one.local && !isAllowed(one))
    expect(wrong.map(({ from, to }) => `${from} -> ${to}`)).toEqual([])
  })

  it("a file of the core loads nothing of Effect, neither itself nor through its imports", () => {
    const files = [...sources.keys()].filter(
      (name) => isInternal(name) && [name, folderOf(name)].some((one) => core.includes(one))
    )
    expect(files.flatMap((file) => chainToEffect(file)?.join(" -> ") ?? [])).toEqual([])
  })

  it("at least 40 % of the lines of src are in files that load nothing of Effect", () => {
    const linesOf = (files: ReadonlyArray<string>): number =>
      files.reduce((lines, file) => lines + read(`src/${file}.ts`).split("\n").length - 1, 0)
    const files = [...sources.keys()]
    const free = linesOf(files.filter((file) => chainToEffect(file) === undefined))
    expect(free / linesOf(files)).toBeGreaterThanOrEqual(0.4)
  })

  it("no file has an import() or require(), which these tests would not find", () => {
    expect(occurrences(/\bimport\s*\(|\brequire\s*\(/g)).toEqual([])
  })
})

describe("the contents of single files", () => {
  it("SQLSTATEs are written in SqlState only", () => {
    const sqlState = `(?=[A-Z]*\\d)(?:${sqlStateClass})[\\dA-Z]{3}`
    expect(occurrences(new RegExp(`(["'\`])${sqlState}\\1|^\\s*${sqlState}:`, "gm"), ["SqlState"])).toEqual([])
  })

  it("error codes of Node and OpenSSL are written in SqlState only", () => {
    const errno = Object.keys(os.constants.errno).join("|")
    expect(
      occurrences(new RegExp(`\\b(?:${errno}|ENOTFOUND|(?:EAI|ERR|CERT|UND_ERR)_[A-Z_]+)\\b`, "g"), ["SqlState"])
    ).toEqual([])
  })

  it("time, timers and random numbers come from one file, which a simulation can replace", () => {
    const timeSource =
      /(?<!clock\.)\b(?:(?:set|clear)(?:Timeout|Interval|Immediate)\s*\(|performance\.|Date\.now\b|new Date\(\)|Math\.random\b|hrtime\b)/g
    const places = occurrences(timeSource, ["internal/concurrency/clock"])
    expect(places.filter((place) => !beside.includes(folderOf(place.split(":")[0] ?? "")))).toEqual([])
  })

  it("sockets are created in one file, which a simulation can replace", () => {
    const socketSource = /\bnew\s+(?:Net\.)?Socket\b|\bNet\.(?:connect|createConnection)\b/g
    const places = occurrences(socketSource, ["internal/protocol/socket"])
    expect(places.filter((place) => !beside.includes(folderOf(place.split(":")[0] ?? "")))).toEqual([])
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

  it("node-postgres and its protocol are imported by their entry points", () => {
    expect(imports.filter((one) => /^pg(-[a-z-]+)?\//.test(one.to))).toEqual([])
  })

  it("Effect packages are imported module by module", () => {
    expect(imports.filter((one) => /^(effect|@effect\/[^/]+)$/.test(one.to))).toEqual([])
  })
})

describe("conventions", () => {
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

  it("internal files cannot be imported by users of the package", () => {
    const { exports } = JSON.parse(read("package.json")) as { readonly exports: Readonly<Record<string, unknown>> }
    expect(exports["./internal/*"]).toBe(null)
    expect(Object.keys(exports).filter((key) => key.includes("internal"))).toEqual(["./internal/*"])
  })

  it("examples import the package as its users do", () => {
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
