/**
 * Two databases at once from 50 fibers, 2,000 operations: nested and independent transactions,
 * units of work over both databases, refused statements, killed backends, failures, defects and
 * interruptions. The stored rows must match the exits.
 */
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import { type Database, DatabaseError, UnitOfWork } from "effect-db"
import { Audit, Db } from "../support/databases.js"
import { eventually, turn } from "../support/eventually.js"
import { randoms } from "../support/random.js"
import { freshDatabase, query } from "../support/server.js"

const fibers = 50
const operations = 40
const seed = 20_240_607

/** Rows that are stored together or not at all. `kept` is undefined if the exit leaves both possible. */
interface Claim {
  readonly rows: ReadonlyArray<string>
  readonly kept: boolean | undefined
}

class Planned extends Error {
  readonly _tag = "Planned"
}

class World {
  readonly claims: Array<Claim> = []
  readonly defects: Array<string> = []
  private named = 0

  name(): string {
    return `row ${++this.named}`
  }
}

const into = (database: typeof Db | typeof Audit, row: string) =>
  Effect.flatMap(database.writer as typeof Db.writer, (sql) => sql`INSERT INTO entry ${sql.insert({ name: row })}`)

const kill = Effect.flatMap(Db.writer, (sql) => sql`SELECT pg_terminate_backend(pg_backend_pid())`)
const refused = Effect.flatMap(Db.writer, (sql) => sql`SELECT 1 / 0`)

const operation = (world: World, random: () => number) => {
  const chance = (p: number) => random() < p
  const own: Array<string> = []
  const row = (rows: Array<string>) => {
    const name = world.name()
    rows.push(name)
    return name
  }
  const claim = (rows: ReadonlyArray<string>, exit: Exit.Exit<unknown, unknown>) => {
    const open = Exit.isFailure(exit) && (Cause.isInterrupted(exit.cause) || isOpen(exit.cause))
    world.claims.push({ rows, kept: open ? undefined : Exit.isSuccess(exit) })
  }
  const inner = (database: typeof Db | typeof Audit) => {
    const rows: Array<string> = []
    const fails = chance(0.3)
    const nested = (database as typeof Db).withTransaction(
      Effect.zipRight(
        Effect.all([into(database, row(rows)), into(database, row(rows))], {
          concurrency: chance(0.5) ? 2 : 1
        }),
        fails ? Effect.fail(new Planned()) : Effect.void
      )
    )
    // a planned failure rolls back its savepoint alone
    return Effect.catchIf(
      Effect.tap(nested, () => Effect.sync(() => own.push(...rows))),
      (error) => error instanceof Planned,
      () => Effect.sync(() => world.claims.push({ rows, kept: false }))
    )
  }
  const apart = (database: typeof Db | typeof Audit) => {
    const rows: Array<string> = []
    const work = Effect.all([into(database, row(rows)), into(database, row(rows))])
    const alone = (database as typeof Db).withTransaction(work, { propagation: "requiresNew" })
    return Effect.onExit(alone, (exit) => Effect.sync(() => claim(rows, exit)))
  }
  const body = Effect.gen(function* () {
    const first = chance(0.5) ? Db : Audit
    yield* into(first, row(own))
    if (chance(0.5)) yield* inner(first)
    if (chance(0.2)) yield* apart(first)
    if (chance(0.3)) yield* Effect.forEach([1, 2], () => inner(Db), { concurrency: 2 })
    if (chance(0.1)) yield* refused
    if (chance(0.04)) yield* kill
    if (chance(0.1)) yield* Effect.fail(new Planned())
    if (chance(0.05)) yield* Effect.die(new Planned())
    yield* into(first, row(own))
  })
  const kind = random()
  const whole =
    kind < 0.4
      ? UnitOfWork.run(body)
      : kind < 0.7
        ? Db.withTransaction(Audit.withTransaction(body))
        : kind < 0.85
          ? UnitOfWork.run(Effect.zipRight(into(Audit, row(own)), Effect.zipRight(into(Db, row(own)), body)))
          : Db.withTransaction(Effect.suspend(() => into(Db, row(own))))
  const waits = chance(0.15) ? Math.floor(random() * 40) : undefined
  return Effect.gen(function* () {
    const fiber = yield* Effect.fork(whole)
    if (waits !== undefined) {
      for (let i = 0; i < waits; i++) yield* turn
      yield* Fiber.interruptFork(fiber)
    }
    const exit = yield* Fiber.await(fiber)
    claim(own, exit)
    if (Exit.isFailure(exit)) {
      for (const defect of Cause.defects(exit.cause)) {
        if (!(defect instanceof Planned)) world.defects.push(String(defect))
      }
      for (const error of Cause.failures(exit.cause)) {
        // an error that is not of this library has no database
        if (!(error instanceof Planned) && DatabaseError.fromUnknown(error).database === "unknown") {
          world.defects.push(String(error))
        }
      }
    }
  })
}

/**
 * Checks if a failure leaves open which rows are stored: the outcome is unknown, or only one of the two
 * databases has committed.
 */
const isOpen = (cause: Cause.Cause<unknown>): boolean =>
  [...Cause.failures(cause)].some((error) => {
    const { _tag } = DatabaseError.fromUnknown(error)
    return _tag === "CommitOutcomeUnknown" || _tag === "PartialCommit"
  })

const names = (url: Redacted.Redacted<string>) =>
  Effect.map(query<{ name: string }>(url, "SELECT name FROM entry"), (rows) => rows.map((row) => row.name))

const figures = Effect.all([Db.status, Audit.status])

/** Checks that no caller has a connection or waits for one. */
const isQuiet = (all: ReadonlyArray<Database.Status>): boolean =>
  all.every(({ servers }) =>
    servers.every(({ reads, writes }) =>
      [reads, writes].every((pool) => pool === undefined || (pool.active === 0 && pool.waiting === 0))
    )
  )

it.scopedLive(
  "the stored rows match the exits after random faults, and no connection is left checked out",
  () =>
    Effect.gen(function* () {
      const app = yield* freshDatabase
      const audit = yield* freshDatabase
      for (const { writer } of [app, audit]) yield* query(writer, "CREATE TABLE entry (name text)")
      const world = new World()
      yield* Effect.zipRight(
        Effect.forEach(
          Array.from({ length: fibers }, (_, i) => randoms(seed + i)),
          (random) =>
            Effect.forEach(Array.from({ length: operations }), () => Effect.suspend(() => operation(world, random)), {
              discard: true
            }),
          { concurrency: "unbounded", discard: true }
        ),
        // a connection whose caller is interrupted during validation is checked in after the validation
        eventually(figures, isQuiet)
      ).pipe(Effect.provide(Layer.merge(Db.layer({ writer: app.writer }), Audit.layer({ writer: audit.writer }))))

      const stored = [...(yield* names(app.writer)), ...(yield* names(audit.writer))]
      const found = new Set(stored)
      assert.strictEqual(found.size, stored.length, "nothing is stored twice")
      assert.deepStrictEqual(world.defects, [])
      let kept = 0
      let undone = 0
      for (const claim of world.claims) {
        const there = claim.rows.filter((row) => found.has(row)).length
        if (claim.kept === true) {
          kept++
          assert.strictEqual(there, claim.rows.length, `kept: ${claim.rows.join(", ")}`)
        } else if (claim.kept === false) {
          undone++
          assert.strictEqual(there, 0, `undone: ${claim.rows.join(", ")}`)
        }
      }
      assert.isAbove(kept, 500)
      assert.isAbove(undone, 200)
      const claimed = new Set(world.claims.flatMap((claim) => claim.rows))
      assert.isTrue(
        stored.every((row) => claimed.has(row)),
        "nothing is stored that was not written"
      )
    }),
  120_000
)
