import { execFileSync, spawn } from "node:child_process"
import * as fs from "node:fs"
import * as net from "node:net"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Args from "../../examples/service/args.js"
import { emptyFolder } from "../support/directory.js"
import { inThisDatabase, query } from "../support/server.js"
import * as Program from "./program.js"

const root = fileURLToPath(new URL("../../", import.meta.url))

/** Returns the clusters in a folder, without the other files there, such as the cache of tsx. */
const clustersIn = (folder: string): ReadonlyArray<string> =>
  fs.readdirSync(folder).filter((name) => name.startsWith("effect-db-"))

/** Returns the processes that use a folder. */
const processesOf = (folder: string): ReadonlyArray<string> =>
  execFileSync("ps", ["-A", "-ww", "-o", "pid=,command="], { encoding: "utf8" })
    .split("\n")
    .filter((line) => line.includes(path.basename(folder)))

const poll = Schedule.spaced("10 millis")

/** Opens a connection that is used once and stays open. */
const keepAlive = (url: string) =>
  Effect.acquireRelease(
    Effect.async<net.Socket>((resume) => {
      const socket = net.connect(Number(new URL(url).port), "127.0.0.1", () =>
        socket.write("GET /todos HTTP/1.1\r\nHost: localhost\r\n\r\n")
      )
      socket.once("data", () => resume(Effect.succeed(socket)))
      socket.on("error", () => {})
    }),
    (socket) => Effect.sync(() => socket.destroy())
  )

/** Blocks every change of todos until it is released. */
const lock = (url: Redacted.Redacted<string>) =>
  Effect.gen(function* () {
    yield* Effect.forkScoped(
      query(url, "BEGIN; LOCK TABLE todo IN SHARE MODE; SELECT pg_advisory_lock(11); SELECT pg_sleep(60)")
    )
    yield* query(url, `SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 11 AND ${inThisDatabase}`).pipe(
      Effect.repeat({ until: (rows) => rows.length > 0, schedule: poll })
    )
    return {
      release: query(
        url,
        `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 11 AND ${inThisDatabase}`
      ),
      isWaitedFor: query(url, `SELECT 1 FROM pg_locks WHERE NOT granted AND ${inThisDatabase}`).pipe(
        Effect.repeat({ until: (rows) => rows.length > 0, schedule: poll })
      )
    }
  })

const post = (url: string, id: string) =>
  Effect.promise(() =>
    fetch(`${url}/todos`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ id, title: id })
    }).then(
      ({ status }) => status,
      () => "no answer"
    )
  )

const empty = (name: string) => Effect.map(emptyFolder, (folder) => path.join(folder, name))

const someRows = (count: number) => Array.from({ length: count }, (_, i) => `R${i},Name,City,ST,USA,1,1\n`).join("")

const header = "iata,name,city,state,country,latitude,longitude\n"

describe("Ctrl-C", () => {
  it.scopedLive("Ctrl-C ends the service with 0, also with a kept-alive connection, and leaves nothing", () =>
    Effect.gen(function* () {
      const folder = yield* emptyFolder
      const service = yield* Program.start([], { TMPDIR: folder })
      expect(yield* service.line(/imported (.*) rows/)).toBe("3,376")
      const url = yield* service.url
      yield* keepAlive(url)
      expect(clustersIn(folder)).toHaveLength(1)
      expect(processesOf(folder).length).toBeGreaterThan(2)
      yield* service.signal("SIGINT")
      // the client would keep its connection for ever
      expect(yield* service.ended).toMatchObject({ code: 0, stderr: "" })
      expect(clustersIn(folder)).toEqual([])
      expect(processesOf(folder)).toEqual([])
    })
  )

  it.scopedLive("--replicas sets the number of servers, which the service lists", () =>
    Effect.gen(function* () {
      const replicas = 2
      const service = yield* Program.start(["--replicas", String(replicas)], { TMPDIR: yield* emptyFolder })
      yield* service.line(/Ctrl-C stops/)
      const lines = (yield* service.written).match(/^ {2}app +(?:primary|replica) +postgres:/gm) ?? []
      expect(lines.filter((line) => line.includes("primary"))).toHaveLength(1)
      expect(lines.filter((line) => line.includes("replica"))).toHaveLength(replicas)
      yield* service.signal("SIGINT")
      expect(yield* service.ended).toMatchObject({ code: 0, stderr: "" })
    })
  )

  it.scopedLive("a second Ctrl-C, as npm sends it, changes nothing", () =>
    Effect.gen(function* () {
      const folder = yield* emptyFolder
      const service = yield* Program.start([], { TMPDIR: folder })
      yield* service.url
      yield* service.signal("SIGINT")
      yield* service.signal("SIGINT")
      yield* service.line(/stopping/)
      yield* service.signal("SIGINT")
      expect(yield* service.ended).toMatchObject({ code: 0 })
      expect(clustersIn(folder)).toEqual([])
    })
  )

  it.scopedLive("Ctrl-C during the start leaves nothing either", () =>
    Effect.gen(function* () {
      const folder = yield* emptyFolder
      const service = yield* Program.start([], { TMPDIR: folder })
      yield* Effect.sync(() => clustersIn(folder)).pipe(
        Effect.repeat({ until: (all) => all.length > 0, schedule: poll })
      )
      yield* service.signal("SIGINT")
      expect(yield* service.ended).toMatchObject({ code: 0, stderr: "" })
      expect(clustersIn(folder)).toEqual([])
      expect(processesOf(folder)).toEqual([])
    })
  )

  it.scopedLive("a request in flight is answered after Ctrl-C", () =>
    Effect.gen(function* () {
      const { app, env } = yield* Program.databases
      const service = yield* Program.start([], env)
      const url = yield* service.url
      const { isWaitedFor, release } = yield* lock(app)
      const answer = yield* Effect.fork(post(url, "in-flight"))
      yield* service.meanwhile(isWaitedFor)
      yield* service.signal("SIGINT")
      yield* service.line(/stopping/)
      yield* release
      expect(yield* answer.await).toMatchObject({ value: 201 })
      expect(yield* service.ended).toMatchObject({ code: 0 })
      expect(yield* query(app, "SELECT id FROM todo")).toEqual([{ id: "in-flight" }])
    })
  )

  it.scopedLive("a request without an end does not delay Ctrl-C, and stores nothing", () =>
    Effect.gen(function* () {
      const { app, audit, env } = yield* Program.databases
      const service = yield* Program.start([], env)
      const url = yield* service.url
      const { isWaitedFor, release } = yield* lock(app)
      const answer = yield* Effect.fork(post(url, "endless"))
      yield* service.meanwhile(isWaitedFor)
      yield* service.signal("SIGINT")
      expect(yield* service.ended).toMatchObject({ code: 0 })
      expect(yield* answer.await).toMatchObject({ value: "no answer" })
      yield* release
      expect(yield* query(app, "SELECT id FROM todo")).toEqual([])
      expect(yield* query(audit, "SELECT what FROM event")).toEqual([{ what: "records.imported" }])
    })
  )

  it.scopedLive("Ctrl-C during an import stores nothing of it", () =>
    Effect.gen(function* () {
      const { app, audit, env } = yield* Program.databases
      const pipe = yield* empty("slow.csv")
      execFileSync("mkfifo", [pipe])
      const service = yield* Program.start(["--csv", pipe], env)
      // opened for reads as well: an open for writes alone waits for a reader, which may never come
      const writer = yield* Effect.promise(() => fs.promises.open(pipe, "r+"))
      yield* Effect.addFinalizer(() => Effect.promise(() => writer.close().catch(() => {})))
      yield* service.meanwhile(Effect.promise(() => writer.write(header + someRows(5000))))
      // rows have been sent, and are not committed
      yield* query(
        app,
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY %' AND pid <> pg_backend_pid()"
      ).pipe(Effect.repeat({ until: (rows) => rows.length > 0, schedule: poll }), service.meanwhile)
      yield* service.signal("SIGINT")
      expect(yield* service.ended).toMatchObject({ code: 0, stderr: "" })
      expect(yield* query(app, "SELECT 1 FROM record")).toEqual([])
      expect(yield* query(audit, "SELECT 1 FROM event")).toEqual([])
    })
  )

  it.scopedLive("Ctrl-C ends the unattended job with 130, because it has proved nothing", () =>
    Effect.gen(function* () {
      const { env } = yield* Program.databases
      const job = yield* Program.start(["--once"], env)
      yield* job.line(/imported/)
      yield* job.signal("SIGINT")
      expect(yield* job.ended).toMatchObject({ code: 130 })
    })
  )

  // a shell between npm and the service would die of the signal, so the script begins with "exec"
  it.scopedLive("Ctrl-C ends npm start with 0 as well", () =>
    Effect.gen(function* () {
      const folder = yield* emptyFolder
      const npm = yield* Effect.acquireRelease(
        Effect.sync(() =>
          // in a process group of its own, as in the foreground of a terminal
          spawn("npm", ["start"], {
            cwd: root,
            detached: true,
            env: { PATH: process.env.PATH, HOME: folder, PORT: "0", TMPDIR: folder }
          })
        ),
        (child) => Effect.sync(() => child.exitCode === null && child.signalCode === null && child.kill("SIGKILL"))
      )
      const ended = yield* Deferred.make<number | string | null>()
      npm.once("exit", (code, signal) => Deferred.unsafeDone(ended, Effect.succeed(code ?? signal)))
      yield* Effect.async<void>((resume) => {
        npm.stdout
          .setEncoding("utf8")
          .on("data", (text: string) => text.includes("Ctrl-C stops") && resume(Effect.void))
        npm.stderr.resume()
      })
      process.kill(-(npm.pid ?? 0), "SIGINT")
      expect(yield* Deferred.await(ended)).toBe(0)
      expect(processesOf(folder)).toEqual([])
    })
  )
})

/** Kills the main process of a server, as a user does with `kill -9`. */
const killPostmaster = (data: string) => {
  const [pid] = fs.readFileSync(path.join(data, "postmaster.pid"), "utf8").split("\n")
  process.kill(Number(pid), "SIGKILL")
}

describe("an embedded server that is killed from outside", () => {
  it.scopedLive("a killed server is restarted with its data, with one message, and Ctrl-C leaves nothing", () =>
    Effect.gen(function* () {
      const folder = yield* emptyFolder
      const service = yield* Program.start([], { TMPDIR: folder })
      const url = yield* service.url
      yield* service.line(/Ctrl-C stops/)
      expect(yield* post(url, "before")).toBe(201)
      const [cluster = ""] = clustersIn(folder)
      const names = ["primary", "replica-1"]
      for (const name of names) {
        killPostmaster(path.join(folder, cluster, name))
        yield* service.line(new RegExp(`the embedded ${name} runs again`))
      }
      const todos = yield* Effect.promise(() => fetch(`${url}/todos`).then((response) => response.json()))
      expect(todos).toMatchObject([{ id: "before" }])
      expect(yield* post(url, "after")).toBe(201)
      yield* service.signal("SIGINT")
      const lines = names.flatMap((name) => [
        `warn: the embedded ${name} has ended; it is started again\n`,
        `info: the embedded ${name} runs again\n`
      ])
      expect(yield* service.ended).toMatchObject({ code: 0, stderr: lines.join("") })
      expect(clustersIn(folder)).toEqual([])
      expect(processesOf(folder)).toEqual([])
    })
  )

  it.scopedLive("a killed server that cannot be restarted stays down, which is reported once with the reason", () =>
    Effect.gen(function* () {
      const folder = yield* emptyFolder
      const service = yield* Program.start([], { TMPDIR: folder })
      yield* service.url
      const [cluster = ""] = clustersIn(folder)
      const data = path.join(folder, cluster, "replica-1")
      fs.rmSync(path.join(data, "global"), { recursive: true })
      killPostmaster(data)
      yield* service.line(/the server stays down: restart the service/)
      yield* service.signal("SIGINT")
      const { code, stderr } = yield* service.ended
      expect(stderr).toMatch(/^warn: the embedded replica-1 has ended.*\nerror: EmbeddedPostgres start \(replica-1\)/)
      expect(stderr.match(/stays down/g)).toHaveLength(1)
      expect(code).toBe(0)
      expect(clustersIn(folder)).toEqual([])
    })
  )
})

describe("a start that fails", () => {
  it.scopedLive("a wrong password is reported in one line without the password, with exit code 1", () =>
    Effect.gen(function* () {
      const { env } = yield* Program.databases
      const wrong = new URL(env.DATABASE_URL)
      wrong.password = "not-the-password"
      const { code, stderr, stdout } = yield* Program.run([], { ...env, DATABASE_URL: wrong.href })
      expect(code).toBe(1)
      expect(stderr).toMatch(/^error: database "app" at \S+: cannot connect \(authentication\).*\n$/)
      expect(stdout + stderr).not.toContain("not-the-password")
    })
  )

  it.scopedLive("an unreachable address, a missing database and invalid settings are reported in one line each", () =>
    Effect.gen(function* () {
      const { env } = yield* Program.databases
      const nobody = new URL(env.DATABASE_URL)
      nobody.port = "1"
      const missing = new URL(env.AUDIT_DATABASE_URL)
      missing.pathname = "/nothing"
      const cases: ReadonlyArray<readonly [Record<string, string>, RegExp]> = [
        [{ ...env, DATABASE_URL: nobody.href }, /^error: database "app" at \S+: cannot connect \(unreachable\).*\n$/],
        [
          { ...env, AUDIT_DATABASE_URL: missing.href },
          /^error: database "audit" at \S+: cannot connect \(noSuchDatabase\).*\n$/
        ],
        [{ ...env, AUDIT_DATABASE_URL: "" }, /^error: AUDIT_DATABASE_URL is not set; --help lists the settings\n$/],
        [
          { DATABASE_READER_URLS: env.DATABASE_READER_URLS },
          /^error: DATABASE_URL is not set; --help lists the settings\n$/
        ],
        [
          { ...env, DATABASE_URL: "localhost/app" },
          /^error: database "app": setting "writer" is neither a postgres:\/\/ URL nor a keyword string.*\n$/
        ],
        [{ ...env, PORT: "http" }, /^error: PORT: .*"http".*\n$/]
      ]
      yield* Effect.forEach(
        cases,
        ([settings, expected]) =>
          Effect.gen(function* () {
            const { code, stderr } = yield* Program.run([], settings)
            expect(stderr).toMatch(expected)
            expect(code).toBe(1)
          }),
        { concurrency: 2 }
      )
    })
  )

  it.scopedLive("a port in use is reported in one line, and nothing is imported", () =>
    Effect.gen(function* () {
      const { app, env } = yield* Program.databases
      const port = yield* Effect.acquireRelease(
        Effect.async<net.Server>((resume) => {
          const server = net.createServer().listen(0, () => resume(Effect.succeed(server)))
        }),
        (server) => Effect.sync(() => server.close())
      ).pipe(Effect.map((server) => String((server.address() as net.AddressInfo).port)))
      const { code, stderr } = yield* Program.run([], { ...env, PORT: port })
      expect(stderr).toBe(
        `error: port ${port} is in use: stop what listens there, or choose another (PORT=0 picks a free one)\n`
      )
      expect(code).toBe(1)
      const [found] = yield* query<{ there: boolean }>(app, "SELECT to_regclass('record') IS NOT NULL AS there")
      expect(found?.there === true ? yield* query(app, "SELECT FROM record") : []).toEqual([])
    })
  )

  it.scopedLive("an embedded start whose port is in use leaves nothing", () =>
    Effect.gen(function* () {
      const folder = yield* emptyFolder
      const first = yield* Program.start([], { TMPDIR: folder })
      const port = new URL(yield* first.url).port
      const second = yield* emptyFolder
      expect(yield* Program.run([], { TMPDIR: second, PORT: port })).toMatchObject({ code: 1 })
      expect(clustersIn(second)).toEqual([])
      expect(processesOf(second)).toEqual([])
      yield* first.signal("SIGTERM")
      expect(yield* first.ended).toMatchObject({ code: 0 })
    })
  )

  it.scopedLive("--help describes all and ends with 0, and an unknown argument ends with 2", () =>
    Effect.gen(function* () {
      const help = yield* Program.run(["--help"])
      expect(help).toMatchObject({ code: 0, stderr: "" })
      for (const word of [
        "--once",
        "--once --failover",
        "--replicas N",
        "--csv FILE",
        "DATABASE_URL",
        "DATABASE_READER_URLS",
        "AUDIT_DATABASE_URL",
        "PORT"
      ]) {
        expect(help.stdout).toContain(word)
      }
      for (const args of [["--onec"], ["file.csv"], ["--csv"], ["--once=yes"]]) {
        expect((yield* Effect.flip(Args.parse(args))).message).toMatch(/; --help shows what there is$/)
      }
      const refused: ReadonlyArray<readonly [ReadonlyArray<string>, RegExp]> = [
        ...["6", "-1", "two", "1.5", "", "01"].map(
          (n) => [[`--replicas=${n}`], /^--replicas is ".*": expected a whole number from 0 to 5;/] as const
        ),
        [["--failover"], /^--failover is a part of the unattended job: give --once as well;/],
        [["--once", "--failover", "--replicas", "1"], /^--failover needs 2 replicas: /]
      ]
      for (const [args, expected] of refused) {
        expect((yield* Effect.flip(Args.parse(args))).message).toMatch(expected)
      }
      expect(yield* Args.parse(["--replicas", "0"])).toMatchObject({ replicas: 0, failover: false })
      expect(yield* Args.parse(["--once", "--failover"])).toMatchObject({ replicas: 2, failover: true })
      expect(yield* Program.run(["--replicas", "2"], { DATABASE_URL: "postgres://localhost/app" })).toMatchObject({
        code: 2,
        stdout: "",
        stderr: expect.stringMatching(
          /^error: --replicas and --failover are for servers that the service starts itself: /
        )
      })
      expect(yield* Program.run(["--onec"])).toEqual({
        code: 2,
        stdout: "",
        stderr: "error: Unknown option '--onec'; --help shows what there is\n"
      })
    })
  )
})

describe("the output of the service", () => {
  it.scopedLive("printed URLs have no password, and the printed curl lines work as they are", () =>
    Effect.gen(function* () {
      const { env } = yield* Program.databases
      const service = yield* Program.start([], env)
      yield* service.url
      yield* service.line(/Ctrl-C stops/)
      const text = yield* service.written
      expect(text).not.toContain(new URL(env.DATABASE_URL).password)
      expect(text).toContain(`postgres://postgres@${new URL(env.DATABASE_URL).host}`)
      const lines = text.split("\n").filter((line) => line.trim().startsWith("curl "))
      expect(lines.length).toBeGreaterThan(4)
      for (const line of lines) {
        const status = execFileSync("sh", ["-c", `${line} -s -o /dev/null -w '%{http_code}'`], { encoding: "utf8" })
        expect(`${line} ${status}`).toMatch(/ 20[014]$/)
      }
    })
  )

  it.scopedLive("an existing migration and existing rows stay as they are at the next start", () =>
    Effect.gen(function* () {
      const { app, env } = yield* Program.databases
      const count = query(
        app,
        "SELECT count(*)::int AS n, count(DISTINCT iata)::int AS keys, max(xmin::text::bigint)::text AS last FROM record"
      )
      const once = Effect.scoped(
        Effect.gen(function* () {
          const service = yield* Program.start([], env)
          yield* service.url
          yield* service.signal("SIGTERM")
          expect(yield* service.ended).toMatchObject({ code: 0, stderr: "" })
          return yield* count
        })
      )
      const first = yield* once
      expect(first).toMatchObject([{ n: 3376, keys: 3376 }])
      expect(yield* once).toEqual(first)
    })
  )

  it.scopedLive("two services that start together on empty databases both start", () =>
    Effect.gen(function* () {
      const { app, env } = yield* Program.databases
      const both = yield* Effect.all([Program.start([], env), Program.start([], env)])
      yield* Effect.forEach(both, (service) => service.url, { concurrency: "unbounded" })
      expect(yield* query(app, "SELECT count(*)::int AS n FROM record")).toEqual([{ n: 3376 }])
      for (const service of both) yield* service.signal("SIGINT")
      for (const service of both) expect(yield* service.ended).toMatchObject({ code: 0 })
    })
  )
})
