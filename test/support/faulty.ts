/** Tests with faults on demand. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { DatabaseError, type Fault, TestDatabase } from "effect-db"
import { Db, fresh, type Place } from "./databases.js"

/** Runs a test on a new database with faults. */
export const faulty = <A, E>(
  test: (faults: Fault.Faults) => Effect.Effect<A, E, Db | Place | Scope.Scope>,
  options: Parameters<typeof fresh>[0] = {}
) =>
  Effect.flatMap(TestDatabase.faults(Db), test).pipe(
    Effect.scoped,
    Effect.provide(Layer.provideMerge(TestDatabase.layerFaults(Db), fresh(options)))
  )

/** Returns the failure of an effect. */
export const failure = <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.flip(DatabaseError.refine(self))
