/** A visitor of the example service kills the primary, promotes a replica, and sees the effect on a load. */
import * as fs from "node:fs"
import { describe, expect, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { Figures } from "../../examples/service/figures.js"
import { emptyFolder } from "../support/directory.js"
import { eventually } from "../support/eventually.js"
import { send, service } from "../support/service.js"
import * as Program from "./program.js"

interface Member {
  readonly name: string
  readonly role: string
  readonly state: string
  readonly timeline: number | null
}

interface Load {
  readonly answered: number
  readonly failed: number
  readonly pause: { readonly isOver: boolean; readonly millis: number } | null
  readonly served: ReadonlyArray<{ readonly address: string; readonly reads: number; readonly writes: number }>
  readonly seconds: ReadonlyArray<{ readonly reads: number; readonly writes: number }>
}

// the API's own schemas have decoded nothing here, so the shapes are those that the tests expect
const members = Effect.map(send("GET", "/cluster"), ({ body }) => (body as { servers: ReadonlyArray<Member> }).servers)
const load = Effect.map(send("GET", "/load"), ({ body }) => body as Load)

const act = (name: string) =>
  Effect.map(send("POST", `/cluster/${name}`), ({ body, status }) => ({ status, ...(body as object) }))

const refused = (message: string) => ({ status: 409, _tag: "NotPossible", message })

/** Waits until the servers have these roles. */
const roles = (...expected: ReadonlyArray<string>) =>
  eventually(members, (all) => all.map(({ role }) => role).join() === expected.join())

layer(service, { excludeTestServices: true, timeout: 30_000 })("the cluster of the service", (it) => {
  it.effect("the primary is killed, a replica promoted, and the former primary follows it; each write is served", () =>
    Effect.gen(function* () {
      yield* send("GET", "/records")
      const before = yield* roles("primary", "replica")
      expect(before.map(({ name }) => name)).toEqual(["server 1", "server 2"])
      expect(yield* act("start")).toEqual(refused("every server is running"))

      expect(yield* act("kill")).toEqual({ status: 200, servers: ["server 1"] })
      expect(yield* members).toMatchObject([{ role: "none", state: "stopped" }, { role: "replica" }])
      expect(yield* act("kill")).toEqual(
        refused("no primary is running: promote a replica, or start the servers again")
      )
      const waiting = yield* Effect.fork(send("POST", "/todos", { id: "waits", title: "a" }))
      expect(yield* act("promote")).toEqual({ status: 200, servers: ["server 2"] })
      expect(yield* waiting.await).toMatchObject({ value: { status: 201 } })
      expect(yield* roles("none", "primary")).toMatchObject([{}, { state: "up", timeline: 2 }])
      expect(yield* act("promote")).toEqual(refused("no replica is running: start the servers first"))

      expect(yield* act("start")).toEqual({ status: 200, servers: ["server 1"] })
      yield* roles("replica", "primary")
      // the former primary serves reads
      yield* eventually(members, (all) => all[0]?.state === "up")
      yield* eventually(
        send("GET", "/records"),
        ({ headers }) => headers.get("x-served-by")?.startsWith("replica") === true
      )
      expect(yield* send("POST", "/todos", { id: "after", title: "a" })).toMatchObject({ status: 201 })
      expect(yield* send("GET", "/todos/after")).toMatchObject({ status: 200 })
      // with a running primary it is a switch-over
      expect(yield* act("promote")).toEqual({ status: 200, servers: ["server 1"] })
      expect(yield* roles("primary", "replica")).toMatchObject([{ timeline: 3 }, {}])
      expect(yield* send("GET", "/todos/waits")).toMatchObject({ status: 200 })

      const { body } = yield* send("GET", "/cluster")
      const texts = (body as { events: ReadonlyArray<{ text: string }> }).events.map(({ text }) => text)
      for (const text of ["server 1 was killed", "server 2 was promoted", "server 1 was started"]) {
        expect(texts).toContain(text)
      }
      expect(texts.join("\n")).toMatch(/^writes go to server 2, found in \d+\.\d s, on timeline 2$/m)
    })
  )

  it.effect("a load reads from the replica, and its figures show the time in which no write was stored", () =>
    Effect.gen(function* () {
      yield* roles("primary", "replica")
      expect(yield* load).toMatchObject({ rate: 0, answered: 0, pause: null, seconds: [] })
      expect(yield* send("PUT", "/load", { rate: 50 })).toMatchObject({ status: 200, body: { rate: 50 } })
      const steady = yield* eventually(load, ({ seconds }) =>
        seconds.some(({ reads, writes }) => reads > 0 && writes > 0)
      )
      expect(steady.served.some(({ reads, writes }) => reads > 0 && writes === 0)).toBe(true)
      expect(steady.served.some(({ writes }) => writes > 0)).toBe(true)

      yield* act("kill")
      yield* eventually(load, ({ pause }) => pause?.isOver === false)
      yield* act("promote")
      const over = yield* eventually(load, ({ pause }) => pause?.isOver === true)
      expect(over.pause?.millis).toBeGreaterThanOrEqual(500)

      expect(yield* send("PUT", "/load", { rate: 0 })).toMatchObject({ status: 200, body: { rate: 0 } })
      // the todos of the load are deleted
      yield* eventually(send("GET", "/todos"), ({ body }) =>
        (body as ReadonlyArray<{ id: string }>).every(({ id }) => !id.startsWith("load-"))
      )
      yield* act("start")
      yield* roles("replica", "primary")
    })
  )

  it.effect("an action takes place once if two visitors ask for it at the same time", () =>
    Effect.gen(function* () {
      const both = yield* Effect.all([act("kill"), act("kill")], { concurrency: 2 })
      expect(both.map(({ status }) => status).toSorted()).toEqual([200, 409])
      yield* act("start")
      // it was not replaced meanwhile, so it goes on as the primary
      yield* eventually(members, (all) => all.some(({ role, state }) => role === "primary" && state === "up"))
      expect(yield* send("POST", "/todos", { id: "again", title: "a" })).toMatchObject({ status: 201 })
    })
  )
})

describe("the end of a service that is in a failover", () => {
  it.scopedLive("Ctrl-C ends a service whose primary is killed and whose load is on, and leaves nothing", () =>
    Effect.gen(function* () {
      const folder = yield* emptyFolder
      const program = yield* Program.start(["--replicas", "2"], { TMPDIR: folder })
      const url = yield* program.url
      yield* program.line(/Ctrl-C stops/)
      const ask = (method: string, path: string, body?: object) =>
        Effect.promise(() =>
          fetch(`${url}${path}`, {
            method,
            ...(body && { body: JSON.stringify(body), headers: { "content-type": "application/json" } })
          }).then((response) => response.json())
        )
      yield* ask("PUT", "/load", { rate: 30 })
      yield* eventually(ask("GET", "/load"), (body) => (body as Load).answered > 0)
      expect(yield* ask("POST", "/cluster/kill")).toEqual({ servers: ["server 1"] })
      expect(yield* ask("POST", "/cluster/promote")).toEqual({ servers: ["server 2"] })
      expect(yield* ask("POST", "/cluster/start")).toEqual({ servers: ["server 1"] })
      expect(yield* ask("POST", "/cluster/kill")).toEqual({ servers: ["server 2"] })
      yield* program.signal("SIGINT")
      expect(yield* program.ended).toMatchObject({ code: 0 })
      expect(yield* program.written).not.toMatch(/has ended; it is started again/)
      expect(fs.readdirSync(folder).filter((name) => name.startsWith("effect-db-"))).toEqual([])
    })
  )
})

describe("servers that are given", () => {
  it.scopedLive("given servers are shown, and the service has no action and no load for them", () =>
    Effect.gen(function* () {
      const { env } = yield* Program.databases
      const program = yield* Program.start([], env)
      const url = yield* program.url
      const status = (method: string, path: string) =>
        Effect.promise(() => fetch(`${url}${path}`, { method }).then((response) => response.status))
      for (const path of ["/cluster/kill", "/cluster/promote", "/cluster/start"]) {
        expect(yield* status("POST", path)).toBe(404)
      }
      expect(yield* status("PUT", "/load")).toBe(404)
      const view = yield* Effect.promise(() => fetch(`${url}/cluster`).then((response) => response.json()))
      expect(view).toMatchObject({ embedded: false, servers: [{ role: "primary", state: "up" }, { role: "replica" }] })
      expect(JSON.stringify(view)).not.toContain(new URL(env.DATABASE_URL).password)
    })
  )
})

describe("the figures of a load", () => {
  it("figures have the percentiles of each second, and the seconds without an answer", () => {
    const figures = new Figures(0)
    for (let i = 1; i <= 20; i++) figures.succeed("reads", "a", i, 1000 + i)
    figures.fail(1500)
    figures.succeed("writes", "b", 7, 3000)
    const { answered, failed, seconds, served } = figures.at(4000, 50)
    expect(seconds).toEqual([
      { at: 1, reads: 20, writes: 0, failed: 1, medianMillis: 10, p95Millis: 19 },
      { at: 2, reads: 0, writes: 0, failed: 0, medianMillis: null, p95Millis: null },
      { at: 3, reads: 0, writes: 1, failed: 0, medianMillis: 7, p95Millis: 7 }
    ])
    expect({ answered, failed, served }).toEqual({
      answered: 21,
      failed: 1,
      served: [
        { address: "a", reads: 20, writes: 0 },
        { address: "b", reads: 0, writes: 1 }
      ]
    })
  })

  it("figures cover two minutes, and end with the load", () => {
    const figures = new Figures(0)
    for (let second = 0; second < 300; second++) figures.succeed("writes", "a", 1, second * 1000)
    expect(figures.at(300_000, 50).seconds.map(({ at }) => at)).toEqual(Array.from({ length: 120 }, (_, i) => 180 + i))
    expect(figures.at(400_000, 0).seconds.map(({ at }) => at)).toEqual(Array.from({ length: 20 }, (_, i) => 280 + i))
    expect(figures.at(500_000, 0).seconds).toEqual([])
  })

  it("figures report a pause while it lasts, and its length and failures after it; the longest counts", () => {
    const figures = new Figures(0)
    figures.succeed("writes", "a", 1, 100)
    figures.succeed("writes", "a", 1, 500)
    expect(figures.at(900, 50).pause).toBe(null)
    figures.fail(950)
    expect(figures.at(1000, 50).pause).toEqual({ since: 500, millis: 500, failed: 1, isOver: false })
    figures.succeed("reads", "a", 1, 1100)
    figures.succeed("writes", "a", 1, 1200)
    const over = { since: 500, millis: 700, failed: 1, isOver: true }
    expect(figures.at(1300, 50).pause).toEqual(over)
    figures.succeed("writes", "a", 1, 1800)
    expect(figures.at(1900, 50).pause).toEqual(over)
    expect(figures.at(9000, 0).pause).toEqual(over)
  })
})
