/**
 * The opening of a database of its own for a test: a copy of a template.
 */
import type * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Database } from "../../Database.js"
import { isDatabaseError } from "../../DatabaseError.js"
import { isUndefinedDatabase } from "../../SqlState.js"
import {
  aBoolean,
  anEffect,
  anyOf,
  aText,
  invalidOption,
  type OptionRule,
  type OptionRules
} from "../config/callOptionRules.js"
import { openClone } from "./clones.js"
import { forget, type TemplateFailure, type TemplateNeeds, type TemplateWork, templateOf } from "./templates.js"
import { runOf } from "./testRun.js"

/** Options of `TestDatabase.layerTemplate`. */
interface Options<E, R> extends Partial<TemplateWork<E, R>> {
  readonly migrate: Effect.Effect<unknown, E, R>
  readonly warm?: number | undefined
  readonly keepOnFailure?: boolean | undefined
}

const aCount: OptionRule = {
  expected: "a whole number from 0 to 100",
  accepts: (given) => Number.isInteger(given) && Number(given) >= 0 && Number(given) <= 100
}

const rules: OptionRules<Options<unknown, unknown>> = {
  migrate: anEffect,
  seed: anEffect,
  hash: anyOf(aText, anEffect),
  warm: aCount,
  keepOnFailure: aBoolean
}

/** Runs an effect outside of the transactions and schema scopes around it. */
const outside = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.mapInputContext(
    self,
    // the cast: the slot is not a part of R
    (context: Context.Context<R>) => Context.omit(SqlClient.TransactionConnection)(context) as Context.Context<R>
  )

/** Opens a copy of the template that `options` describe, with the settings of the database in the context. */
export const openTemplate = <Self, E, R>(
  tag: Context.Tag<Self, Database>,
  options: Options<E, R>
): Effect.Effect<Database, TemplateFailure<E>, Self | TemplateNeeds<R, Self> | Reactivity.Reactivity | Scope.Scope> =>
  Effect.gen(function* () {
    const live = yield* tag
    const invalid = invalidOption(live.executor.database, options, rules)
    if (invalid !== undefined) return yield* invalid
    const { hash, keepOnFailure = false, migrate, seed, warm = 0 } = options
    const run = yield* runOf(live)
    const isDropped = (error: unknown) =>
      isDatabaseError(error) && error._tag === "QueryFailed" && isUndefinedDatabase(error.sqlState ?? "")
    return yield* templateOf(run, tag, live, { hash, migrate, seed }).pipe(
      Effect.flatMap((template) =>
        Effect.tapError(openClone(run, template, { keepOnFailure, warm }), (error) =>
          Effect.sync(() => {
            if (isDropped(error)) forget(run, template)
          })
        )
      ),
      // a developer may drop a template at any time
      Effect.retry({ times: 1, while: isDropped })
    )
  }).pipe(outside)
