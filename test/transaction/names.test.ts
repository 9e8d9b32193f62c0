/**
 * Options with an unknown name or a wrong value, as only a program without types can pass.
 */
import { HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { DatabaseError, DatabaseRuntime, Migrations, RequestTransaction, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { Db, fresh, insert, stored } from "../support/databases.js"

const secret = Redacted.make("a secret of 32 characters or more")

/** Returns options as a program without types passes them. */
const untyped = (options: object): object => options

describe("unknown options", () => {
  it.scopedLive("an unknown option fails with ConfigInvalid that names the nearest one, and nothing is stored", () =>
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

  it.scopedLive("a wrong value fails with ConfigInvalid that says what the option takes, and nothing is stored", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const transaction = (options: object) => Db.withTransaction(insert("a"), options)
      const unit = (options: object) => UnitOfWork.run(insert("a"), options)
      const copy = (options: object) => sql.copyFrom("item", ["name"], Stream.make(["a"]), options)
      const migrate = (options: object) => Migrations.run(Db, { loader: Effect.succeed([]), ...options })
      const levels = "one of read committed, repeatable read, serializable"
      const duration = 'a duration like "5 seconds"'
      const calls: ReadonlyArray<
        readonly [Effect.Effect<unknown, unknown, Db>, setting: string, given: string, expected: string]
      > = [
        [transaction({ isolation: "serialisable" }), "isolation", '"serialisable"', levels],
        [transaction({ isolation: null }), "isolation", "null", levels],
        [transaction({ access: "read" }), "access", '"read"', "one of read write, read only"],
        [transaction({ deferrable: "yes" }), "deferrable", '"yes"', "true or false"],
        [transaction({ statementTimeout: "abc" }), "statementTimeout", '"abc"', duration],
        [transaction({ lockTimeout: -1 }), "lockTimeout", "-1", duration],
        [transaction({ lockTimeout: "-5 seconds" }), "lockTimeout", '"-5 seconds"', duration],
        [transaction({ label: 5 }), "label", "5", "a text"],
        [transaction({ retry: 3 }), "retry", "3", "true, false or a Schedule"],
        [
          transaction({ propagation: "x" }),
          "propagation",
          '"x"',
          "one of nested, required, requiresNew, mandatory, supports, notSupported, never"
        ],
        [unit({ outcome: 5 }), "outcome", "5", "a function"],
        [unit({ work: 5 }), "work", "5", "an object"],
        [unit({ transaction: "serializable" }), "transaction", '"serializable"', "an object"],
        [unit({ transaction: { statementTimeout: {} } }), "transaction.statementTimeout", "an object", duration],
        [unit({ databases: 5 }), "databases", "5", "a list of UnitOfWork.on(database, settings)"],
        [unit({ databases: [UnitOfWork.on(Db, untyped({ isolation: 5 }))] }), "isolation", "5", levels],
        [unit({ order: [null] }), "order", "an array", "one of safest, touched, or a list of databases"],
        [unit({ checkFirst: 1 }), "checkFirst", "1", "true or false"],
        [copy({ onProgress: 5 }), "onProgress", "5", "a function"],
        [copy({ statementTimeout: true }), "statementTimeout", "true", duration],
        [migrate({ loader: [] }), "loader", "an array", "an effect"],
        [migrate({ outOfOrder: true }), "outOfOrder", "true", "one of fail, apply"],
        [migrate({ table: 5 }), "table", "5", "a text"]
      ]
      for (const [call, ...refusal] of calls) {
        const error = yield* Effect.flip(DatabaseError.refine(call))
        assert.isTrue(DatabaseError.isDatabaseError(error) && error._tag === "ConfigInvalid", String(error))
        const { expected, given, setting } = error as DatabaseError.ConfigInvalid
        assert.deepStrictEqual([setting, given, expected], refusal)
      }
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it("an unknown or wrong option of a runtime, a middleware or a handler throws at its creation", () => {
    const make = (options: object) => DatabaseRuntime.make({ db: Db }, fresh(), options)
    const runtime = make({})
    const handle = () => new Response()
    const calls: ReadonlyArray<readonly [() => unknown, string]> = [
      [() => make(untyped({ lasy: true })), "lazy"],
      [() => runtime.middleware(untyped({ outcom: () => "commit" })), "outcome"],
      [() => runtime.middleware({ transaction: untyped({ isolaton: "serializable" }) }), "isolation"],
      [() => runtime.middleware({ readYourWrites: { secret, ...untyped({ cokie: "a" }) } }), "cookie"],
      [() => runtime.handler(handle, untyped({ retrry: true })), "retry"],
      [() => RequestTransaction.readYourWrites({ secret, ...untyped({ maxwait: 5 }) }), "maxWait"],
      [() => runtime.handler(handle, { transaction: untyped({ isolaton: "serializable" }) }), "isolation"]
    ]
    for (const [call, expected] of calls) assert.throws(call, `expected "${expected}"`)
    const wrong: ReadonlyArray<readonly [() => unknown, string]> = [
      [() => make({ lazy: 1 }), 'setting "lazy" is 1; expected true or false'],
      [() => runtime.middleware(untyped({ outcome: "commit" })), 'setting "outcome" is "commit"; expected a function'],
      [() => runtime.handler(handle, untyped({ route: 5 })), 'setting "route" is 5; expected a text'],
      [() => runtime.handler(handle, untyped({ readYourWrites: true })), 'setting "readYourWrites" is true'],
      [
        () => RequestTransaction.readYourWrites({ secret, ...untyped({ maxWait: "x" }) }),
        '"readYourWrites.maxWait" is "x"'
      ],
      [() => RequestTransaction.middleware(untyped({ sqlComment: true })), 'setting "sqlComment" is true'],
      [() => RequestTransaction.layerApi(untyped({ onCommitFailed: 500 })), 'setting "onCommitFailed" is 500']
    ]
    for (const [call, message] of wrong) assert.throws(call, message)
  })

  it.scopedLive("an unknown option that a function of the request returns is refused before the handler runs", () =>
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

  it("an unknown option of RequestTransaction throws when the middleware is created", () => {
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
