/**
 * One suite in every mode of a test database: the same programs have the same results, in any order, 8
 * at a time.
 *
 * `EFFECT_DB_CHAOS=full` runs all cases in copies of a template, too, and not one of twelve.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { TestDatabase } from "effect-db"
import { type All, databases, type ModeCase, migrate, modeCases, One, Three, Two } from "../support/modeCases.js"
import { randoms } from "../support/random.js"
import { freshDatabase } from "../support/server.js"

const isFull = process.env.EFFECT_DB_CHAOS === "full"
const seed = Number(process.env.EFFECT_DB_SEED ?? 1 + Math.floor(Math.random() * 2 ** 31))
/** The number of cases that run at the same time. */
const lanes = 8

/** Opens the three databases, empty and new. */
const live: Layer.Layer<All> = Layer.orDie(
  Layer.mergeAll(
    Layer.unwrapScoped(Effect.map(freshDatabase, ({ writer }) => One.layer({ writer, maxConnections: 20 }))),
    Layer.unwrapScoped(Effect.map(freshDatabase, ({ writer }) => Two.layer({ writer, maxConnections: 20 }))),
    Layer.unwrapScoped(Effect.map(freshDatabase, ({ writer }) => Three.layer({ writer, maxConnections: 20 })))
  )
)

const migrateAll = Effect.forEach(databases, migrate, { discard: true })

type Results = ReadonlyMap<string, unknown>

/** Runs cases in a random order, each as `run` does. */
const runAll = <R>(cases: ReadonlyArray<ModeCase>, run: (one: ModeCase) => Effect.Effect<unknown, unknown, R>) =>
  Effect.gen(function* () {
    const random = randoms(seed)
    const shuffled = cases.map((one) => ({ one, order: random() })).sort((a, b) => a.order - b.order)
    const results = yield* Effect.forEach(
      shuffled,
      ({ one }) => Effect.map(run(one), (result) => [one.name, result] as const),
      { concurrency: lanes }
    )
    return new Map(results) as Results
  })

const sandboxed = (cases: ReadonlyArray<ModeCase>) =>
  Effect.gen(function* () {
    yield* migrateAll
    const sandboxes = Layer.mergeAll(TestDatabase.layer(One), TestDatabase.layer(Two), TestDatabase.layer(Three))
    return yield* runAll(cases, ({ run }) => Effect.provide(run, sandboxes))
  }).pipe(Effect.provide(live))

/** Runs cases in databases of their own, which are copies of templates. */
const copied = (cases: ReadonlyArray<ModeCase>) => {
  const copies = Layer.mergeAll(
    TestDatabase.layerTemplate(One, { migrate: migrate(One), hash: "modes" }),
    TestDatabase.layerTemplate(Two, { migrate: migrate(Two), hash: "modes" }),
    TestDatabase.layerTemplate(Three, { migrate: migrate(Three), hash: "modes" })
  )
  return runAll(cases, ({ run }) => Effect.provide(run, copies)).pipe(Effect.provide(live))
}

/** Runs cases with real commits, on one set of databases for each lane. */
const committed = (cases: ReadonlyArray<ModeCase>) =>
  Effect.map(
    Effect.forEach(
      Array.from({ length: lanes }, (_, lane) => cases.filter((_, i) => i % lanes === lane)),
      (part) =>
        Effect.gen(function* () {
          yield* migrateAll
          return yield* Effect.forEach(part, ({ name, run }) => Effect.map(run, (result) => [name, result] as const))
        }).pipe(Effect.provide(live)),
      { concurrency: lanes }
    ),
    (parts): Results => new Map(parts.flat())
  )

it.scopedLive(
  `${modeCases.length} programs over three databases have the same results in a sandbox, in a copy of a template and with real commits (seed ${seed})`,
  () =>
    Effect.gen(function* () {
      assert.isAtLeast(modeCases.length, 500)
      const expected = yield* committed(modeCases)
      // the results are those of the programs, and not all the same
      const tagsOf = (name: string) => JSON.stringify(expected.get(name))
      assert.include(tagsOf("missing parent, transaction, success, 1 databases"), "CommitFailed")
      assert.include(tagsOf("duplicate, unit, success, 3 databases"), "UniqueViolation")
      assert.include(tagsOf("notification, unit, success, 2 databases"), '["sent","last"]')
      assert.include(tagsOf("insert, transaction, defect, 2 databases"), "two rolled back")
      const found = yield* sandboxed(modeCases)
      for (const { name } of modeCases) assert.deepStrictEqual(found.get(name), expected.get(name), name)
      const part = isFull ? modeCases : modeCases.filter((_, i) => i % 12 === seed % 12)
      const own = yield* copied(part)
      for (const { name } of part) assert.deepStrictEqual(own.get(name), expected.get(name), name)
    }),
  600_000
)
