/**
 * The settings that a part of a unit of work requests of the whole: they are applied or refused,
 * and never ignored.
 */
import { HttpClient, HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { DatabaseError, RequestTransaction, type Transaction, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { audit, event } from "../support/audit.js"
import { Audit, Db, fresh, insert, setting, stored } from "../support/databases.js"
import { failure } from "../support/failures.js"

const isolation = setting("transaction_isolation")

const serializable: Transaction.Options = { isolation: "serializable" }

const refused = (option: string) => (error: unknown) => {
  assert.isTrue(DatabaseError.isDatabaseError(error) && error._tag === "OptionsConflict", String(error))
  assert.strictEqual((error as DatabaseError.OptionsConflict).option, option)
}

const conflict = <A, E, R>(option: string, self: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(DatabaseError.refine(self)), refused(option))

/** Returns work whose first run fails with a serialization failure, and the count of its runs. */
const collidesOnce = () => {
  let attempts = 0
  const work = Effect.suspend(() =>
    ++attempts > 1
      ? Effect.void
      : Effect.flatMap(
          Db.writer,
          (sql) => sql`DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$`
        )
  )
  return { work, attempts: () => attempts }
}

describe("the isolation that a part requests", () => {
  it.scopedLive("the isolation of a part becomes that of the unit, if that has sent nothing yet", () =>
    Effect.gen(function* () {
      const requested = [
        Db.withTransaction(isolation, serializable),
        Db.withTransaction(isolation, { ...serializable, propagation: "required" }),
        UnitOfWork.run(isolation, { transaction: serializable }),
        // after a transaction that has sent nothing, and after an undone part
        Effect.zipRight(Db.withTransaction(Effect.void), Db.withTransaction(isolation, serializable)),
        Effect.zipRight(
          Effect.ignore(UnitOfWork.nested(Effect.zipRight(insert("gone"), Effect.fail("x")))),
          Db.withTransaction(isolation, serializable)
        ),
        UnitOfWork.nested(Db.withTransaction(isolation, serializable))
      ]
      for (const part of requested) {
        assert.deepStrictEqual(yield* UnitOfWork.run(Effect.zip(part, isolation)), ["serializable", "serializable"])
      }
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("the isolation of a part becomes that of a request", () =>
    Effect.gen(function* () {
      let seen = ""
      const app = Db.withTransaction(isolation, { ...serializable, retry: true }).pipe(
        Effect.tap((level) => {
          seen = level
        }),
        Effect.as(HttpServerResponse.empty())
      )
      const router = HttpRouter.empty.pipe(HttpRouter.post("/", app), HttpRouter.use(RequestTransaction.middleware()))
      yield* Layer.build(HttpServer.serve(router))
      assert.strictEqual((yield* HttpClient.post("/")).status, 204)
      assert.strictEqual(seen, "serializable")
    }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, fresh())))
  )

  it.scopedLive("the isolation of a part conflicts after a statement or if it is lower, and another access does", () =>
    Effect.gen(function* () {
      // a transaction that was begun by hand has the settings of its program
      yield* conflict("isolation", Db.withTransaction(Db.withTransaction(isolation, serializable)))
      yield* conflict("isolation", Db.withTransaction(UnitOfWork.nested(Db.withTransaction(isolation, serializable))))
      yield* conflict(
        "isolation",
        UnitOfWork.run(Effect.zipRight(insert("a"), Db.withTransaction(isolation, serializable)))
      )
      yield* conflict(
        "isolation",
        Db.withTransaction(Db.withTransaction(isolation, { isolation: "read committed" }), serializable)
      )
      yield* conflict(
        "access",
        UnitOfWork.run(Db.withTransaction(isolation, { access: "read write" }), {
          transaction: { access: "read only" }
        })
      )
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )
})

describe("the settings that a part requests before a transaction begins", () => {
  const onDb = (settings: UnitOfWork.UnitSettings) => ({ databases: [UnitOfWork.on(Db, settings)] })
  const all = (transaction: UnitOfWork.UnitSettings) => ({ transaction })
  const lower = { isolation: "read committed" } as const
  const readOnly = { access: "read only" } as const
  const readWrite = { access: "read write" } as const

  const refusals: ReadonlyArray<
    readonly [string, UnitOfWork.Options<unknown, unknown>, UnitOfWork.Options<unknown, unknown>]
  > = [
    ["isolation", all(serializable), all(lower)],
    ["isolation", all(serializable), onDb(lower)],
    ["isolation", onDb(serializable), all(lower)],
    ["isolation", onDb(serializable), onDb(lower)],
    ["access", all(readOnly), all(readWrite)],
    ["access", onDb(readOnly), all(readWrite)],
    ["access", {}, all(readOnly)],
    ["access", {}, onDb(readOnly)]
  ]

  it.scopedLive("a part that lowers the isolation or changes the access is refused, also in a nested part", () =>
    Effect.gen(function* () {
      for (const [option, outer, inner] of refusals) {
        const part = UnitOfWork.run(insert("refused"), inner)
        for (const whole of [part, UnitOfWork.nested(part), UnitOfWork.nested(UnitOfWork.nested(part))]) {
          yield* conflict(option, UnitOfWork.run(whole, outer))
        }
      }
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a refused part changes nothing of the unit", () =>
    Effect.gen(function* () {
      const part = Effect.ignore(UnitOfWork.run(insert("refused"), all({ ...readOnly, ...serializable })))
      for (const [name, first] of [
        ["joined", part],
        ["nested", UnitOfWork.nested(part)]
      ] as const) {
        assert.strictEqual(yield* UnitOfWork.run(Effect.zipRight(first, isolation)), "read committed")
        yield* UnitOfWork.run(Effect.zipRight(first, insert(name)))
      }
      assert.deepStrictEqual(yield* stored, ["joined", "nested"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a part does not lift the read-only guard of a GET request", () =>
    Effect.gen(function* () {
      const write = Effect.as(insert("refused"), HttpServerResponse.empty())
      const router = HttpRouter.empty.pipe(
        HttpRouter.get("/", RequestTransaction.middleware({ transaction: readWrite })(write))
      )
      const { readOnlyWhenSafe } = RequestTransaction
      const guard = RequestTransaction.middleware({ transaction: readOnlyWhenSafe })
      yield* Layer.build(HttpServer.serve(HttpRouter.use(router, guard)))
      assert.strictEqual((yield* HttpClient.get("/")).status, 500)
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(Layer.merge(NodeHttpServer.layerTest, fresh())))
  )

  it.scopedLive("a part raises the isolation, for all databases or for one", () =>
    Effect.gen(function* () {
      for (const outer of [{}, all(lower), onDb(lower)]) {
        for (const inner of [all(serializable), onDb(serializable)]) {
          const part = UnitOfWork.run(isolation, inner)
          for (const whole of [part, UnitOfWork.nested(part)]) {
            const seen = yield* UnitOfWork.run(Effect.zip(whole, isolation), outer)
            assert.deepStrictEqual(seen, ["serializable", "serializable"])
          }
        }
      }
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a part adds settings to those of the unit, also after a transaction that has sent nothing", () =>
    Effect.gen(function* () {
      const seen = Effect.all([isolation, setting("lock_timeout"), setting("statement_timeout")])
      const part = UnitOfWork.run(seen, onDb({ ...serializable, statementTimeout: "7 seconds" }))
      for (const whole of [part, Effect.zipRight(Db.withTransaction(Effect.void), part)]) {
        for (const outer of [onDb({ lockTimeout: "3 seconds" }), all({ lockTimeout: "3 seconds" })]) {
          const within = UnitOfWork.run(Effect.zip(whole, seen), outer)
          assert.deepStrictEqual(yield* within, [
            ["serializable", "3s", "7s"],
            ["serializable", "3s", "7s"]
          ])
        }
      }
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a timeout of a part that joins a nested part applies to that nested part alone", () =>
    Effect.gen(function* () {
      const part = UnitOfWork.nested(UnitOfWork.run(setting("lock_timeout"), all({ lockTimeout: "3 seconds" })))
      const timeouts = Effect.zip(part, setting("lock_timeout"))
      assert.deepStrictEqual(yield* UnitOfWork.run(timeouts), ["3s", "0"])
      assert.deepStrictEqual(yield* UnitOfWork.run(timeouts, all({ lockTimeout: "5 seconds" })), ["3s", "5s"])
      assert.deepStrictEqual(yield* Db.withTransaction(timeouts), ["3s", "0"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("the settings of a part conflict with a bare withTransaction around it, unless they are equal", () =>
    Effect.gen(function* () {
      const requested = UnitOfWork.run(insert("refused"), all(serializable))
      for (const part of [requested, UnitOfWork.run(requested), UnitOfWork.nested(requested)]) {
        yield* conflict("isolation", Db.withTransaction(part))
      }
      yield* conflict("access", Db.withTransaction(UnitOfWork.run(insert("refused"), onDb(readWrite)), readOnly))
      yield* Db.withTransaction(UnitOfWork.run(insert("equal"), all(serializable)), serializable)
      // independent work has a transaction of its own
      yield* Db.withTransaction(Db.independent(UnitOfWork.run(insert("own"), all(serializable))))
      assert.deepStrictEqual([...(yield* stored)].sort(), ["equal", "own"])
    }).pipe(Effect.provide(fresh()))
  )
})

describe("other settings that a part requests", () => {
  it.scopedLive("other settings of a part become those of the transaction that has sent nothing yet", () =>
    Effect.gen(function* () {
      const options: UnitOfWork.UnitSettings = {
        statementTimeout: "7 seconds",
        lockTimeout: "3 seconds",
        applicationName: "the part"
      }
      const all = Effect.all([setting("statement_timeout"), setting("lock_timeout"), setting("application_name")])
      for (const part of [
        Db.withTransaction(all, { ...options, propagation: "required" }),
        UnitOfWork.run(all, { transaction: options })
      ]) {
        const within = Effect.zipRight(Db.withTransaction(Effect.void), part)
        assert.deepStrictEqual(yield* UnitOfWork.run(within), ["7s", "3s", "the part"])
      }
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("other settings of a part conflict after a statement, unless they are the same", () =>
    Effect.gen(function* () {
      const late = <A, E, R>(part: Effect.Effect<A, E, R>) =>
        UnitOfWork.run(Effect.zipRight(insert("a"), part), { transaction: { lockTimeout: "3 seconds" } })
      for (const [option, given] of [
        ["statementTimeout", { statementTimeout: "7 seconds" }],
        ["lockTimeout", { lockTimeout: "4 seconds" }],
        ["applicationName", { applicationName: "the part" }],
        ["deferrable", { deferrable: true }]
      ] as const) {
        yield* conflict(option, late(Db.withTransaction(Effect.void, { propagation: "required", ...given })))
        yield* conflict(option, late(UnitOfWork.run(Effect.void, { transaction: given })))
      }
      yield* late(Db.withTransaction(Effect.void, { propagation: "required", lockTimeout: 3000 }))
      assert.deepStrictEqual(yield* stored, ["a"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a unit accepts the order and checkFirst of a part, unless they conflict with its own", () =>
    Effect.gen(function* () {
      const part = UnitOfWork.run(event("e"), { order: [Audit, Db] })
      yield* UnitOfWork.run(Effect.zipRight(insert("a"), part))
      yield* conflict("order", UnitOfWork.run(Effect.zipRight(insert("b"), part), { order: [Db, Audit] }))
      yield* UnitOfWork.run(UnitOfWork.run(event("e"), { checkFirst: true }), { checkFirst: false })
      yield* conflict("checkFirst", UnitOfWork.run(UnitOfWork.run(event("e"), { checkFirst: false })))
      assert.deepStrictEqual(yield* stored, ["a"])

      // the COMMIT of `Audit` is refused: what `Db` has stored then shows the order and the check
      const refused = (name: string, options: UnitOfWork.Options<unknown, unknown>) =>
        UnitOfWork.run(Effect.zipRight(insert(name), UnitOfWork.run(event("e", 13), options)), { checkFirst: false })
      assert.strictEqual((yield* failure(refused("b", { order: [Audit, Db] })))._tag, "CommitFailed")
      yield* failure(refused("c", { order: [Db, Audit], checkFirst: true }))
      assert.deepStrictEqual(yield* stored, ["a"])
      yield* failure(refused("d", { order: [Db, Audit] }))
      assert.deepStrictEqual(yield* stored, ["a", "d"])
    }).pipe(Effect.provide(Layer.merge(fresh(), audit)))
  )

  it.scopedLive("the statements of a part have its work comment, and later ones have that of the unit", () =>
    Effect.gen(function* () {
      const query = Effect.flatMap(Db.writer, (sql) =>
        Effect.map(sql<{ query: string }>`SELECT current_query() AS query`, (rows) => rows[0]?.query ?? "")
      )
      const part = UnitOfWork.run(query, { work: { comment: { job: "part" } } })
      const [inside, after] = yield* UnitOfWork.run(Effect.zip(part, query), { work: { comment: { job: "whole" } } })
      assert.include(inside, "job='part'")
      assert.include(after, "job='whole'")
    }).pipe(Effect.provide(fresh()))
  )
})

describe("the retry of a part that joins", () => {
  it.scopedLive("the retry of a part that joins is passed to the unit, which runs again as a whole", () =>
    Effect.gen(function* () {
      for (const part of ["UnitOfWork.run", "withTransaction"] as const) {
        const once = collidesOnce()
        let units = 0
        yield* UnitOfWork.run(
          Effect.suspend(() => {
            units++
            const work = Effect.zipRight(insert(`${part} ${units}`), once.work)
            return part === "UnitOfWork.run"
              ? UnitOfWork.run(work, { retry: true })
              : Db.withTransaction(work, { propagation: "required", retry: true })
          })
        )
        assert.deepStrictEqual([units, once.attempts()], [2, 2])
      }
      assert.deepStrictEqual(yield* stored, ["UnitOfWork.run 2", "withTransaction 2"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("the retry of a part is passed through a nested part and to a unit that retries already", () =>
    Effect.gen(function* () {
      const once = collidesOnce()
      yield* UnitOfWork.run(UnitOfWork.nested(UnitOfWork.run(Effect.zipRight(insert("a"), once.work), { retry: true })))
      const other = collidesOnce()
      yield* UnitOfWork.run(UnitOfWork.run(other.work, { retry: true }), { retry: true })
      const bare = collidesOnce()
      yield* Db.withTransaction(Db.withTransaction(bare.work, { propagation: "required", retry: true }), {
        retry: true
      })
      assert.deepStrictEqual([once.attempts(), other.attempts(), bare.attempts()], [2, 2, 2])
      assert.deepStrictEqual(yield* stored, ["a"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("the retry of a part is refused if the whole cannot run again, as a bare withTransaction", () =>
    Effect.gen(function* () {
      yield* conflict(
        "retry",
        Db.withTransaction(
          Effect.zipRight(insert("a"), Db.withTransaction(Effect.void, { propagation: "required", retry: true }))
        )
      )
      let seen: unknown
      const app = (joined: RequestTransaction.Options) =>
        HttpRouter.empty.pipe(
          HttpRouter.post(
            "/",
            UnitOfWork.run(insert("b"), { retry: true }).pipe(
              Effect.tapError((error) =>
                Effect.sync(() => {
                  seen = error
                })
              ),
              Effect.as(HttpServerResponse.empty())
            )
          ),
          HttpRouter.use(RequestTransaction.middleware(joined))
        )
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Layer.build(HttpServer.serve(app({})))
          assert.strictEqual((yield* HttpClient.post("/")).status, 500)
          refused("retry")(seen)
        })
      ).pipe(Effect.provide(NodeHttpServer.layerTest))
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Layer.build(HttpServer.serve(app({ retry: true })))
          assert.strictEqual((yield* HttpClient.post("/")).status, 204)
        })
      ).pipe(Effect.provide(NodeHttpServer.layerTest))
      assert.deepStrictEqual(yield* stored, ["b"])
    }).pipe(Effect.provide(fresh()))
  )
})

describe("a part whose options are refused", () => {
  it.scopedLive("a part whose options are refused changes nothing of a transaction that was begun by hand", () =>
    Effect.gen(function* () {
      yield* Db.withTransaction(
        Effect.gen(function* () {
          yield* conflict(
            "retry",
            Db.withTransaction(insert("a"), { propagation: "required", statementTimeout: "3 seconds", retry: true })
          )
          assert.strictEqual(yield* setting("statement_timeout"), "0")
        })
      )
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a part whose options are refused changes neither settings nor retry of a unit of work", () =>
    Effect.gen(function* () {
      const { attempts, work } = collidesOnce()
      const whole = Effect.gen(function* () {
        const requested = { transaction: serializable, order: [Audit, Db], retry: true } as const
        yield* conflict("order", UnitOfWork.run(insert("a"), requested))
        assert.strictEqual(yield* isolation, "read committed")
        yield* conflict("isolation", Db.withTransaction(insert("a"), { ...serializable, retry: true }))
        yield* work
      })
      yield* Effect.flip(UnitOfWork.run(whole, { order: [Db, Audit] }))
      assert.strictEqual(attempts(), 1)
    }).pipe(Effect.provide(Layer.merge(fresh(), audit)))
  )

  it.scopedLive("a part with a transaction of its own does not pass its retry to the unit around it", () =>
    Effect.gen(function* () {
      const { attempts, work } = collidesOnce()
      const own = Db.withTransaction(Effect.void, { propagation: "requiresNew", retry: true })
      yield* Effect.flip(UnitOfWork.run(Effect.all([insert("b"), own, work])))
      assert.strictEqual(attempts(), 1)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a part in a nested part passes its settings to the unit around it", () =>
    Effect.gen(function* () {
      const part = UnitOfWork.run(isolation, { transaction: serializable })
      assert.strictEqual(yield* UnitOfWork.run(UnitOfWork.nested(part)), "serializable")
    }).pipe(Effect.provide(fresh()))
  )
})
