import * as fs from "node:fs"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Check from "../../examples/service/check.js"
import { Ledger } from "../../examples/service/ledger.js"
import type { Server } from "../../examples/service/servers.js"
import { emptyFolder } from "../support/directory.js"
import { query } from "../support/server.js"
import * as Program from "./program.js"

const proves = (stdout: string, rows: string) => {
  expect(stdout).toMatch(/requests +200 of 200 succeeded, 8 at a time/)
  expect(stdout).toMatch(/killed +\d+ connections, all there were, after 100 requests/)
  expect(stdout).toMatch(/todos +22 as acknowledged, 18 deleted and gone/)
  expect(stdout).toMatch(/audit +96 changes with one event each/)
  expect(stdout).toMatch(new RegExp(`records +${rows} on the primary, each exactly once`))
  expect(stdout).toMatch(new RegExp(`records +${rows} on the replica, each exactly once`))
  expect(stdout).toMatch(/served +\d+ requests by the primary \S+:\d+/)
  expect(stdout).toMatch(/served +\d+ requests by the replica \S+:\d+/)
  const served = [...stdout.matchAll(/served +(\d+) requests/g)].map(([, count]) => Number(count))
  expect(served.reduce((sum, count) => sum + count, 0)).toBeLessThanOrEqual(200)
  expect(stdout.trimEnd().endsWith("nothing lost, nothing doubled")).toBe(true)
}

describe("--once", () => {
  it.scopedLive("--once succeeds on embedded servers, and leaves nothing", () =>
    Effect.gen(function* () {
      const folder = yield* emptyFolder
      const { code, stderr, stdout } = yield* Program.run(["--once"], { TMPDIR: folder })
      expect({ code, stderr }).toEqual({ code: 0, stderr: "" })
      proves(stdout, "3,376")
      expect(fs.readdirSync(folder).filter((name) => name.startsWith("effect-db-"))).toEqual([])
    })
  )

  it.scopedLive("--once succeeds on given servers, repeatedly, and shows no password", () =>
    Effect.gen(function* () {
      const { app, env } = yield* Program.databases
      for (let i = 0; i < 2; i++) {
        const { code, stderr, stdout } = yield* Program.run(["--once"], env)
        expect({ code, stderr }).toEqual({ code: 0, stderr: "" })
        proves(stdout, "3,376")
        expect(stdout).not.toContain(new URL(env.DATABASE_URL).password)
      }
      expect(yield* query(app, "SELECT count(*)::int AS n FROM record")).toEqual([{ n: 3376 }])
    })
  )

  it.scopedLive(
    "--once --failover loses nothing when the primary is killed and a replica promoted, and leaves nothing",
    () =>
      Effect.gen(function* () {
        const folder = yield* emptyFolder
        const { code, stderr, stdout } = yield* Program.run(["--once", "--failover"], { TMPDIR: folder })
        expect({ code, stderr }).toEqual({ code: 0, stderr: "" })
        const [, killed] =
          /killed +server 1 \((\S+)\), the primary, by SIGKILL after 100 requests, at \S+Z\n/.exec(stdout) ?? []
        const [, promoted] = /promoted +server [23] \((\S+)\), which had the most data, in \d/.exec(stdout) ?? []
        expect(stdout).toMatch(/writer +found on timeline 2; \d+\.\d s at most without an acknowledged change\n/)
        expect(stdout).toMatch(
          /unknown +(?:no client had to find out whether a change was stored|\d+, resolved:(?:\n {11}\S.*)+)\n/
        )
        expect(stdout).toMatch(/requests +200 of 200 succeeded/)
        expect(stdout).toMatch(/todos +22 as acknowledged, 18 deleted and gone/)
        expect(stdout).toMatch(/audit +96 changes with one event each/)
        for (const server of [killed, promoted]) {
          expect(stdout).toMatch(new RegExp(`served +\\d+ requests by the primary ${server}\n`))
        }
        expect(stdout.trimEnd().endsWith("nothing lost, nothing doubled")).toBe(true)
        expect(fs.readdirSync(folder).filter((name) => name.startsWith("effect-db-"))).toEqual([])
      })
  )

  it.scopedLive("--once succeeds also if both databases are one", () =>
    Effect.gen(function* () {
      const { env } = yield* Program.databases
      const { code, stderr } = yield* Program.run(["--once"], { ...env, AUDIT_DATABASE_URL: env.DATABASE_URL })
      expect({ code, stderr }).toEqual({ code: 0, stderr: "" })
    })
  )
})

describe("the check of --once", () => {
  const setUp = Effect.gen(function* () {
    const { app, audit } = yield* Program.databases
    yield* query(app, "CREATE TABLE todo (id text, title text, done boolean)")
    yield* query(
      app,
      "CREATE TABLE record (iata text, name text, city text, state text, country text, latitude float8, longitude float8)"
    )
    yield* query(audit, "CREATE TABLE event (what text, subject text, request text)")
    const primary: Server = { database: "app", role: "primary", url: app }
    const trail: Server = { database: "audit", role: "primary", url: audit }
    return { app, audit, primary, trail }
  })
  const state = { title: "t", done: false }

  it.scopedLive("the check finds a todo that is lost, twice, changed, or should be gone", () =>
    Effect.gen(function* () {
      const { app, primary } = yield* setUp
      const ledger = new Ledger()
      for (const id of ["run-lost", "run-twice", "run-changed", "run-fine"]) ledger.todos.set(id, state)
      ledger.todos.set("run-deleted", undefined)
      yield* query(
        app,
        `INSERT INTO todo VALUES ('run-twice', 't', false), ('run-twice', 't', false), ('run-changed', 'u', false), ('run-fine', 't', false),
         ('run-deleted', 't', false), ('run-stranger', 't', false), ('other-run', 't', false)`
      )
      expect((yield* Check.todos(primary, "run", ledger)).problems).toEqual([
        "todo run-twice is there twice",
        "todo run-changed is not as acknowledged",
        "todo run-deleted is there, and should not be",
        "todo run-stranger is there, and should not be",
        "todo run-lost is lost"
      ])
    })
  )

  it.scopedLive("the check finds an event that is missing, twice, of another change, or of one not stored", () =>
    Effect.gen(function* () {
      const { audit, trail } = yield* setUp
      const ledger = new Ledger()
      const change = (subject: string) => ({ what: "todo.created", subject }) as const
      ledger.attempts.push(
        { request: "run-1", change: change("a"), outcome: "acknowledged" },
        { request: "run-2", change: change("b"), outcome: "acknowledged" },
        { request: "run-3", change: change("c"), outcome: "found stored" },
        { request: "run-4", change: change("d"), outcome: "not stored" },
        { request: "run-5", change: change("e"), outcome: "stored partly" },
        { request: "run-6", change: change("f"), outcome: "acknowledged" }
      )
      yield* query(
        audit,
        `INSERT INTO event VALUES ('todo.created', 'b', 'run-2'), ('todo.created', 'b', 'run-2'), ('todo.created', 'x', 'run-3'),
         ('todo.created', 'd', 'run-4'), ('todo.created', 'e', 'run-5'), ('todo.created', 'f', 'run-6'), ('todo.created', 'g', 'run-7')`
      )
      const { line, problems } = yield* Check.events(trail, "run", ledger)
      expect(problems).toEqual([
        "request run-1 has no event",
        "request run-2 has 2 events",
        "request run-3 has the event of another change",
        'request run-4 has an event, and was answered "not stored"',
        "there are events of a request run-7 that was never sent"
      ])
      expect(line).toMatch(/stored in part: 1$/)
    })
  )

  it.scopedLive("the check finds a record that is lost, twice, or in other columns", () =>
    Effect.gen(function* () {
      const { app, primary } = yield* setUp
      const airport = (iata: string) => ({
        iata,
        name: "n",
        city: "c",
        state: "s",
        country: "k",
        latitude: 1,
        longitude: 2
      })
      yield* query(
        app,
        "INSERT INTO record VALUES ('A', 'n', 'c', 's', 'k', 1, 2), ('B', 'n', 'c', 's', 'k', 1, 2), ('B', 'n', 'c', 's', 'k', 1, 2), ('C', 'c', 'n', 's', 'k', 1, 2)"
      )
      expect((yield* Check.records(primary, ["A", "B", "C", "D"].map(airport))).problems).toEqual([
        "record B is there twice on the primary",
        "record C has other values on the primary",
        "record D is missing on the primary"
      ])
    })
  )
})
