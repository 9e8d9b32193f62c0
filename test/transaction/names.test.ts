/**
 * Options with an unknown name, as only a program without types can pass: they are refused with the
 * nearest name.
 */
import { HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { DatabaseError, DatabaseRuntime, Migrations, RequestTransaction, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { Db, fresh, insert, stored } from "../support/databases.js"

/** Returns options as a program without types passes them. */
const untyped = (options: object): object => options

describe("unknown options", () => {
  it.scopedLive("an option with an unknown name is ConfigInvalid with the nearest one, and nothing has run", () =>
    Effect.gen(function* () {
      const mistyped = untyped({ isolaton: "serializable" })
      const sql = yield* Db.writer
      const calls: ReadonlyArray<readonly [Effect.Effect<unknown, unknown, Db>, setting: string, expected: string]> = [
        [Db.withTransaction(insert("a"), mistyped), "isolaton", "isolation"],
        [UnitOfWork.run(insert("a"), { transaction: mistyped }), "transaction.isolaton", "isolation"],
        [UnitOfWork.run(insert("a"), { databases: [UnitOfWork.on(Db, mistyped)] }), "isolaton", "isolation"],
        [UnitOfWork.run(insert("a"), untyped({ retri: true })), "retri", "retry"],
        [UnitOfWork.runNew(insert("a"), untyped({ checkfirst: true })), "checkfirst", "checkFirst"],
        [UnitOfWork.nested(insert("a"), untyped({ outcom: () => "commit" })), "outcom", "outcome"],
        [sql.copyFrom("item", ["name"], Stream.make(["a"]), untyped({ fromat: "csv" })), "fromat", "format"],
        [Stream.runDrain(sql.copyTo(sql`SELECT 1`, untyped({ delimeter: ";" }))), "delimeter", "delimiter"],
        [
          Migrations.run(Db, { loader: Effect.succeed([]), ...untyped({ outofOrder: "apply" }) }),
          "outofOrder",
          "outOfOrder"
        ]
      ]
      for (const [call, setting, expected] of calls) {
        const error = yield* Effect.flip(DatabaseError.refine(call))
        assert.isTrue(DatabaseError.isDatabaseError(error) && error._tag === "ConfigInvalid", String(error))
        const { expected: named, setting: given } = error as DatabaseError.ConfigInvalid
        assert.deepStrictEqual([given, named], [setting, `"${expected}"`])
      }
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it("an unknown option of a runtime, its middleware or its handler is thrown when that is created", () => {
    const make = (options: object) => DatabaseRuntime.make({ db: Db }, fresh(), options)
    const runtime = make({})
    const handle = () => new Response()
    const calls: ReadonlyArray<readonly [() => unknown, string]> = [
      [() => make(untyped({ lasy: true })), "lazy"],
      [() => runtime.middleware(untyped({ outcom: () => "commit" })), "outcome"],
      [() => runtime.middleware({ transaction: untyped({ isolaton: "serializable" }) }), "isolation"],
      [() => runtime.handler(handle, untyped({ retrry: true })), "retry"],
      [() => runtime.handler(handle, { transaction: untyped({ isolaton: "serializable" }) }), "isolation"]
    ]
    for (const [call, expected] of calls) assert.throws(call, `expected "${expected}"`)
  })

  it.scopedLive("an unknown option of settings by request is refused before the handler runs", () =>
    Effect.gen(function* () {
      const transaction = () => untyped({ isolaton: "serializable" })
      const refused: Array<string> = []
      const middleware = RequestTransaction.middleware({
        transaction,
        onCommitFailed: ({ _tag }) => {
          refused.push(_tag)
          return HttpServerResponse.empty({ status: 500 })
        }
      })
      const request = HttpServerRequest.fromWeb(new Request("http://localhost/"))
      const { status } = yield* middleware(Effect.as(insert("a"), HttpServerResponse.empty())).pipe(
        Effect.provideService(HttpServerRequest.HttpServerRequest, request),
        Effect.scoped
      )
      assert.deepStrictEqual([status, refused], [500, ["ConfigInvalid"]])
      const runtime = DatabaseRuntime.make({ db: Db }, Layer.succeedContext(yield* Effect.context<Db>()), {
        lazy: true
      })
      const handle = runtime.handler(() => runtime.runPromise(Effect.as(insert("b"), new Response())), { transaction })
      const error = yield* Effect.flip(
        Effect.tryPromise({ try: () => handle(new Request("http://localhost/")), catch: (error) => error })
      )
      assert.include(String(error), 'expected "isolation"')
      assert.deepStrictEqual(yield* stored, [])
      yield* Effect.promise(() => runtime.close())
    }).pipe(Effect.provide(fresh()))
  )

  it("an unknown option of a middleware for requests is thrown when that is created", () => {
    const layers: ReadonlyArray<(options: object) => unknown> = [
      RequestTransaction.middleware,
      RequestTransaction.layerApi
    ]
    for (const make of layers) {
      assert.throws(() => make({ retri: true }), 'expected "retry"')
      assert.throws(() => make({ transaction: { isolaton: "serializable" } }), 'expected "isolation"')
    }
  })
})
