/**
 * With `retry`, the failure that the transaction itself has met decides if the work runs again,
 * whatever the work has turned this failure into.
 */
import { Model } from "@effect/sql"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { DatabaseError, DatabaseRuntime, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { audit } from "../support/audit.js"
import { Audit, Db, fresh, idle, insert, Place, stored } from "../support/databases.js"
import { query } from "../support/server.js"

const collision = "DO $$ BEGIN RAISE EXCEPTION 'collision' USING ERRCODE = 'serialization_failure'; END $$"
const collide = Effect.flatMap(Db.writer, (sql) => sql.unsafe(collision))

class Refused extends Error {
  readonly _tag = "Refused"
}

/** A row of a repository of `@effect/sql`, which turns errors of the database into defects. */
class Item extends Model.Class<Item>("Item")({
  id: Model.Generated(Schema.Number),
  name: Schema.String,
  amount: Schema.NullOr(Schema.Number)
}) {}

const addByModel = (name: string) =>
  Effect.provide(
    Effect.flatMap(Model.makeRepository(Item, { tableName: "item", spanPrefix: "Item", idColumn: "id" }), (items) =>
      items.insert(Item.insert.make({ name, amount: null }))
    ),
    Db.layerSqlClient
  )

/** Makes the first `times` inserts into `item` fail with a serialization failure. */
const collideOnInsert = (times: number) =>
  Effect.gen(function* () {
    const { writer } = yield* Place
    yield* query(writer, "CREATE SEQUENCE attempt")
    yield* query(
      writer,
      `CREATE FUNCTION collide() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
         IF nextval('attempt') <= ${times} THEN RAISE EXCEPTION 'late' USING ERRCODE = 'serialization_failure'; END IF;
         RETURN NEW;
       END $$`
    )
    yield* query(writer, "CREATE TRIGGER collide BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION collide()")
  })

/** Creates work that counts its runs. The first `times` insert a row and end in `fail`. */
const counted = <E, R>(fail: Effect.Effect<unknown, E, R>, times = 2) => {
  let runs = 0
  const work = Effect.suspend(() => {
    runs++
    return runs <= times ? Effect.zipRight(insert(`undone ${runs}`), fail) : insert("kept")
  })
  return { work: Effect.asVoid(work), runs: () => runs }
}

type Run = <E>(work: Effect.Effect<void, E, Db>) => Effect.Effect<void, unknown, Db>

/** Returns the exit of a way to run: a promise that rejects is a failure. */
const settled = (self: Effect.Effect<void, unknown, Db>) => Effect.exit(self)

const inRuntime =
  (
    run: (
      runtime: DatabaseRuntime.DatabaseRuntime<{ readonly db: typeof Db }, Db>,
      code: () => Promise<void>
    ) => Promise<void>
  ): Run =>
  (work) =>
    Effect.flatMap(Effect.context<Db>(), (context) =>
      Effect.acquireUseRelease(
        Effect.promise(async () => {
          const runtime = DatabaseRuntime.make({ db: Db }, Layer.succeedContext(context))
          await runtime.open()
          return runtime
        }),
        (runtime) =>
          Effect.tryPromise({ try: () => run(runtime, () => runtime.runPromise(work)), catch: (error) => error }),
        (runtime) => Effect.promise(() => runtime.close())
      )
    )

const ways: Readonly<Record<string, Run>> = {
  "Db.withTransaction": (work) => Db.withTransaction(work, { retry: true }),
  "UnitOfWork.run": (work) => UnitOfWork.run(work, { retry: true }),
  "UnitOfWork.runNew": (work) => UnitOfWork.runNew(work, { retry: true }),
  "a runtime's unitOfWork": inRuntime((runtime, code) => runtime.unitOfWork(code, { retry: true })),
  "a runtime's withTransaction": inRuntime(({ databases }, code) => databases.db.withTransaction(code, { retry: true }))
}

const again: Readonly<Record<string, Effect.Effect<unknown, unknown, Db>>> = {
  "an error of its own": Effect.mapError(collide, () => new Refused("no")),
  "a defect": Effect.orDie(collide),
  "a defect of its own": Effect.catchAll(collide, () => Effect.die(new Error("a bug"))),
  "an error of its own, after a nested transaction was undone": Effect.mapError(
    Db.withTransaction(Effect.zipRight(insert("nested"), collide)),
    () => new Refused("no")
  ),
  "an error that interrupts a sibling": Effect.all([collide, Effect.never], { concurrency: 2 })
}

const once: Readonly<Record<string, Effect.Effect<unknown, unknown, Db>>> = {
  "an error of its own, with no statement that failed": Effect.fail(new Refused("no")),
  "a defect, with no statement that failed": Effect.die(new Error("a bug")),
  "a defect that another attempt would meet again": Effect.orDie(Effect.flatMap(Db.writer, (sql) => sql`SELECT 1 / 0`)),
  "an interruption of itself, after a collision": Effect.zipRight(Effect.ignore(collide), Effect.interrupt),
  "an error of its own, after it has interrupted a statement": Effect.flatMap(Db.writer, (sql) =>
    Effect.zipRight(Effect.timeoutOption(sql`SELECT pg_sleep(600)`, "10 millis"), Effect.fail(new Refused("too slow")))
  )
}

for (const [way, run] of Object.entries(ways)) {
  describe(`${way} with retry`, () => {
    for (const [failure, fail] of Object.entries(again)) {
      it.scopedLive(`${way} with retry runs again when its work has turned a collision into ${failure}`, () =>
        Effect.gen(function* () {
          const { runs, work } = counted(fail)
          const exit = yield* settled(run(work))
          assert.isTrue(Exit.isSuccess(exit))
          assert.strictEqual(runs(), 3)
          assert.deepStrictEqual(yield* stored, ["kept"])
          yield* idle
        }).pipe(Effect.provide(fresh()))
      )
    }

    for (const [failure, fail] of Object.entries(once)) {
      it.scopedLive(`${way} with retry runs its work once when that ends in ${failure}`, () =>
        Effect.gen(function* () {
          const { runs, work } = counted(fail)
          assert.isTrue(Exit.isFailure(yield* settled(run(work))))
          assert.strictEqual(runs(), 1)
          assert.deepStrictEqual(yield* stored, [])
          yield* idle
        }).pipe(Effect.provide(fresh()))
      )
    }

    it.scopedLive(`${way} with retry runs again when a repository of Model dies of a serialization failure`, () =>
      Effect.gen(function* () {
        yield* collideOnInsert(2)
        let runs = 0
        const work = Effect.suspend(() => {
          runs++
          return Effect.asVoid(addByModel("by Model"))
        })
        assert.isTrue(Exit.isSuccess(yield* settled(run(work))))
        assert.strictEqual(runs, 3)
        assert.deepStrictEqual(yield* stored, ["by Model"])
      }).pipe(Effect.provide(fresh()))
    )

    it.scopedLive(`${way} with retry ends with the work's own failure when no attempt is left`, () =>
      Effect.gen(function* () {
        const { runs, work } = counted(
          Effect.mapError(collide, () => new Refused("no")),
          Number.POSITIVE_INFINITY
        )
        const error = yield* Effect.flip(run(work))
        assert.instanceOf(error, Refused)
        assert.strictEqual(runs(), 11)
        assert.deepStrictEqual(yield* stored, [])
      }).pipe(Effect.provide(fresh()))
    )
  })
}

describe("combinators that a pipe is given without a call", () => {
  // this does not compile, and the error names the correct form; a program without types may do it
  const uncalled: Readonly<Record<string, unknown>> = {
    "Db.withTransaction": Db.withTransaction,
    "UnitOfWork.run": UnitOfWork.run,
    "UnitOfWork.runNew": UnitOfWork.runNew
  }
  for (const [name, combinator] of Object.entries(uncalled)) {
    it.scopedLive(`${name} that a pipe is given without a call runs the effect as one transaction`, () =>
      Effect.gen(function* () {
        const failing = Effect.zipRight(insert("undone"), Effect.fail("mine"))
        // the type with which a pipe calls it
        const run = combinator as (self: typeof failing) => typeof failing
        assert.strictEqual(yield* Effect.flip(failing.pipe(run)), "mine")
        assert.deepStrictEqual(yield* stored, [])
      }).pipe(Effect.provide(fresh()))
    )
  }
})

describe("DatabaseError and a repository of Model", () => {
  it.scopedLive("refine turns a repository's defect into a constraint violation, and catchAll handles it", () =>
    Effect.gen(function* () {
      yield* addByModel("taken")
      const again = addByModel("taken")
      const caught = yield* again.pipe(
        DatabaseError.refine,
        Effect.catchTag("UniqueViolation", ({ table }) => Effect.succeed(table))
      )
      assert.strictEqual(caught, "item")
      const tag = yield* DatabaseError.catchAll(again, ({ _tag }) => Effect.succeed(_tag))
      assert.strictEqual(tag, "UniqueViolation")
    }).pipe(Effect.provide(fresh()))
  )
})

describe("a transaction with retry", () => {
  for (const [way, run] of Object.entries({ Db: ways["Db.withTransaction"], unit: ways["UnitOfWork.run"] })) {
    it.scopedLive(`a transaction with retry does not run again when interrupted after a collision (${way})`, () =>
      Effect.gen(function* () {
        const collided = yield* Deferred.make<void>()
        const { runs, work } = counted(
          Effect.zipRight(Effect.ignore(collide), Effect.zipRight(Deferred.succeed(collided, undefined), Effect.never))
        )
        const fiber = yield* Effect.fork(run?.(work) ?? Effect.void)
        yield* Deferred.await(collided)
        const exit = yield* Fiber.interrupt(fiber)
        assert.isTrue(Exit.isFailure(exit) && Cause.isInterruptedOnly(exit.cause))
        assert.strictEqual(runs(), 1)
        yield* idle
      }).pipe(Effect.provide(fresh()))
    )
  }

  it.scopedLive("a transaction with retry does not run again for a collision in another database's transaction", () =>
    Effect.gen(function* () {
      const other = Audit.withTransaction(Effect.flatMap(Audit.writer, (sql) => sql.unsafe(collision)))
      const { runs, work } = counted(Effect.orDie(other))
      assert.isTrue(Exit.isFailure(yield* Effect.exit(Db.withTransaction(work, { retry: true }))))
      assert.strictEqual(runs(), 1)
    }).pipe(Effect.provide(Layer.merge(fresh(), audit)))
  )

  it.scopedLive("a unit with retry runs again for a collision although another database has failed before", () =>
    Effect.gen(function* () {
      yield* insert("taken")
      const log = Effect.flatMap(Audit.writer, (sql) => sql.unsafe(collision))
      const { runs, work } = counted(
        Effect.zipRight(
          Effect.ignore(insert("taken")),
          Effect.mapError(log, () => new Refused("no"))
        )
      )
      yield* UnitOfWork.run(work, { retry: true })
      assert.strictEqual(runs(), 3)
      assert.deepStrictEqual(yield* stored, ["kept", "taken"])
    }).pipe(Effect.provide(Layer.merge(fresh(), audit)))
  )

  it.scopedLive("a unit with retry keeps a success although a nested transaction has collided", () =>
    Effect.gen(function* () {
      const { runs, work } = counted(Effect.ignore(Db.withTransaction(collide)), 1)
      yield* UnitOfWork.run(work, { retry: true })
      assert.strictEqual(runs(), 1)
      assert.deepStrictEqual(yield* stored, ["undone 1"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a unit with retry runs again when its outcome rolls back a success after a collision", () =>
    Effect.gen(function* () {
      const { runs, work } = counted(Effect.ignore(collide))
      const outcome = () => (runs() <= 2 ? "rollback" : "commit")
      yield* UnitOfWork.run(work, { retry: true, outcome })
      assert.strictEqual(runs(), 3)
      assert.deepStrictEqual(yield* stored, ["kept"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a web request with retry is handled again if its handler has turned a collision into a response", () =>
    inRuntime(async (runtime, code) => {
      const handle = runtime.handler(
        () =>
          code().then(
            () => new Response("stored"),
            () => new Response("try again", { status: 503 })
          ),
        { retry: true }
      )
      const response = await handle(new Request("http://localhost/", { method: "POST" }))
      if (response.status !== 200) throw new Error(`${response.status}`)
    })(counted(collide).work).pipe(Effect.provide(fresh()))
  )
})
