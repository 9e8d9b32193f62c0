import * as Http1 from "node:http"
import { describe, expect, layer } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { EmbeddedPostgres } from "effect-db/EmbeddedPostgres"
import manifest from "../../package.json" with { type: "json" }
import { query } from "../support/server.js"
import { type Answer, during, events, rows, Service, send, service, todo } from "../support/service.js"
import { wrongInput } from "../support/suites/service/wrongInput.js"

layer(service, { excludeTestServices: true, timeout: 30_000 })("the service", (it) => {
  describe("todos", () => {
    it.effect("todos are created, listed, changed and deleted, with one event for each change", () =>
      Effect.gen(function* () {
        const created = yield* send("POST", "/todos", { id: "life", title: "Live" })
        expect(created).toMatchObject({ status: 201, body: { id: "life", title: "Live", done: false } })
        const listed = (done: string) =>
          Effect.map(send("GET", `/todos${done}`), ({ body }) =>
            (body as ReadonlyArray<{ readonly id: string }>).map(({ id }) => id)
          )
        expect(yield* listed("")).toContain("life")
        expect(yield* listed("?done=true")).not.toContain("life")
        expect(yield* send("PATCH", "/todos/life", { done: true })).toMatchObject({
          status: 200,
          body: { id: "life", title: "Live", done: true }
        })
        expect(yield* listed("?done=true")).toContain("life")
        expect(yield* listed("?done=false")).not.toContain("life")
        expect(yield* send("DELETE", "/todos/life")).toMatchObject({ status: 204 })
        expect(yield* listed("")).not.toContain("life")
        expect(yield* events("life")).toEqual(["todo.created", "todo.updated", "todo.deleted"])
        expect(yield* send("GET", "/events?subject=life")).toMatchObject({
          status: 200,
          body: [{ what: "todo.deleted" }, { what: "todo.updated" }, { what: "todo.created" }]
        })
      })
    )

    it.effect("todos get an id if the client gives none, and texts are returned as they were", () =>
      Effect.gen(function* () {
        const title = `'; DROP TABLE todo; -- "\\ \u{1F95B} \n `
        const { body, status } = yield* send("POST", "/todos", { title })
        expect(status).toBe(201)
        expect(body).toMatchObject({ id: expect.stringMatching(/^[0-9a-f-]{36}$/), title })
      })
    )

    it.effect("a second todo with the same id is 409, and changes nothing in either database", () =>
      Effect.gen(function* () {
        yield* send("POST", "/todos", { id: "twice", title: "first" })
        expect(yield* send("POST", "/todos", { id: "twice", title: "second" })).toMatchObject({
          status: 409,
          body: { _tag: "TodoExists", message: 'there is a todo "twice" already' }
        })
        expect(yield* todo("twice")).toEqual([{ title: "first", done: false }])
        expect(yield* events("twice")).toEqual(["todo.created"])
      })
    )

    it.effect("a todo that is missing is 404, and leaves no event", () =>
      Effect.gen(function* () {
        const missing = { status: 404, body: { _tag: "TodoNotFound", message: 'there is no todo "nobody"' } }
        expect(yield* send("GET", "/todos/nobody")).toMatchObject(missing)
        expect(yield* send("PATCH", "/todos/nobody", { done: true })).toMatchObject(missing)
        expect(yield* send("DELETE", "/todos/nobody")).toMatchObject(missing)
        expect(yield* events("nobody")).toEqual([])
      })
    )

    it.effect("many todos created at once are all stored, each once", () =>
      Effect.gen(function* () {
        const ids = Array.from({ length: 60 }, (_, i) => `many-${i}`)
        const answers = yield* Effect.forEach(ids, (id) => send("POST", "/todos", { id, title: id }), {
          concurrency: 20
        })
        expect(answers.map(({ status }) => status)).toEqual(ids.map(() => 201))
        const [stored] = yield* rows(
          "app",
          "SELECT count(*)::int AS n, count(DISTINCT id)::int AS ids FROM todo WHERE id LIKE 'many-%'"
        )
        expect(stored).toEqual({ n: 60, ids: 60 })
        expect(
          yield* rows(
            "audit",
            "SELECT count(*)::int AS n, count(DISTINCT subject)::int AS ids FROM event WHERE subject LIKE 'many-%'"
          )
        ).toEqual([{ n: 60, ids: 60 }])
      })
    )
  })

  wrongInput(it)

  describe("a failed request", () => {
    it.scoped("a change that cannot be made stores nothing in either database", () =>
      Effect.gen(function* () {
        yield* during("app", "ALTER TABLE todo RENAME TO gone", "ALTER TABLE gone RENAME TO todo")
        const { body, status } = yield* send("POST", "/todos", { id: "fail-1", title: "a" })
        expect(status).toBe(500)
        expect(body).toEqual({ _tag: "Broken", message: "the service has a fault; its log says more" })
        expect(yield* events("fail-1")).toEqual([])
      })
    )

    it.scoped("an event that cannot be written undoes the change in both databases", () =>
      Effect.gen(function* () {
        yield* during("audit", "ALTER TABLE event RENAME TO gone", "ALTER TABLE gone RENAME TO event")
        expect(yield* send("POST", "/todos", { id: "fail-2", title: "a" })).toMatchObject({ status: 500 })
        expect(yield* todo("fail-2")).toEqual([])
      })
    )

    const refuse = `
      CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not today'; END $$;
      CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON`
    const deferred = "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()"

    it.scoped("a refused commit of the event undoes the change in both databases", () =>
      Effect.gen(function* () {
        yield* during("audit", `${refuse} event ${deferred}`, "DROP FUNCTION refuse() CASCADE")
        expect(yield* send("POST", "/todos", { id: "fail-3", title: "a" })).toMatchObject({ status: 500 })
        expect(yield* todo("fail-3")).toEqual([])
        expect(yield* events("fail-3")).toEqual([])
      })
    )

    it.scoped("a change whose COMMIT would be refused is found before its event's COMMIT; nothing is stored", () =>
      Effect.gen(function* () {
        yield* during("app", `${refuse} todo ${deferred}`, "DROP FUNCTION refuse() CASCADE")
        const { body, status } = yield* send("POST", "/todos", { id: "fail-4", title: "a" })
        expect(status).toBe(500)
        expect(body).toMatchObject({ _tag: "Broken" })
        expect(yield* todo("fail-4")).toEqual([])
        expect(yield* events("fail-4")).toEqual([])
      })
    )

    it.scoped("a request whose client disconnects while it waits stores nothing in either database", () =>
      Effect.gen(function* () {
        const { primary } = yield* EmbeddedPostgres
        const waiting = query<{ n: number }>(
          primary.url("app"),
          "SELECT count(*)::int AS n FROM pg_locks WHERE NOT granted"
        )
        const until = (n: number) =>
          Effect.repeat(waiting, { until: ([row]) => row?.n === n, schedule: Schedule.spaced("5 millis") })
        yield* Effect.forkScoped(
          query(primary.url("app"), "LOCK TABLE todo IN SHARE MODE; SELECT pg_advisory_lock(7), pg_sleep(20)")
        )
        yield* query(primary.url("app"), "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'").pipe(
          Effect.repeat({ until: (found) => found.length > 0, schedule: Schedule.spaced("5 millis") })
        )
        const request = yield* Effect.fork(send("POST", "/todos", { id: "fail-5", title: "a" }))
        yield* until(1)
        yield* Effect.asVoid(request.interruptAsFork(request.id()))
        yield* until(0)
        // a server does not notice that the client of a sleeping session has gone
        yield* rows("app", "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'")
        expect(yield* todo("fail-5")).toEqual([])
        expect(yield* events("fail-5")).toEqual([])
      })
    )
  })

  describe("records", () => {
    const insert = `
      INSERT INTO record SELECT 'K' || lpad(i::text, 3, '0'), 'Airport ' || i, CASE WHEN i = 7 THEN '100% Lake_City' ELSE 'Town' END,
        'ST', 'USA', i / 10.0, -i / 10.0 FROM generate_series(1, 45) AS i`

    it.scoped("records are paged and searched on the replica", () =>
      Effect.gen(function* () {
        const { awaitReplicas } = yield* EmbeddedPostgres
        yield* during("app", insert, "TRUNCATE record")
        yield* awaitReplicas
        const page = (path: string) => send("GET", `/records${path}`)
        const last = yield* page("?page=3")
        expect(last.headers.get("x-served-by")).toMatch(/^replica /)
        expect(last).toMatchObject({ status: 200, body: { total: 45, page: 3, pages: 3 } })
        expect((last.body as { records: ReadonlyArray<unknown> }).records).toHaveLength(5)
        expect(yield* page("?page=4")).toMatchObject({ status: 200, body: { total: 45, records: [] } })
        expect(yield* page("?search=AIRPORT%207")).toMatchObject({
          status: 200,
          body: { total: 1, records: [{ iata: "K007", name: "Airport 7", latitude: 0.7, longitude: -0.7 }] }
        })
        // these characters stand for themselves
        expect(yield* page(`?search=${encodeURIComponent("0% lake_")}`)).toMatchObject({ body: { total: 1 } })
        expect(yield* page("?search=_______")).toMatchObject({ body: { total: 0 } })
        expect(yield* page(`?search=${encodeURIComponent("%")}`)).toMatchObject({ body: { total: 1 } })
        expect(yield* page(`?search=${encodeURIComponent("' OR true --")}`)).toMatchObject({ body: { total: 0 } })
      })
    )
  })

  describe("documentation", () => {
    it.effect("OpenAPI names every path with its errors", () =>
      Effect.gen(function* () {
        const { body, status } = yield* send("GET", "/openapi.json")
        expect(status).toBe(200)
        const { info, openapi, paths } = body as {
          info: { version: string }
          openapi: string
          paths: Record<string, Record<string, { responses: object }>>
        }
        expect(openapi).toMatch(/^3\./)
        expect(info.version).toBe(manifest.version)
        const statuses = Object.entries(paths).flatMap(([path, methods]) =>
          Object.entries(methods).map(([method, { responses }]) =>
            [method.toUpperCase(), path, ...Object.keys(responses).sort()].join(" ")
          )
        )
        expect(statuses.sort()).toEqual([
          "DELETE /todos/{id} 204 400 403 404 413 500 503",
          "GET /cluster 200 400 500 503",
          "GET /events 200 400 500 503",
          "GET /load 200 400 500 503",
          "GET /records 200 400 500 503",
          "GET /servers 200 400 500 503",
          "GET /todos 200 400 500 503",
          "GET /todos/{id} 200 400 404 500 503",
          "PATCH /todos/{id} 200 400 403 404 413 500 503",
          "POST /cluster/kill 200 400 403 409 413 500 503",
          "POST /cluster/promote 200 400 403 409 413 500 503",
          "POST /cluster/start 200 400 403 409 413 500 503",
          "POST /servers/freeze 200 400 403 413 500 503",
          "POST /servers/kill 200 400 403 413 500 503",
          "POST /servers/thaw 200 400 403 413 500 503",
          "POST /todos 201 400 403 409 413 500 503",
          "PUT /load 200 400 403 413 500 503"
        ])
      })
    )

    it.effect("the page at /docs needs nothing from elsewhere", () =>
      Effect.gen(function* () {
        const { body, headers, status } = yield* send("GET", "/docs")
        expect(status).toBe(200)
        expect(headers.get("content-type")).toContain("text/html")
        expect(body).toContain("effect-db example service")
        expect(body).not.toMatch(/<(script|link)[^>]+(src|href)=/)
      })
    )

    it.effect("an unknown path is 404 and points to the documentation", () =>
      Effect.gen(function* () {
        expect(yield* send("GET", "/nothing")).toMatchObject({
          status: 404,
          body: { message: expect.stringContaining("/docs") }
        })
      })
    )
  })

  it.effect("a method that a path does not support is 405, and the answer lists the supported ones", () =>
    Effect.gen(function* () {
      const cases = [
        ["PUT", "/todos", "GET, POST"],
        ["POST", "/todos/life?done=true", "GET, PATCH, DELETE"],
        ["DELETE", "/records", "GET"],
        ["GET", "/servers/kill", "POST"],
        ["GET", "/cluster/promote", "POST"],
        ["DELETE", "/cluster", "GET"],
        ["POST", "/load", "GET, PUT"],
        ["POST", "/", "GET"],
        ["PUT", "/docs", "GET"]
      ] as const
      for (const [method, path, allow] of cases) {
        const { body, headers, status } = yield* send(method, path)
        expect({ path, status, allow: headers.get("allow") }).toEqual({ path, status: 405, allow })
        expect(body).toMatchObject({ _tag: "MethodNotAllowed", message: expect.stringContaining(`only ${allow};`) })
      }
      expect(yield* send("PUT", "/todos/")).toMatchObject({ status: 404 })
    })
  )

  describe("the servers named in answers", () => {
    const by = ({ headers }: Answer) =>
      ["x-database", "x-served-by", "x-transaction"].map((name) => headers.get(name)).join(", ")

    it.effect("the answers to changes, lists and events name their database, server and transaction", () =>
      Effect.gen(function* () {
        const { primary } = yield* EmbeddedPostgres
        const at = `primary ${primary.host}:${primary.port}`
        const created = yield* send("POST", "/todos", { id: "by", title: "a" })
        expect(by(created)).toBe(`app, ${at}, yes`)
        expect(created.headers.get("server-timing")).toMatch(/^work;dur=\d+\.\d$/)
        expect(by(yield* send("PATCH", "/todos/by", { done: true }))).toBe(`app, ${at}, yes`)
        expect(by(yield* send("GET", "/todos"))).toBe(`app, ${at}, no`)
        expect(by(yield* send("GET", "/todos/by"))).toBe(`app, ${at}, no`)
        expect(by(yield* send("DELETE", "/todos/by"))).toBe(`app, ${at}, yes`)
        expect(by(yield* send("GET", "/events"))).toBe(`audit, ${at}, no`)
      })
    )

    it.effect("the answer to a search names the replica and no transaction", () =>
      Effect.gen(function* () {
        const { replicas } = yield* EmbeddedPostgres
        expect(by(yield* send("GET", "/records"))).toBe(`app, replica ${replicas[0]?.host}:${replicas[0]?.port}, no`)
      })
    )

    it.scoped("the time in an answer includes the commit", () =>
      Effect.gen(function* () {
        yield* during(
          "app",
          `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$;
           CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON todo DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()`,
          "DROP FUNCTION slow() CASCADE"
        )
        const { headers } = yield* send("POST", "/todos", { title: "a" })
        expect(Number(/dur=(.*)/.exec(headers.get("server-timing") ?? "")?.[1])).toBeGreaterThanOrEqual(200)
      })
    )
  })

  describe("the page's files", () => {
    const parts = ["/", "/page/style.css", "/page/icon.svg", "/page/main.js"]

    it.effect("the page's files have their type and a strict policy, and are sent again only if changed", () =>
      Effect.gen(function* () {
        const types = [
          "text/html; charset=utf-8",
          "text/css; charset=utf-8",
          "image/svg+xml",
          "text/javascript; charset=utf-8"
        ]
        for (const [i, path] of parts.entries()) {
          const { headers, status } = yield* send("GET", path)
          expect(status).toBe(200)
          expect(headers.get("content-type")).toBe(types[i])
          expect(headers.get("cache-control")).toBe("no-cache")
          expect(headers.get("x-content-type-options")).toBe("nosniff")
          const policy = headers.get("content-security-policy")
          expect(policy).toMatch(/^default-src 'none';.* script-src 'self';.* frame-ancestors 'none'$/)
          expect(policy).not.toContain("unsafe")
          const etag = headers.get("etag") ?? ""
          expect(etag).toMatch(/^".+"$/)
          const again = yield* send("GET", path, undefined, { headers: { "if-none-match": etag } })
          expect(again).toMatchObject({ status: 304, body: "" })
        }
      })
    )

    it.effect("the page's files name only files that the service has, and the page has no inline script or style", () =>
      Effect.gen(function* () {
        const { body } = yield* send("GET", "/")
        const wanted = [...String(body).matchAll(/(?:src|href)="([^"#]+)"/g)].map(([, path]) => String(path))
        const seen = new Set<string>()
        for (const path of wanted) {
          if (seen.has(path)) continue
          seen.add(path)
          const { body, status } = yield* send("GET", path)
          expect(`${path} ${status}`).toBe(`${path} 200`)
          if (path.endsWith(".js")) {
            for (const [, next] of String(body).matchAll(/^import .*"\.\/(.*)"$/gm)) wanted.push(`/page/${next}`)
          }
        }
        expect([...seen].filter((path) => path.endsWith(".js")).length).toBeGreaterThan(5)
        expect(body).not.toMatch(/<script(?![^>]* src=)|<style|\son\w+=|\sstyle=/)
      })
    )

    it.effect("files beside those of the page are not served", () =>
      Effect.gen(function* () {
        for (const path of ["/page/tsconfig.json", "/page/../page.ts", "/page/%2e%2e/main.ts", "/page/"]) {
          expect(yield* send("GET", path)).toMatchObject({ status: 404 })
        }
      })
    )
  })

  describe("a page of another site", () => {
    const from = (headers: Record<string, string>, method = "POST", path = "/todos") =>
      send(method, path, undefined, {
        headers: { "content-type": "application/json", ...headers },
        ...(method === "POST" ? { body: JSON.stringify({ title: "foreign" }) } : {})
      })

    it.effect("a page of another site changes nothing and kills nothing", () =>
      Effect.gen(function* () {
        const refused = { status: 403, body: { _tag: "CrossSite" } }
        for (const site of ["cross-site", "same-site"]) {
          expect(yield* from({ "sec-fetch-site": site })).toMatchObject(refused)
          expect(yield* from({ "sec-fetch-site": site }, "POST", "/servers/kill")).toMatchObject(refused)
          expect(yield* from({ "sec-fetch-site": site }, "POST", "/cluster/kill")).toMatchObject(refused)
          expect(yield* from({ "sec-fetch-site": site }, "PUT", "/load")).toMatchObject(refused)
          expect(yield* from({ "sec-fetch-site": site }, "DELETE", "/todos/any")).toMatchObject(refused)
        }
        for (const origin of ["https://example.com", "null", "http://localhost:1"]) {
          expect(yield* from({ origin })).toMatchObject(refused)
          expect(yield* from({ origin }, "POST", "/servers/freeze")).toMatchObject(refused)
        }
        // as an old browser sends a form
        expect(
          yield* from({ "content-type": "application/x-www-form-urlencoded", origin: "https://example.com" })
        ).toMatchObject(refused)
        expect(yield* rows("app", "SELECT 1 FROM todo WHERE title = 'foreign'")).toEqual([])
      })
    )

    it.effect("a page of another site has no effect under a name of its own; the names of this host are served", () =>
      Effect.gen(function* () {
        const { url } = yield* Service
        const { port } = new URL(url)
        const by = (host: string, path: string) =>
          Effect.promise(
            () =>
              new Promise<number | undefined>((resolve, reject) => {
                const headers = { host, origin: `http://${host}`, "sec-fetch-site": "same-origin" }
                Http1.request(`${url}${path}`, { method: "POST", headers }, (response) => {
                  response.resume()
                  resolve(response.statusCode)
                })
                  .on("error", reject)
                  .end()
              })
          )
        for (const host of ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1"]) {
          for (const path of ["/servers/kill", "/servers/freeze", "/todos"]) {
            expect(yield* by(`${host}:${port}`, path), host).toBe(403)
          }
        }
        for (const host of ["127.0.0.1", "localhost", "[::1]", "LOCALHOST", "app.localhost"]) {
          expect(yield* by(`${host}:${port}`, "/servers/thaw"), host).toBe(200)
        }
      })
    )

    it.effect("requests of the service's own page, and of clients other than browsers, are served", () =>
      Effect.gen(function* () {
        const { url } = yield* Service
        for (const headers of [{ "sec-fetch-site": "same-origin" }, { origin: url }, {}]) {
          expect(yield* from(headers)).toMatchObject({ status: 201 })
        }
        expect(yield* from({ "sec-fetch-site": "cross-site" }, "GET")).toMatchObject({ status: 200 })
      })
    )
  })

  describe("a database out of reach", () => {
    const unreachable = { status: 503, body: { _tag: "Unavailable", stored: "no" } }

    it.scoped("a primary that is stopped is 503 while the replica serves on, and comes back after a restart", () =>
      Effect.gen(function* () {
        const { primary } = yield* EmbeddedPostgres
        yield* Effect.acquireRelease(primary.stop, () => Effect.orDie(primary.start))
        expect(yield* send("POST", "/todos", { id: "down", title: "a" })).toMatchObject(unreachable)
        expect(yield* send("GET", "/todos")).toMatchObject(unreachable)
        expect(yield* send("GET", "/records")).toMatchObject({ status: 200 })
        yield* primary.start
        expect(yield* send("POST", "/todos", { id: "down", title: "a" })).toMatchObject({ status: 201 })
        expect(yield* events("down")).toEqual(["todo.created"])
      })
    )

    it.scoped("a frozen primary is 503 within 20 seconds", () =>
      Effect.gen(function* () {
        const { primary } = yield* EmbeddedPostgres
        yield* Effect.acquireRelease(primary.freeze, () => Effect.orDie(primary.thaw))
        const [took, answer] = yield* Effect.timed(send("POST", "/todos", { id: "frozen", title: "a" }))
        expect(answer).toMatchObject(unreachable)
        expect(Duration.toMillis(took)).toBeLessThan(20_000)
        yield* primary.thaw
        expect(yield* send("POST", "/todos", { id: "frozen", title: "a" })).toMatchObject({ status: 201 })
        expect(yield* events("frozen")).toEqual(["todo.created"])
      })
    )

    it.effect("the words of the server are not sent to the client", () =>
      Effect.gen(function* () {
        const { primary, terminateBackends } = yield* EmbeddedPostgres
        yield* terminateBackends()
        yield* primary.stop
        const { body } = yield* Effect.ensuring(send("GET", "/todos"), Effect.orDie(primary.start))
        expect(JSON.stringify(body)).not.toMatch(/127\.0\.0\.1|ECONNREFUSED|postgres/)
      })
    )

    it.effect("connections that were killed are replaced, and no client notices", () =>
      Effect.gen(function* () {
        const { terminateBackends } = yield* EmbeddedPostgres
        yield* send("POST", "/todos", { id: "killed-1", title: "a" })
        yield* terminateBackends()
        expect(yield* send("POST", "/todos", { id: "killed-2", title: "a" })).toMatchObject({ status: 201 })
        yield* terminateBackends()
        expect(yield* send("GET", "/records")).toMatchObject({ status: 200 })
      })
    )
  })
})
