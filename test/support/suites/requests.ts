/** The guarantees of a request with a unit of work, over HTTP, for each framework that serves it. */
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import { describe } from "vitest"
import { Db } from "../databases.js"
import { eventually } from "../eventually.js"
import { sends } from "../proxy.js"
import { query } from "../server.js"
import { atOnce, come, idle, listOf, noted, post, problem, stored, textOf } from "./requests/client.js"
import { hearing, tell } from "./requests/messages.js"
import { Site, tenantHeader } from "./requests/site.js"

/** The tests of one request: the name, the handler, the status, and the rows that are stored. */
const simple: ReadonlyArray<readonly [name: string, handler: string, status: number, rows: ReadonlyArray<string>]> = [
  ["an insert in a request is stored", "insert", 200, ["insert"]],
  ...[200, 201, 204, 301, 304, 399].map(
    (status) => [`a response with status ${status} commits`, `status-${status}`, status, [`status-${status}`]] as const
  ),
  ...[400, 404, 500, 503].map(
    (status) =>
      [`a response with status ${status} from the handler rolls back`, `status-${status}`, status, []] as const
  ),
  ["a handler that throws makes a 500 and rolls back", "throws", 500, []],
  ["an early commit stays when more work and a 500 follow", "early-commit", 500, ["early-commit: kept"]],
  ["an early rollback stays undone when a 200 follows", "early-rollback", 200, []],
  ["independent work stays when its request fails", "independent", 500, ["independent: kept"]],
  [
    "a nested transaction that fails and is caught undoes its own work alone",
    "nested",
    200,
    ["nested: before", "nested: one", "nested: two"]
  ],
  ["a hook that throws before the commit makes a 500 and rolls back", "veto", 500, []]
]

/** Runs the suite against one framework. */
export const requests = (name: string, site: Layer.Layer<Site>): void => {
  describe(name, () => {
    layer(site, { excludeTestServices: true, timeout: "30 seconds" })((it) => {
      for (const [title, handler, status, rows] of simple) {
        it.scoped(title, () =>
          Effect.gen(function* () {
            const response = yield* post(`/checked/${handler}`)
            yield* textOf(response)
            assert.strictEqual(response.status, status)
            assert.deepStrictEqual(yield* stored(handler), rows)
            if (rows.length === 0) assert.notInclude(yield* noted, handler)
            yield* idle
          })
        )
      }

      it.scoped("five concurrent tasks in one request are one transaction", () =>
        Effect.gen(function* () {
          const pids = yield* listOf(yield* post("/checked/five"))
          assert.strictEqual(new Set(pids).size, 1)
          assert.deepStrictEqual(yield* stored("five"), ["five: 1", "five: 2", "five: 3", "five: 4", "five: 5"])
        })
      )

      it.scoped("two concurrent first uses of a database share one transaction", () =>
        Effect.gen(function* () {
          const [one, other] = yield* listOf(yield* post("/checked/race"))
          assert.isNumber(one)
          assert.strictEqual(one, other)
          yield* idle
        })
      )

      it.scoped(
        "requests that are written at once on one connection are answered in order, each by its own outcome",
        () =>
          Effect.gen(function* () {
            const handlers = ["early-rollback", "throws", "where", "orphan-stream", "race", "orphan-text", "where"]
            const statuses = yield* atOnce(handlers.map((handler) => `/checked/${handler}`))
            assert.deepStrictEqual(statuses, [200, 500, 200, 500, 200, 500, 200])
            assert.deepStrictEqual(yield* stored("orphan"), [])
            yield* idle
          })
      )

      it.scoped("a check that fails on the second of two databases makes a 500, and nothing is stored", () =>
        Effect.gen(function* () {
          const response = yield* post("/checked/two")
          assert.strictEqual(response.status, 500)
          assert.include(response.headers.get("content-type"), problem)
          assert.notInclude(yield* textOf(response), "both stored")
          assert.deepStrictEqual(yield* stored("two"), [])
          assert.notInclude(yield* noted, "two")
          yield* idle
        })
      )

      it.scoped("a COMMIT that fails on the second of two databases makes a 500 that says so", () =>
        Effect.gen(function* () {
          const response = yield* post("/unchecked/two")
          assert.strictEqual(response.status, 500)
          assert.include(response.headers.get("content-type"), problem)
          assert.include(yield* textOf(response), "stored in part")
          assert.deepStrictEqual(yield* stored("two"), ["two"])
          assert.notInclude(yield* noted, "two")
          yield* idle
        })
      )

      for (const kind of ["empty", "text", "stream"]) {
        it.scoped(
          `a commit that fails after the handler has responded makes a 500 without its response (${kind})`,
          () =>
            Effect.gen(function* () {
              const response = yield* post(`/checked/orphan-${kind}`)
              assert.strictEqual(response.status, 500)
              assert.include(response.headers.get("content-type"), problem)
              assert.notInclude(yield* textOf(response), "stored and")
              assert.deepStrictEqual(yield* stored(`orphan-${kind}`), [])
              yield* idle
            })
        )
      }

      for (const [handler, doing, left] of [
        ["hang", "its handler waits", ["idle"]],
        // the connection is kept if the server confirms the cancel in time, and else closed
        ["sleep", "its statement runs", ["idle", ""]]
      ] as const) {
        it.scoped(`a client that disconnects while ${doing} has its request rolled back`, () =>
          Effect.gen(function* () {
            const { writer } = yield* Site
            const leave = yield* come(handler)
            const pid = yield* hearing(handler)
            yield* leave
            yield* idle
            assert.deepStrictEqual(yield* stored(handler), [])
            // on the server the transaction has ended as well
            yield* query<{ state: string }>(writer, "SELECT state FROM pg_stat_activity WHERE pid = $1", [pid]).pipe(
              Effect.map((rows) => rows.map(({ state }) => state)),
              eventually((states) => left.some((state) => state === states.join()))
            )
          })
        )
      }

      it.scoped("a client that disconnects while the commit is under way has its request stored", () =>
        Effect.gen(function* () {
          const { front } = yield* Site
          const committing = yield* front.when(sends("COMMIT"), "freeze")
          const leave = yield* come("leaving")
          yield* committing
          yield* leave
          yield* front.thaw
          yield* idle
          assert.deepStrictEqual(yield* stored("leaving"), ["leaving"])
          assert.strictEqual((yield* post("/checked/where")).status, 200)
        })
      )

      it.scoped("a body that is streamed after the end gets TransactionEnded, and independent work is stored", () =>
        Effect.gen(function* () {
          const response = yield* post("/checked/stream")
          assert.strictEqual(response.status, 200)
          // the response is not sent before the commit
          assert.deepStrictEqual(yield* stored("stream"), ["stream: in time"])
          yield* idle
          tell("stream: started")
          assert.strictEqual(yield* textOf(response), "start\nTransactionEnded\nown\n")
          assert.deepStrictEqual(yield* stored("stream"), ["stream: in time", "stream: own"])
          yield* idle
        })
      )

      it.scoped("a background task after the end gets TransactionEnded, and independent work is stored", () =>
        Effect.gen(function* () {
          const response = yield* post("/checked/background")
          assert.strictEqual(response.status, 202)
          assert.deepStrictEqual(yield* stored("background"), ["background: in time"])
          yield* idle
          tell("background: answered")
          assert.strictEqual(yield* hearing("background: done"), "TransactionEnded")
          assert.deepStrictEqual(yield* stored("background"), ["background: in time", "background: own"])
          yield* idle
        })
      )

      it.scoped("a hook before the commit may be the first to use another database", () =>
        Effect.gen(function* () {
          assert.strictEqual((yield* post("/checked/hook")).status, 200)
          assert.deepStrictEqual(yield* stored("hook"), ["hook"])
          assert.include(yield* noted, "hook")
          assert.notInclude(yield* noted, "veto")
          yield* idle
        })
      )

      it.scoped("reads go to the replica until the request has written, and then see its writes", () =>
        Effect.gen(function* () {
          assert.deepStrictEqual(yield* listOf(yield* post("/checked/readers")), [
            { standby: true, n: 0 },
            { standby: false, n: 1 }
          ])
          assert.deepStrictEqual(yield* stored("readers"), ["readers"])
        })
      )

      it.scoped("a request with strong consistency reads the writes of the request before, from the primary", () =>
        Effect.gen(function* () {
          assert.strictEqual((yield* post("/checked/wrote")).status, 201)
          assert.deepStrictEqual(yield* listOf(yield* post("/checked/again")), [{ standby: false, n: 1 }, true])
          yield* idle
        })
      )

      it.scoped(
        "the schema in a statement precedes that of its request, and the next request on the connection has neither",
        () =>
          Effect.gen(function* () {
            const { writer } = yield* Site
            const [pid, name] = yield* listOf(yield* post("/checked/schemas"))
            assert.strictEqual(name, "tenant")
            assert.deepStrictEqual(yield* stored("schemas"), ["schemas: by default", "schemas: of the statement"])
            assert.deepStrictEqual(yield* query(writer, "SELECT name FROM tenant.item"), [
              { name: "schemas: of the request" }
            ])
            yield* idle
            assert.deepStrictEqual(yield* listOf(yield* post("/checked/schema")), [pid, "public"])
          })
      )

      for (const part of ["checked", "unchecked"]) {
        it.scoped(`concurrent requests of two tenants and of none keep to their own rows (${part})`, () =>
          Effect.gen(function* () {
            const { writer } = yield* Site
            const headers = [{ [tenantHeader]: "tenant" }, { [tenantHeader]: "other" }, {}]
            const own = [
              ["tenant", "tenant", "tenant", "tenant", "tenant", 1],
              ["other", "other", "other", "other", "other", 1],
              ["public", "public", "other", "public", "public", 1]
            ]
            const rows = `
                SELECT 'tenant' AS schema, name FROM tenant.item UNION ALL SELECT 'other', name FROM other.item UNION ALL
                SELECT 'public', name FROM public.item`
            for (const order of [headers, [...headers].reverse()]) {
              const answers = yield* Effect.forEach(
                order,
                (header) => Effect.flatMap(post(`/${part}/tenants`, header), listOf),
                { concurrency: "unbounded" }
              )
              assert.deepStrictEqual(answers, order === headers ? own : [...own].reverse())
              const kept = yield* query<{ schema: string; name: string }>(
                writer,
                `SELECT * FROM (${rows}) AS all_rows WHERE name LIKE 'tenants%' ORDER BY 1, 2`
              )
              assert.deepStrictEqual(
                kept.map(({ name, schema }) => `${schema} ${name}`),
                [
                  "other tenants",
                  "public tenants",
                  "public tenants: of other",
                  "public tenants: of public",
                  "public tenants: of tenant",
                  "tenant tenants"
                ]
              )
              for (const schema of ["tenant", "other", "public"]) {
                yield* query(writer, `DELETE FROM ${schema}.item WHERE name LIKE 'tenants%'`)
              }
              yield* idle
            }
          })
        )

        it.scoped(`a body that is streamed after the end uses the schema of its tenant (${part})`, () =>
          Effect.gen(function* () {
            const answer = yield* post(`/${part}/tenant-stream`, { [tenantHeader]: "tenant" })
            assert.strictEqual(yield* textOf(answer), "tenant\ntenant\n")
            yield* idle
            yield* query((yield* Site).writer, "DELETE FROM tenant.item")
          })
        )

        it.scoped(`an empty tenant is refused, and not taken for no tenant (${part})`, () =>
          Effect.gen(function* () {
            const answer = yield* post(`/${part}/no-tenant`, { [tenantHeader]: "" })
            assert.strictEqual(yield* textOf(answer), "SchemaInvalid")
            assert.deepStrictEqual(yield* stored("no-tenant"), [])
          })
        )
      }

      it.scoped("a request during a change of host ends on the old host, and the next one uses the new", () =>
        Effect.gen(function* () {
          const { front, other, run } = yield* Site
          const moving = yield* Effect.fork(post("/checked/move"))
          yield* hearing("move: under way")
          yield* front.retarget(other.url)
          yield* run(Db.invalidate({ mode: "soft" }))
          tell("move: moved")
          const response = yield* moving
          assert.strictEqual(response.status, 200)
          assert.notInclude(other.ports, Number(yield* textOf(response)))
          assert.deepStrictEqual(yield* stored("move"), ["move: after", "move: before"])
          const next = Number(yield* textOf(yield* post("/checked/where")))
          assert.include(other.ports, next)
          yield* idle
        })
      )
    })
  })
}
