/**
 * The same databases, swapped for tests.
 *
 * @since 0.1.0
 */
import * as Reactivity from "@effect/experimental/Reactivity"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { type Database, sandbox } from "./Database.js"

/**
 * Takes an open database and gives the same one inside of a transaction that is always rolled back.
 *
 * The application's transactions become savepoints, their hooks run, writers and readers share the one connection, and a reader still
 * cannot write. What is asked to be independent, or a transaction of its own, is nested here, for there is one connection. The work of
 * concurrent fibers takes turns. A statement that is interrupted is undone alone, or with the application's transaction that it is in;
 * where the server does not confirm its cancel within a second, or behind a pooler, the sandbox ends. What the server does at COMMIT only
 * is not done: deferred constraints are not checked, notifications are not sent, and what `SET LOCAL` has set stays.
 *
 * A statement that would end the sandbox, such as COMMIT, is refused with `QueryFailed`. On a reserved connection BEGIN, COMMIT and ROLLBACK are
 * those of a savepoint, which other statements wait for while it is open.
 *
 * @example
 * import { Layer, Redacted } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const DbLive = Db.layer({ writer: Redacted.make("postgres://me:secret@localhost/test") })
 *
 * // the tables are there, and each build of this layer finds them as the last one did
 * export const DbTest = Layer.provide(TestDatabase.layer(Db), DbLive)
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = <Self>(tag: Context.Tag<Self, Database>): Layer.Layer<Self, never, Self> =>
  Layer.scoped(tag, Effect.flatMap(tag, sandbox)).pipe(Layer.provide(Reactivity.layer))
