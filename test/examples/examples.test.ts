/** Every example, run as a reader runs it: its output, its exit code, and that it leaves nothing. */
import { execFileSync, spawn } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Program from "../service/program.js"
import { emptyFolder } from "../support/directory.js"
import { eventually } from "../support/eventually.js"
import { makeProxy } from "../support/proxy.js"
import { query } from "../support/server.js"

const folder = fileURLToPath(new URL("../../examples/", import.meta.url))

/** The output of each example; `{}` stands for the parts that differ from run to run. */
const programs: Readonly<Record<string, ReadonlyArray<string>>> = {
  "01-one-database": ["stored: eggs, milk", "open: app, on 1 server"],
  "02-two-databases": [
    "committed: 1 todo, 1 event",
    "failed: 1 todo, 1 event",
    "refused at COMMIT (CommitFailed): 1 todo, 1 event"
  ],
  "03-transaction": [
    "afterCommit: runs when it is stored",
    "committed: milk, eggs",
    "failed: milk, eggs",
    "nested: undone by todo_title_key",
    "outer: milk, eggs, bread",
    "serializable: both done, one {}"
  ],
  "04-reader-and-writer": [
    "reader: a replica",
    "before the write: nothing",
    "after the write: milk, from the primary",
    "strong: milk, from the primary",
    "eventually: milk",
    "in a session: milk, eggs, from a replica",
    "a write through the reader: ReadOnlyViolation"
  ],
  "05-reconnect": [
    "idle: replaced, two were open",
    "in a transaction: Disconnected, undone, 0 stored",
    "with retry: 2 attempts, 1 stored"
  ],
  "11-open-and-close": [
    'before: database "app" is not open yet - wait for `open()` before the first use',
    "between: 3 stored",
    'after: database "app" is closed - use it only while its layer is open'
  ],
  "12-workers": [
    "a {} has stored one on a connection of its own",
    "a {} has stored one on a connection of its own",
    "a {} has stored one on a connection of its own",
    "stored: 3, by 3 connections; the parent still has its own"
  ],
  "13-script": ["open: 998 of 1000"],
  "15-csv-load": ["loaded: 5 todos", "done: water the plants, call mother"],
  "16-request-cases": [
    "case                        ended  stored  the client saw",
    "an insert                   200    1       200",
    "a redirection               304    1       304",
    "the handler says 500        500    0       500",
    "the handler throws          failed 0       500",
    "early commit, then more     500    1       500",
    "early rollback              200    0       200",
    "independent work            500    1       500",
    "nested, one of two undone   200    2       200",
    "five tasks at once          200    5       200",
    "the second COMMIT refused   200    0       500",
    "a task of its own           500    1       500",
    "the request is interrupted  failed 0       503"
  ],
  "18-sync": ["stored: milk", "within: milk, eggs", "failed (UniqueViolation): milk", "nested: milk, bread"]
}

const answers = [
  "serving at {}",
  'POST /todos 201 {"id":1,"title":"milk","done":false}',
  "POST /todos/broken 500 {}",
  'GET /todos 200 [{"id":1,"title":"milk","done":false}]'
]

const servers: Readonly<Record<string, ReadonlyArray<string>>> = {
  "06-http-request": answers,
  "07-express": answers,
  "08-fastify": answers,
  "09-hono": answers,
  "19-read-your-writes": [
    ...answers.slice(0, -1),
    'GET /todos 200 {"from":"a replica","todos":[{"id":1,"title":"milk","done":false}]}'
  ],
  "10-no-lifecycle": [...answers, "loaded: the module 3 times, its databases 1 time"]
}

const script = (name: string) => `examples/${name}.ts`

const run = (name: string, args: ReadonlyArray<string>, env: Readonly<Record<string, string>>) =>
  Effect.scoped(Effect.flatMap(Program.startScript(script(name), args, env), ({ ended }) => ended))

/** Asserts that the output matches, line for line. */
const expectLines = (stdout: string, lines: ReadonlyArray<string>) => {
  const printed = stdout.trimEnd().split("\n")
  const given = lines.map((line, index) => {
    const [before = "", after] = line.split("{}")
    const found = printed[index] ?? ""
    return after !== undefined && found.startsWith(before) && found.endsWith(after) ? found : line
  })
  expect(printed).toEqual(given)
}

const tables = "SELECT relname FROM pg_stat_user_tables"

/** Creates databases on the shared server, and asserts that they are empty at the end. */
const databases = Effect.tap(Program.databases, ({ app, audit }) =>
  Effect.addFinalizer(() =>
    Effect.all([query(app, tables), query(audit, tables)]).pipe(Effect.map((left) => expect(left).toEqual([[], []])))
  )
)

/**
 * Creates a folder that a program takes for the machine's temporary folder, and asserts that no
 * cluster and no process is left in it at the end.
 */
const temporary = Effect.acquireRelease(emptyFolder, (folder) =>
  Effect.gen(function* () {
    // tsx keeps its cache there too
    const clusters = fs.readdirSync(folder).filter((name) => name.startsWith("effect-db-"))
    expect(clusters).toEqual([])
    // a program does not wait for the end of a process that it has ended with a signal
    yield* eventually(
      Effect.sync(() => execFileSync("ps", ["-A", "-ww", "-o", "command="], { encoding: "utf8" })),
      (processes) => !processes.includes(path.basename(folder))
    )
  })
)

const listening = Effect.acquireRelease(
  Effect.async<net.Server>((resume) => {
    const server = net.createServer().listen(0, () => resume(Effect.succeed(server)))
  }),
  (server) => Effect.sync(() => server.close())
)

/** A server that listens on a port has such an address. */
const portOf = (server: net.Server): string => String((server.address() as net.AddressInfo).port)

describe.concurrent("the examples", () => {
  it("all examples are run here, are listed with their command, and have at most 60 lines", () => {
    const files = fs.readdirSync(folder).filter((file) => /^\d\d-.*\.ts$/.test(file))
    const others = ["14-testing.test.ts", "17-shell.ts", "20-testing-commits.test.ts", "21-testing-promises.test.ts"]
    const tested = [...Object.keys({ ...programs, ...servers }).map((name) => `${name}.ts`), ...others]
    expect(files.sort()).toEqual(tested.sort())
    const readme = fs.readFileSync(path.join(folder, "README.md"), "utf8").split("\n")
    for (const file of files) {
      expect(readme.filter((line) => line.includes(`](${file})`) && line.includes(`examples/${file}`))).toHaveLength(1)
    }
    const long = fs
      .readdirSync(folder)
      .filter((file) => file.endsWith(".ts"))
      .filter((file) => fs.readFileSync(path.join(folder, file), "utf8").split("\n").length > 60)
    expect(long).toEqual([])
  })

  for (const [name, lines] of Object.entries(programs)) {
    it.scopedLive(`${name} prints what it should, ends with code 0 and leaves no table`, () =>
      Effect.gen(function* () {
        const { env } = yield* databases
        const { code, stderr, stdout } = yield* run(name, [], env)
        expect(stderr).toBe("")
        expectLines(stdout, lines)
        expect(code).toBe(0)
      })
    )
  }

  for (const [name, lines] of Object.entries(servers)) {
    it.scopedLive(`${name} answers its own requests with --once`, () =>
      Effect.gen(function* () {
        const { env } = yield* databases
        const { code, stderr, stdout } = yield* run(name, ["--once"], env)
        expect(stderr).toBe("")
        expectLines(stdout, lines)
        expect(code).toBe(0)
      })
    )

    it.scopedLive(`${name} serves until Ctrl-C, and a port that is taken is reported in one line`, () =>
      Effect.gen(function* () {
        const { app, env } = yield* databases
        const server = yield* Program.startScript(script(name), [], env)
        const url = yield* server.line(/serving at (http:\S+),/)
        const taken = yield* Effect.fork(
          Effect.flatMap(databases, (other) => run(name, [], { ...other.env, PORT: new URL(url).port }))
        )
        const headers = { "content-type": "application/json" }
        const body = JSON.stringify({ title: "bread" })
        const send = (body: string) =>
          Effect.promise(async () => {
            const response = await fetch(`${url}/todos`, { method: "POST", headers, body })
            return { status: response.status, text: await response.text() }
          })
        expect((yield* send(body)).status).toBe(201)
        const again = yield* send(body)
        expect(again.status).toBe(409)
        expect(again.text).not.toMatch(/database|key|todo_/)
        expect((yield* send("{")).status).toBe(400)
        expect(yield* query(app, "SELECT title FROM todo")).toEqual([{ title: "bread" }])
        expect((yield* taken).stderr).toMatch(/^error: listen EADDRINUSE.*\n$/)
        expect((yield* taken).code).toBe(1)
        yield* server.signal("SIGINT")
        expect(yield* server.ended).toMatchObject({ code: 0, stderr: "" })
      })
    )
  }

  it.scopedLive(
    "an example with a PORT that is not a port ends with one line before it starts anything",
    () =>
      Effect.gen(function* () {
        const { env } = yield* databases
        for (const port of ["abc", "-1", "65536", "80.5", "0x50"]) {
          const { code, stderr, stdout } = yield* run("07-express", ["--once"], { ...env, PORT: port })
          expect(stderr).toBe(`error: PORT=${port} is not a port: set a number from 0 to 65535; 0 picks a free one\n`)
          expect({ code, stdout }).toEqual({ code: 1, stdout: "" })
        }
      }),
    // five programs, one after the other
    240_000
  )

  it.scopedLive("an example whose server is away at its end reports which tables it has left", () =>
    Effect.gen(function* () {
      const { app, env } = yield* Program.databases
      const proxy = yield* makeProxy(app)
      const server = yield* Program.startScript(script("07-express"), [], {
        ...env,
        DATABASE_URL: Redacted.value(proxy.url)
      })
      yield* server.line(/serving at/)
      yield* Effect.zipRight(proxy.refuse, proxy.cut)
      yield* server.signal("SIGINT")
      const { code, stderr } = yield* server.ended
      // the statement is on lines of its own, if it was sent before the loss was noticed
      expect(stderr).toMatch(/^error: table todo was not dropped: .*\n(?: {2}.*\n)*$/)
      expect(code).toBe(0)
      expect(yield* query(app, tables)).toEqual([{ relname: "todo" }])
    })
  )

  for (const name of Object.keys(servers)) {
    // only Linux has /proc/net/tcp
    it.scopedLive.runIf(process.platform === "linux")(`${name} listens on loopback alone`, () =>
      Effect.gen(function* () {
        const { env } = yield* databases
        const server = yield* Program.startScript(script(name), [], env)
        const { port } = new URL(yield* server.line(/serving at (http:\S+),/))
        const hex = Number(port).toString(16).toUpperCase().padStart(4, "0")
        // the kernel's table of TCP sockets; state 0A is LISTEN
        const sockets = ["tcp", "tcp6"].flatMap((table) => fs.readFileSync(`/proc/net/${table}`, "utf8").split("\n"))
        const addresses = sockets.flatMap((line) => {
          const [, local = "", , state] = line.trim().split(/\s+/)
          return state === "0A" && local.endsWith(`:${hex}`) ? [local] : []
        })
        expect(addresses).toEqual([`0100007F:${hex}`])
        yield* server.signal("SIGINT")
        expect(yield* server.ended).toMatchObject({ code: 0 })
      })
    )

    it.scopedLive(`${name} ends with Ctrl-C also when a request has no end`, () =>
      Effect.gen(function* () {
        const { env } = yield* databases
        const server = yield* Program.startScript(script(name), [], env)
        const { port } = new URL(yield* server.line(/serving at (http:\S+),/))
        const socket = yield* Effect.acquireRelease(
          Effect.sync(() => net.connect(Number(port), "localhost")),
          (socket) => Effect.sync(() => socket.destroy())
        )
        const head = "POST /todos HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: 99\r\n"
        // the client sends one of the 99 announced bytes, and the server answers "100 Continue"
        socket.write(`${head}expect: 100-continue\r\n\r\n{`)
        yield* Effect.async<void>((resume) => void socket.once("data", () => resume(Effect.void)))
        yield* server.signal("SIGINT")
        expect(yield* server.ended).toMatchObject({ code: 0 })
      })
    )
  }

  for (const name of ["04-reader-and-writer", "13-script", "18-sync"]) {
    it.scopedLive(`${name} starts its own servers, and removes them at its end`, () =>
      Effect.gen(function* () {
        const { code, stderr, stdout } = yield* run(name, [], { TMPDIR: yield* temporary })
        expect(stderr).toBe("")
        expectLines(stdout, programs[name] ?? [])
        expect(code).toBe(0)
      })
    )
  }

  it.scopedLive("Ctrl-C removes an example's own servers as well", () =>
    Effect.gen(function* () {
      const server = yield* Program.startScript(script("07-express"), [], { TMPDIR: yield* temporary })
      yield* server.line(/serving at/)
      yield* server.signal("SIGINT")
      expect(yield* server.ended).toMatchObject({ code: 0, stderr: "" })
    })
  )

  it.scopedLive("a load that Ctrl-C stops ends with 130, so that a caller knows that it is not complete", () =>
    Effect.gen(function* () {
      const { app, env } = yield* databases
      const folder = yield* temporary
      const file = path.join(folder, "todos.csv")
      fs.writeFileSync(file, `title,done\n${Array.from({ length: 1200 }, (_, i) => `todo ${i},false`).join("\n")}\n`)
      const pipe = `${file}.pipe`
      execFileSync("mkfifo", [pipe])
      // the pipe stays open after the lines, so the program waits for more
      yield* Effect.acquireRelease(
        Effect.sync(() => spawn("sh", ["-c", 'cat "$1" - >"$2"', "sh", file, pipe])),
        (writer) => Effect.sync(() => writer.kill())
      )
      const program = yield* Program.startScript(script("15-csv-load"), [pipe], env)
      const waiting =
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY%' AND wait_event = 'ClientRead'"
      yield* query(app, waiting).pipe(eventually((rows) => rows.length > 0))
      yield* program.signal("SIGINT")
      expect(yield* program.ended).toEqual({ code: 130, stdout: "", stderr: "" })
    })
  )

  it.scopedLive(
    "a wrong password and a server that is not there are reported in one line, without secrets",
    () =>
      Effect.gen(function* () {
        const { env } = yield* databases
        const wrong = new URL(env.DATABASE_URL)
        wrong.password = "not-the-password"
        for (const name of ["01-one-database", "07-express", "18-sync"]) {
          const { code, stderr, stdout } = yield* run(name, [], { ...env, DATABASE_URL: wrong.href })
          expect({ code, stdout }).toEqual({ code: 1, stdout: "" })
          expect(stderr).toMatch(/^error: database "app" at \S+: cannot connect \(authentication\).*\n$/)
          expect(stderr).not.toContain("not-the-password")
        }
        const closed = new URL(env.DATABASE_URL)
        closed.port = yield* Effect.scoped(Effect.map(listening, portOf))
        for (const name of ["13-script", "06-http-request"]) {
          const { code, stderr, stdout } = yield* run(name, [], { ...env, DATABASE_URL: closed.href })
          expect({ code, stdout }).toEqual({ code: 1, stdout: "" })
          expect(stderr).toMatch(/^error: database "app" at \S+: cannot connect \(unreachable\).*\n$/)
        }
      }),
    // five programs, and a start waits some seconds for a server that refuses connections
    240_000
  )

  it.scopedLive(
    "18-sync reports a missing database in one line, and Ctrl-C ends it with 130 also while it connects",
    () =>
      Effect.gen(function* () {
        const { app, env } = yield* databases
        const missing = new URL(env.DATABASE_URL)
        missing.pathname = "/missing"
        const { code, stderr, stdout } = yield* run("18-sync", [], { ...env, DATABASE_URL: missing.href })
        expect({ code, stdout }).toEqual({ code: 1, stdout: "" })
        expect(stderr).toMatch(/^error: database "app" at \S+: cannot connect \(noSuchDatabase\).*\n$/)

        const proxy = yield* makeProxy(app)
        const connecting = yield* proxy.when(({ type }) => type === "startup", "freeze")
        const slow = { ...env, DATABASE_URL: Redacted.value(proxy.url) }
        const program = yield* Program.startScript(script("18-sync"), [], slow)
        yield* program.meanwhile(connecting)
        yield* program.signal("SIGINT")
        // after the first signal the program waits for the server; a second would end it at once
        yield* proxy.thaw
        expect(yield* program.ended).toEqual({ code: 130, stdout: "", stderr: "" })
      })
  )

  for (const end of ["Ctrl-D", "Ctrl-C"]) {
    it.scopedLive(`17-shell prints the result or the failure of each line until ${end}`, () =>
      Effect.gen(function* () {
        const { app, env } = yield* databases
        const shell = yield* Program.startScript(script("17-shell"), [], env)
        yield* shell.line(/connected: db, audit/)
        const add = (title: string) => `await db.writer\`INSERT INTO todo (title) VALUES ('${title}') RETURNING id\``
        const added = query(app, "SELECT title FROM todo")
        yield* shell.type(`${add("milk")}\n`)
        yield* shell.line(/{ id: 1 }/)
        expect(yield* added).toEqual([{ title: "milk" }])
        yield* shell.type(`await unitOfWork(async () => { ${add("eggs")}; await db.writer\`nonsense\` })\n`)
        yield* shell.line(/QueryFailed: .*syntax error/)
        yield* shell.type("await db.reader`SELECT title FROM todo`.then((rows) => 'found ' + rows.length)\n")
        yield* shell.line(/found 1/)
        expect(yield* added).toEqual([{ title: "milk" }])
        yield* end === "Ctrl-D" ? shell.leave : shell.signal("SIGINT")
        expect(yield* shell.ended).toMatchObject({ code: 0, stderr: "" })
      })
    )
  }

  it.scopedLive("17-shell ends with Ctrl-C also while it connects, or while a statement has no end", () =>
    Effect.gen(function* () {
      const { app, env } = yield* databases
      const proxy = yield* makeProxy(app)
      const connecting = yield* proxy.when(({ type }) => type === "startup", "freeze")
      const slow = { ...env, DATABASE_URL: Redacted.value(proxy.url) }
      const first = yield* Program.startScript(script("17-shell"), [], slow)
      yield* first.meanwhile(connecting)
      yield* first.signal("SIGINT")
      yield* proxy.thaw
      expect(yield* first.ended).toEqual({ code: 0, stdout: "", stderr: "" })

      const second = yield* Program.startScript(script("17-shell"), [], env)
      yield* second.line(/connected/)
      yield* second.type("await db.writer`SELECT pg_sleep(600)`\n")
      const running =
        "SELECT FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND datname = current_database()"
      yield* query(app, running).pipe(eventually(({ length }) => length > 0))
      yield* second.signal("SIGINT")
      expect(yield* second.ended).toMatchObject({ code: 0, stderr: "" })
    })
  )

  it.scopedLive("15-csv-load reports the line that the model refuses, and ends with code 1", () =>
    Effect.gen(function* () {
      const { env } = yield* databases
      const file = path.join(yield* temporary, "wrong.csv")
      const cases = [
        ["title,done\nmilk,false\neggs,perhaps\n", "line 3: done: expected true or false"],
        ["title\nmilk\n", "line 2: done: is missing"],
        ["", "line 1: expected a header, and todos below"]
      ] as const
      for (const [text, problem] of cases) {
        fs.writeFileSync(file, text)
        const { code, stderr, stdout } = yield* run("15-csv-load", [file], env)
        expect({ code, stdout }).toEqual({ code: 1, stdout: "" })
        expect(stderr).toBe(`error: ${file}, ${problem}; nothing of it is stored\n`)
      }
    })
  )
})
