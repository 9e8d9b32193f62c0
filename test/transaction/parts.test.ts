/**
 * A part of a transaction, or of a unit of work, that joins it and ends in rollback: the whole is not stored.
 */
import { type HttpApp, HttpClient, HttpRouter, HttpServer, HttpServerResponse } from "@effect/platform"
import { NodeHttpServer } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { type Database, DatabaseError, DatabaseRuntime, RequestTransaction, RetryPolicy, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { both, event, events } from "../support/audit.js"
import { Audit, Db, fresh, freshTable, insert, stored } from "../support/databases.js"
import { makeProxy, sends } from "../support/proxy.js"
import { query } from "../support/server.js"

const served = Layer.merge(NodeHttpServer.layerTest, fresh())

const failing = Effect.zipRight(insert("half"), Effect.fail("x"))

/** Returns the `RolledBackAtCommit` with which the whole fails; it names the part. */
const rolledBack = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(DatabaseError.refine(self)), (error) => {
    assert.isTrue(DatabaseError.isDatabaseError(error), String(error))
    assert.strictEqual(DatabaseError.isDatabaseError(error) && error._tag, "RolledBackAtCommit")
    return error as DatabaseError.RolledBackAtCommit
  })

describe("a part that joins and ends in rollback", () => {
  it.scopedLive("UnitOfWork.run that fails after a statement makes the whole unit fail, and nothing is stored", () =>
    Effect.gen(function* () {
      const error = yield* Effect.all([insert("outer"), Effect.ignore(UnitOfWork.run(failing))]).pipe(
        UnitOfWork.run(),
        rolledBack
      )
      assert.strictEqual(error.cause, "x")
      assert.include(error.message, "parts.test.ts")
      assert.include(error.message, "UnitOfWork.nested")
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("RolledBackAtCommit names the part by its label and tells its failure", () =>
    Effect.gen(function* () {
      const labelled = UnitOfWork.run(Effect.zipRight(insert("half"), Effect.fail(new Error("no stock"))), {
        work: { label: "reserve stock" }
      })
      const error = yield* rolledBack(UnitOfWork.run(Effect.ignore(labelled)))
      assert.strictEqual(error.part, "reserve stock")
      assert.include(error.message, "reserve stock")
      assert.include(error.message, "no stock")
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a part that rolls back stores nothing of a fork whose first statement is still under way", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshTable
      const proxy = yield* makeProxy(writer)
      const work = Effect.gen(function* () {
        const sent = yield* proxy.when(sends("INSERT"), "freeze")
        const fork = yield* Deferred.make<Fiber.RuntimeFiber<unknown, unknown>>()
        const part = Effect.forkDaemon(insert("fork")).pipe(
          Effect.flatMap((fiber) => Deferred.succeed(fork, fiber)),
          Effect.zipRight(sent),
          Effect.zipRight(Effect.fail("x"))
        )
        yield* Effect.ignore(UnitOfWork.run(part))
        yield* proxy.thaw
        yield* Effect.flatMap(Deferred.await(fork), Fiber.join)
      })
      yield* rolledBack(UnitOfWork.run(work)).pipe(Effect.provide(Db.layer({ writer: proxy.url })))
      assert.deepStrictEqual(yield* query(writer, "SELECT name FROM item"), [])
    })
  )

  it.scopedLive("a part that rolls back before a transaction has begun lets the whole go on", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshTable
      const proxy = yield* makeProxy(writer)
      const work = Effect.gen(function* () {
        yield* proxy.when(sends("BEGIN"), "cut")
        yield* Effect.flip(UnitOfWork.run(RetryPolicy.with(insert("lost"), RetryPolicy.never)))
        yield* insert("kept")
      })
      yield* UnitOfWork.run(work).pipe(Effect.provide(Db.layer({ writer: proxy.url })))
      assert.deepStrictEqual(yield* query(writer, "SELECT name FROM item"), [{ name: "kept" }])
    })
  )

  it.scopedLive("a part that dies or is interrupted makes the whole unit fail, and nothing is stored", () =>
    Effect.gen(function* () {
      const died = UnitOfWork.run(Effect.zipRight(insert("half"), Effect.die("bug")))
      yield* rolledBack(UnitOfWork.run(Effect.exit(died)))
      const error = yield* UnitOfWork.run(
        Effect.gen(function* () {
          const sent = yield* Deferred.make<void>()
          const part = yield* insert("half").pipe(
            Effect.zipRight(Deferred.succeed(sent, undefined)),
            Effect.zipRight(Effect.never),
            UnitOfWork.run(),
            Effect.fork
          )
          yield* Deferred.await(sent)
          yield* Fiber.interrupt(part)
          yield* insert("after")
        })
      ).pipe(rolledBack)
      assert.include(error.message, "UnitOfWork.nested")
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive('a part with outcome: () => "rollback" makes the whole fail; with "commit" its failure does not', () =>
    Effect.gen(function* () {
      const error = yield* UnitOfWork.run(insert("half"), { outcome: () => "rollback" }).pipe(
        UnitOfWork.run(),
        rolledBack
      )
      assert.isUndefined(error.cause)
      assert.deepStrictEqual(yield* stored, [])
      yield* UnitOfWork.run(Effect.ignore(UnitOfWork.run(failing, { outcome: () => "commit" })))
      assert.deepStrictEqual(yield* stored, ["half"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a part that fails without a writer's statement does not make the unit fail", () =>
    Effect.gen(function* () {
      const read = Effect.flatMap(Db.reader, (sql) => sql`SELECT * FROM item`)
      yield* UnitOfWork.run(
        Effect.all([
          insert("kept"),
          Effect.ignore(UnitOfWork.run(Effect.fail("x"))),
          Effect.ignore(UnitOfWork.run(Effect.zipRight(read, Effect.fail("x")))),
          Effect.ignore(Db.withTransaction(Effect.fail("x"), { propagation: "required" }))
        ])
      )
      assert.deepStrictEqual(yield* stored, ["kept"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a statement beside a failed part does not count as one of that part", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          const go = yield* Deferred.make<void>()
          const part = yield* Effect.zipRight(Deferred.await(go), Effect.fail("x")).pipe(UnitOfWork.run(), Effect.fork)
          yield* insert("beside")
          yield* Deferred.succeed(go, undefined)
          yield* Effect.ignore(Effect.flatten(Fiber.await(part)))
        })
      )
      assert.deepStrictEqual(yield* stored, ["beside"])
    }).pipe(Effect.provide(fresh()))
  )

  for (const propagation of ["required", "mandatory", "supports"] as const) {
    it.scopedLive(`withTransaction with propagation "${propagation}" that fails makes the transaction fail`, () =>
      Effect.gen(function* () {
        const part = Effect.ignore(Db.withTransaction(failing, { propagation, label: "the part" }))
        const bare = yield* Effect.zipRight(insert("outer"), part).pipe(Db.withTransaction(), rolledBack)
        assert.strictEqual(bare.part, "the part")
        const unit = yield* Effect.all([insert("outer"), event("outer"), part]).pipe(UnitOfWork.run(), rolledBack)
        assert.strictEqual(unit.part, "the part")
        assert.deepStrictEqual([yield* stored, yield* events], [[], []])
      }).pipe(Effect.provide(both))
    )
  }

  it.scopedLive("a unit that joins a bare withTransaction and rolls back makes the transaction fail", () =>
    Effect.gen(function* () {
      const error = yield* Effect.zipRight(insert("outer"), Effect.ignore(UnitOfWork.run(failing))).pipe(
        Db.withTransaction(),
        rolledBack
      )
      assert.strictEqual(error.cause, "x")
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a part in a savepoint undoes that savepoint, and not the transaction around it", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* insert("outer")
          const error = yield* Effect.zipRight(insert("inner"), Effect.ignore(UnitOfWork.run(failing))).pipe(
            Db.withTransaction(),
            rolledBack
          )
          assert.strictEqual(error.cause, "x")
        })
      )
      assert.deepStrictEqual(yield* stored, ["outer"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a failed part that wrote only in a savepoint fails the unit only if the savepoint was released", () =>
    Effect.gen(function* () {
      const undone = Effect.ignore(Db.withTransaction(Effect.zipRight(insert("gone"), Effect.fail("y"))))
      yield* UnitOfWork.run(
        Effect.zipRight(insert("kept"), Effect.ignore(UnitOfWork.run(Effect.zipRight(undone, Effect.fail("x")))))
      )
      assert.deepStrictEqual(yield* stored, ["kept"])
      yield* UnitOfWork.run(
        Effect.ignore(UnitOfWork.run(Effect.zipRight(Db.withTransaction(insert("half")), Effect.fail("x"))))
      ).pipe(rolledBack)
      assert.deepStrictEqual(yield* stored, ["kept"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a failed part on one of two databases undoes both, in any commit order, also without checkFirst", () =>
    Effect.gen(function* () {
      for (const order of [
        [Db, Audit],
        [Audit, Db]
      ]) {
        for (const checkFirst of [true, false]) {
          const part = UnitOfWork.run(Effect.zipRight(event("half"), Effect.fail("x")))
          yield* Effect.all([insert("outer"), event("outer"), Effect.ignore(part)]).pipe(
            UnitOfWork.run({ order, checkFirst }),
            rolledBack
          )
        }
      }
      assert.deepStrictEqual([yield* stored, yield* events], [[], []])
    }).pipe(Effect.provide(both))
  )

  it.scopedLive("an early commit fails after a part has failed, and the unit goes on after an early rollback", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          yield* Effect.ignore(UnitOfWork.run(failing))
          yield* rolledBack(Db.commit)
          yield* insert("again")
          yield* Effect.ignore(UnitOfWork.run(failing))
          yield* Db.rollback
          yield* insert("kept")
        })
      )
      assert.deepStrictEqual(yield* stored, ["kept"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a unit whose part rolls back runs afterRollback, and neither beforeCommit nor afterCommit", () =>
    Effect.gen(function* () {
      const log: Array<string> = []
      const note = (text: string) => Effect.sync(() => void log.push(text))
      yield* Effect.all([
        insert("outer"),
        Db.beforeCommit(note("before")),
        Db.afterCommit(note("committed")),
        Db.afterRollback(note("rolled back")),
        Effect.ignore(UnitOfWork.run(failing))
      ]).pipe(UnitOfWork.run(), rolledBack)
      assert.deepStrictEqual(log, ["rolled back"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a statement of a fork that is sent after its part has failed makes the whole fail too", () =>
    Effect.gen(function* () {
      yield* UnitOfWork.run(
        Effect.gen(function* () {
          const go = yield* Deferred.make<void>()
          const late = yield* Deferred.make<Fiber.Fiber<unknown, unknown>>()
          yield* Effect.forkDaemon(Effect.zipRight(Deferred.await(go), insert("late"))).pipe(
            Effect.flatMap((fiber) => Deferred.succeed(late, fiber)),
            Effect.zipRight(Effect.fail("x")),
            UnitOfWork.run(),
            Effect.ignore
          )
          yield* Deferred.succeed(go, undefined)
          yield* Effect.flatMap(Deferred.await(late), Fiber.await)
        })
      ).pipe(rolledBack)
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a writer's stream counts as a statement of the failed part that reads it", () =>
    Effect.gen(function* () {
      const { stream } = yield* Effect.map(
        Db.writer,
        (sql) => sql`INSERT INTO item (name) VALUES ('half') RETURNING id`
      )
      const part = UnitOfWork.run(Effect.zipRight(Stream.runDrain(stream), Effect.fail("x")))
      yield* rolledBack(UnitOfWork.run(Effect.ignore(part)))
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(fresh()))
  )

  it.live("a part in plain code that throws and is caught makes the whole reject", () =>
    Effect.scoped(
      Effect.gen(function* () {
        const { writer } = yield* freshTable
        const options: Database.Options = { writer }
        const runtime = DatabaseRuntime.make({ db: Db }, Db.layer(options), { lazy: true })
        const { db } = runtime.databases
        const half = async () => {
          await db.writer`INSERT INTO item (name) VALUES ('half')`
          throw new Error("x")
        }
        const wholes = [
          () => runtime.unitOfWork(() => runtime.unitOfWork(half).catch(() => "caught")),
          () => db.withTransaction(() => runtime.unitOfWork(half).catch(() => "caught")),
          () => db.withTransaction(() => db.withTransaction(half, { propagation: "required" }).catch(() => "caught"))
        ]
        for (const whole of wholes) {
          const error = yield* Effect.flip(Effect.tryPromise({ try: whole, catch: (error) => error }))
          assert.isTrue(DatabaseError.isDatabaseError(error) && error._tag === "RolledBackAtCommit", String(error))
          assert.include(String(error), "parts.test.ts")
        }
        yield* Effect.promise(() => runtime.close())
        assert.deepStrictEqual(yield* query(writer, "SELECT name FROM item"), [])
      })
    )
  )

  describe("a failed part in a request", () => {
    const caught = Effect.as(Effect.ignore(UnitOfWork.run(failing)), HttpServerResponse.empty({ status: 200 }))

    const post = (app: HttpApp.Default<unknown, Db>, options: RequestTransaction.Options = {}) =>
      Effect.gen(function* () {
        const router = HttpRouter.empty.pipe(
          HttpRouter.post("/", app),
          HttpRouter.use(RequestTransaction.middleware(options))
        )
        yield* Layer.build(HttpServer.serve(router))
        return yield* HttpClient.post("/")
      })

    it.scopedLive("a request whose part fails and is caught gets a 500 instead of its 200", () =>
      Effect.gen(function* () {
        const response = yield* post(caught)
        assert.strictEqual(response.status, 500)
        assert.deepStrictEqual(yield* stored, [])
      }).pipe(Effect.provide(served))
    )

    it.scopedLive("a request whose part fails and is caught gets the response of onCommitFailed", () =>
      Effect.gen(function* () {
        const seen: Array<string> = []
        const onCommitFailed = (error: DatabaseError.DatabaseError) => {
          seen.push(error._tag)
          return HttpServerResponse.empty({ status: 418 })
        }
        assert.strictEqual((yield* post(caught, { onCommitFailed })).status, 418)
        assert.deepStrictEqual(seen, ["RolledBackAtCommit"])
        assert.deepStrictEqual(yield* stored, [])
      }).pipe(Effect.provide(served))
    )

    it.scopedLive("a middleware that joins and rolls back fails the request, also if its response is changed", () =>
      Effect.gen(function* () {
        const inner = RequestTransaction.middleware()(
          Effect.as(insert("half"), HttpServerResponse.empty({ status: 409 }))
        )
        assert.strictEqual((yield* post(Effect.map(inner, HttpServerResponse.setStatus(200)))).status, 500)
        assert.deepStrictEqual(yield* stored, [])
      }).pipe(Effect.provide(served))
    )
  })
})
