/**
 * The class of a named database, by identity. A name is the key of a database in a context, in transactions and in errors, so in one context
 * two classes of one name would be one: the statements of the one would run in the database of the other.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { ConfigInvalid } from "../../DatabaseError.js"

/** One class of `Database.Service`. */
export class NamedClass {
  /** How many databases of it are open. */
  open = 0

  constructor(readonly name: string) {}
}

class Names extends Context.Tag("effect-db/internal/Names")<Names, Map<string, NamedClass>>() {}

/** The names that are open in one build of layers. Layers are built once for each build, so those that are built together share them. */
export const names: Layer.Layer<Names> = Layer.sync(Names, () => new Map())

const refusal = (name: string) =>
  new ConfigInvalid({
    database: name,
    setting: "name",
    given: "used by two classes in one context",
    expected: "a different name for each class of Database.Service"
  })

/** Takes the name of a class for the scope; fails where another class has it. `around` is the class that has it in the context around. */
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
 * Throws where a class finds the database of another one in a context that was put together by hand. A class that has nothing open is the
 * one that a module declares again when it is loaded anew, and uses what the one before has opened.
 */
export const checkOwner = (own: NamedClass, owner: NamedClass): void => {
  if (owner !== own && own.open > 0) throw refusal(own.name)
}
