/**
 * The copies of a template: one for each build of a layer, and those that are prepared ahead.
 */
import type * as Reactivity from "@effect/experimental/Reactivity"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { Database } from "../../Database.js"
import type { DatabaseError } from "../../DatabaseError.js"
import { renewClients } from "../client/openDatabase.js"
import { withRealClock } from "../embedded/realClock.js"
import { makeListen } from "../listen/streams.js"
import { databaseUrl } from "./databaseUrl.js"
import { joinRun, type TestRun } from "./testRun.js"

/** Copy of a template that is open in a scope of its own. */
interface Clone {
  readonly name: string
  readonly database: Database
  readonly scope: Scope.CloseableScope
}

/** Copies of one template that are prepared ahead. */
class WarmClones {
  readonly ready: Array<Clone> = []
  isFilling = false
}

/** The prepared copies of each run, by the names of their templates. */
const prepared = new WeakMap<TestRun, Map<string, WarmClones>>()

const warmOf = (run: TestRun, template: string): WarmClones => {
  const known = prepared.get(run) ?? new Map<string, WarmClones>()
  prepared.set(run, known)
  const warm = known.get(template) ?? new WarmClones()
  known.set(template, warm)
  return warm
}

/** Creates and opens a copy in a scope, which does not drop it. */
const makeClone = (run: TestRun, template: string, name: string, scope: Scope.Scope) =>
  run.create(name, template).pipe(
    Effect.zipRight(Scope.extend(run.open(name), scope)),
    Effect.tap((database) => Effect.sync(() => joinRun(database, run)))
  )

/**
 * Prepares copies in the background, one after the other, until there are `count`. They are open as
 * well, because a connect takes as long as a copy. After a failure the next build makes its own copy,
 * and fails if that is not possible either. The end of the run closes and drops what is left.
 */
const fill = (
  run: TestRun,
  template: string,
  warm: WarmClones,
  count: number
): Effect.Effect<void, never, Reactivity.Reactivity> =>
  Effect.suspend(() => {
    if (warm.isFilling || warm.ready.length >= count) return Effect.void
    warm.isFilling = true
    const add = Effect.uninterruptibleMask((restore) =>
      Effect.gen(function* () {
        const name = run.names.next()
        const scope = yield* Scope.fork(run.scope, ExecutionStrategy.sequential)
        const database = yield* restore(makeClone(run, template, name, scope)).pipe(
          Effect.onError((cause) =>
            Effect.zipRight(Scope.close(scope, Exit.failCause(cause)), withRealClock(run.drop(name)))
          )
        )
        warm.ready.push({ name, scope, database })
      })
    )
    return add.pipe(
      Effect.repeat({ while: () => warm.ready.length < count }),
      Effect.ignore,
      Effect.ensuring(
        Effect.sync(() => {
          warm.isFilling = false
        })
      )
    )
  }).pipe(Effect.forkIn(run.scope), Effect.asVoid)

/** Checks if a test has failed. An interruption alone, such as the end of the whole run, is none. */
const hasFailed = (exit: Exit.Exit<unknown, unknown>): boolean =>
  Exit.isFailure(exit) && !Cause.isInterruptedOnly(exit.cause)

/** Keeps the database of a failed test, and prints its URL. */
const keep = (run: TestRun, name: string): Effect.Effect<void> =>
  run.mark(name, "kept").pipe(
    Effect.zipRight(
      // the console and not the log, because the tests of `@effect/vitest` have no logger
      Console.error(
        `database ${JSON.stringify(run.source.config.name)}: the test has failed, and its database is kept for a day: ` +
          databaseUrl(run.source.config.writer, run.user, name)
      )
    ),
    // a database that cannot be marked is dropped with those of the run, and is not announced
    Effect.ignore
  )

/** Takes a prepared copy, or a new name, and drops its database at the end of the scope, or keeps it. */
const take = (
  run: TestRun,
  warm: WarmClones,
  keepOnFailure: boolean
): Effect.Effect<Clone | Pick<Clone, "name">, never, Scope.Scope> =>
  Effect.gen(function* () {
    const ready = warm.ready.shift()
    const taken = ready ?? { name: run.names.next() }
    // before the database is created, so that an interruption leaves nothing
    yield* Effect.addFinalizer((exit) =>
      withRealClock(keepOnFailure && hasFailed(exit) ? keep(run, taken.name) : run.drop(taken.name))
    )
    if (ready !== undefined) yield* Effect.addFinalizer((exit) => Scope.close(ready.scope, exit))
    return taken
  }).pipe(Effect.uninterruptible)

/**
 * Opens a copy of a template in the scope. It is dropped at the end of the scope, or kept if the
 * scope ends with a failure and `keepOnFailure` is true.
 */
export const openClone = (
  run: TestRun,
  template: string,
  { keepOnFailure, warm: count }: { readonly keepOnFailure: boolean; readonly warm: number }
): Effect.Effect<Database, DatabaseError, Reactivity.Reactivity | Scope.Scope> =>
  Effect.gen(function* () {
    const warm = warmOf(run, template)
    const taken = yield* take(run, warm, keepOnFailure)
    if (!("database" in taken)) {
      const database = yield* makeClone(run, template, taken.name, yield* Effect.scope)
      yield* fill(run, template, warm, count)
      return database
    }
    yield* fill(run, template, warm, count)
    return yield* renewClients(taken.database, makeListen)
  })
