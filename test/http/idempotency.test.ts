/**
 * Requests with an idempotency key, by HTTP: each is done once, however often its client sends it.
 */
import { HttpServerRequest } from "@effect/platform"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import { DatabaseError, DatabaseRuntime, RequestTransaction, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { Audit, Db } from "../support/databases.js"
import { answers, type Proxy, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"
import { given, places, replayed, router, type Sent, through } from "../support/suites/requests/keyed.js"

for (const [name, serve] of places) {
  describe(`idempotency keys with ${name}`, () => {
    it.scopedLive(`with ${name}, a repeated request gets the kept response and does not run`, () =>
      Effect.gen(function* () {
        const { send, state, stored } = yield* given(serve, { keepAnswer: true })
        const first = yield* send({ key: "one" })
        assert.deepStrictEqual([first.status, first.text, first.headers.get(replayed)], [201, "run 1", null])
        for (let n = 0; n < 2; n++) {
          const again = yield* send({ key: "one" })
          assert.deepStrictEqual([again.status, again.text], [201, "run 1"])
          assert.strictEqual(again.headers.get(replayed), "true")
          assert.strictEqual(again.headers.get("location"), "/there")
          assert.strictEqual(again.headers.get("content-type"), first.headers.get("content-type"))
          assert.strictEqual(again.headers.get("set-cookie"), null)
        }
        assert.strictEqual(state.runs, 1)
        assert.deepStrictEqual(yield* stored, ["a"])
      })
    )

    it.scopedLive(`with ${name}, a repeated request is 409 without a kept response, and 422 with other content`, () =>
      Effect.gen(function* () {
        const { send, state, stored } = yield* given(serve)
        assert.strictEqual((yield* send({ key: "one" })).status, 201)
        const again = yield* send({ key: "one" })
        assert.strictEqual(again.status, 409)
        assert.include(again.headers.get("content-type"), "application/problem+json")
        assert.deepInclude(JSON.parse(again.text), { type: "about:blank", status: 409 })
        assert.strictEqual((yield* send({ key: "one", body: "b" })).status, 422)
        assert.strictEqual((yield* send({ key: "one", path: "/items?x=1" })).status, 422)
        assert.strictEqual(state.runs, 1)
        // another key, path or user is another request
        assert.strictEqual((yield* send({ key: "two", body: "b" })).status, 201)
        assert.strictEqual((yield* send({ key: "one", path: "/nothing", body: "c" })).status, 201)
        assert.strictEqual((yield* send({ key: "one", user: "eve", body: "c" })).status, 201)
        assert.deepStrictEqual(yield* stored, ["a", "b", "c"])
      })
    )

    it.scopedLive(
      `with ${name}, a key that is missing or not valid is 400, and only with required if it is missing`,
      () =>
        Effect.gen(function* () {
          const { send, state } = yield* given(serve, { required: true })
          for (const key of [undefined, "", "a\tb", "a\u0085b", "x".repeat(256)])
            assert.strictEqual((yield* send(key === undefined ? {} : { key })).status, 400)
          assert.strictEqual(state.runs, 0)
          assert.strictEqual((yield* send({ key: "x".repeat(255) })).status, 201)
          const other = yield* given(serve)
          for (let n = 0; n < 2; n++) assert.strictEqual((yield* other.send({})).status, 201)
          assert.deepStrictEqual(yield* other.stored, ["a", "a"])
        })
    )

    it.scopedLive(`with ${name}, a request that rolls back leaves no key, and one that writes nothing leaves it`, () =>
      Effect.gen(function* () {
        const { send, state, stored } = yield* given(serve, { keepAnswer: true })
        assert.strictEqual((yield* send({ key: "one", path: "/refused" })).status, 422)
        assert.deepStrictEqual(yield* stored, [])
        assert.strictEqual((yield* send({ key: "one", path: "/refused" })).text, "run 2")
        assert.deepStrictEqual(yield* stored, ["a"])
        assert.strictEqual((yield* send({ key: "one", path: "/nothing" })).text, "run 3")
        assert.strictEqual((yield* send({ key: "one", path: "/nothing" })).text, "run 3")
        assert.strictEqual(state.runs, 3)
      })
    )

    it.scopedLive(`with ${name}, of two requests at the same time one is stored, on all databases`, () =>
      Effect.gen(function* () {
        for (const [path, keepAnswer] of [
          ["/meet", true],
          ["/meet", false],
          ["/both", true]
        ] as const) {
          const { events, send, state, stored } = yield* given(serve, { keepAnswer })
          const both = yield* Effect.all([send({ key: "one", path }), send({ key: "one", path })], { concurrency: 2 })
          assert.strictEqual(state.runs, 2)
          if (keepAnswer) {
            assert.deepStrictEqual(
              both.map(({ status }) => status),
              [201, 201]
            )
            assert.strictEqual(both[0].text, both[1].text)
            assert.strictEqual(both.filter(({ headers }) => headers.get(replayed) === "true").length, 1)
          } else assert.deepStrictEqual(both.map(({ status }) => status).sort(), [201, 409])
          assert.deepStrictEqual(yield* stored, ["a"])
          assert.deepStrictEqual(yield* events, path === "/both" ? ["a"] : [])
        }
      })
    )

    it.scopedLive(
      `with ${name}, a request whose COMMIT loses its connection is done once when its client repeats it`,
      () =>
        Effect.gen(function* () {
          const proxies: Array<Proxy> = []
          const { send, state, stored } = yield* given(
            serve,
            { keepAnswer: true },
            { resolveWithin: "200 millis", acquireTimeout: "200 millis" },
            (url) => through(proxies, url)
          )
          const proxy = proxies[0] ?? assert.fail("no proxy")
          for (const [key, point] of [
            ["stored", answers("COMMIT")],
            ["lost", sends("COMMIT")]
          ] as const) {
            const before = state.runs
            const cut = yield* proxy.when(point, "cut")
            const [first] = yield* Effect.all([send({ key, body: key }), Effect.zipRight(cut, proxy.refuse)], {
              concurrency: 2
            })
            assert.strictEqual(first.status, 503)
            yield* proxy.accept
            const again = yield* Effect.repeat(send({ key, body: key }), {
              until: ({ status }) => status !== 503,
              times: 100
            })
            const runs = key === "stored" ? before + 1 : state.runs
            assert.deepStrictEqual([again.status, again.text], [201, `run ${runs}`])
            assert.strictEqual((yield* send({ key, body: key })).text, again.text)
          }
          assert.deepStrictEqual(yield* stored, ["lost", "stored"])
        })
    )
  })
}

describe("the storage of idempotency keys", () => {
  it.scopedLive("a key costs the look-up alone, because it is stored in the exchange of COMMIT", () =>
    Effect.gen(function* () {
      const proxies: Array<Proxy> = []
      const { send } = yield* given(router("route", false), { keepAnswer: true }, {}, (url) => through(proxies, url))
      const proxy = proxies[0] ?? assert.fail("no proxy")
      const trips = (sent: Sent) =>
        Effect.suspend(() => {
          const before = proxy.roundTrips
          return Effect.map(send(sent), () => proxy.roundTrips - before)
        })
      yield* send({ key: "warm" })
      // after the deletion of old rows, which follows the first transaction
      yield* send({})
      const plain = yield* trips({})
      assert.strictEqual(yield* trips({ key: "one" }), plain + 1)
      assert.strictEqual(yield* trips({ key: "one" }), 1)
    })
  )

  it.scopedLive("the body of a kept response is bounded", () =>
    Effect.gen(function* () {
      const { send } = yield* given(router("route", false), { keepAnswer: { maxBytes: 4 } })
      assert.strictEqual((yield* send({ key: "one" })).status, 201)
      assert.strictEqual((yield* send({ key: "one" })).status, 409)
    })
  )

  it.scopedLive("old keys are deleted with old markers", () =>
    Effect.gen(function* () {
      const { send, writer } = yield* given(router("route", false), {}, { startup: "lazy" })
      yield* Effect.scoped(Layer.build(Db.layer({ writer, outcome: "marker" })))
      yield* query(
        writer,
        `INSERT INTO effect_db.outcome (id, at, fingerprint) SELECT gen_random_uuid(), now() - days * interval '1 day', 'x'
         FROM generate_series(0, 2) AS days`
      )
      yield* send({})
      const left = query(writer, "SELECT 1 FROM effect_db.outcome WHERE fingerprint IS NOT NULL")
      yield* Effect.repeat(left, { until: (rows) => rows.length === 1, times: 100 })
      assert.lengthOf(yield* left, 1)
    })
  )

  it.scopedLive("a database without markers, and a unit of work around, refuse a request with a key", () =>
    Effect.gen(function* () {
      const { send, state } = yield* given(router("route", false), {}, { outcome: "status" })
      assert.strictEqual((yield* send({ key: "one" })).status, 500)
      assert.strictEqual((yield* send({})).status, 201)
      assert.strictEqual(state.runs, 1)
      const inner = RequestTransaction.middleware({ idempotencyKey: { database: Db } })
      const { writer } = yield* freshDatabase
      const request = HttpServerRequest.fromWeb(
        new Request("http://localhost/", { method: "POST", headers: { "idempotency-key": "one" } })
      )
      const response = yield* UnitOfWork.run(Effect.scoped(inner(Effect.dieMessage("the handler has run")))).pipe(
        Effect.provideService(HttpServerRequest.HttpServerRequest, request),
        Effect.provide(Db.layer({ writer, outcome: "marker" })),
        Effect.provide(Logger.remove(Logger.defaultLogger))
      )
      assert.strictEqual(response.status, 500)
    })
  )

  it("options that are not valid are refused", () => {
    const make = (keys: object) => () =>
      // the cast: a program without types may pass anything
      RequestTransaction.middleware({ idempotencyKey: keys as RequestTransaction.IdempotencyKey<Db, unknown> })
    for (const keys of [
      {},
      { database: "app" },
      { database: Db, heeder: "x" },
      { database: Db, header: "a key" },
      { database: Db, keepAnswer: null },
      { database: Db, keepAnswer: { maxBytes: -1 } }
    ])
      assert.throws(make(keys), DatabaseError.ConfigInvalid)
    const runtime = DatabaseRuntime.make({ db: Db }, Db.layer({ writer: Redacted.make("postgres://localhost/x") }))
    assert.throws(() => runtime.middleware({ idempotencyKey: { database: Audit } }), DatabaseError.ConfigInvalid)
    assert.throws(
      () => runtime.handler(() => new Response(), { idempotencyKey: { database: Audit } }),
      /of the runtime/
    )
  })
})
