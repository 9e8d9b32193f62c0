/**
 * The identity of the class of a named database. The name is the key of the database in contexts,
 * transactions and errors. Two classes with one name in one context would be confused: statements
 * of one would run in the database of the other.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { ConfigInvalid } from "../../DatabaseError.js"

/** Class of `Database.Service`. */
export class NamedClass {
  /** The number of its open databases. */
  open = 0

  constructor(readonly name: string) {}
}

class Names extends Context.Tag("effect-db/internal/Names")<Names, Map<string, NamedClass>>() {}

/**
 * The names of the open databases of one build of layers. A layer is built once in each build, so
 * all databases of the build share the map.
 */
export const names: Layer.Layer<Names> = Layer.sync(Names, () => new Map())

const refusal = (name: string) =>
  new ConfigInvalid({
    database: name,
    setting: "name",
    given: "used by two classes in one context",
    expected: "a different name for each class of Database.Service"
  })

/**
 * Registers the name of a class until the scope ends. Fails if another class uses the name.
 * `around` is the class with this name in the surrounding context, if there is one.
 */
export const takeName = (
  own: NamedClass,
  around: NamedClass | undefined
): Effect.Effect<void, ConfigInvalid, Names | Scope.Scope> =>
  Effect.flatMap(Names, (taken) =>
    Effect.acquireRelease(
      Effect.suspend(() => {
        const other = taken.get(own.name) ?? around
        if (other !== undefined && other !== own) return Effect.fail(refusal(own.name))
        taken.set(own.name, own)
        own.open++
        return Effect.void
      }),
      () =>
        Effect.sync(() => {
          taken.delete(own.name)
          own.open--
        })
    )
  )

/**
 * Throws if a class finds the database of another class in a context that was put together by hand.
 * A class without an open database passes: a module that is loaded again declares its class again,
 * and uses the database of the earlier class.
 */
export const checkOwner = (own: NamedClass, owner: NamedClass): void => {
  if (owner !== own && own.open > 0) throw refusal(own.name)
}
