/**
 * Layers of a program's databases for tests.
 *
 * @since 0.1.0
 */
import * as Reactivity from "@effect/experimental/Reactivity"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { type Database, sandbox } from "./Database.js"

/**
 * Wraps the layer of a database in a sandbox: one transaction that is always rolled back.
 *
 * In the sandbox the transactions of the program become savepoints, and their hooks run. Writers
 * and readers share the one connection, and a reader still cannot write. A new transaction
 * (`requiresNew`) and independent work are nested, because there is one connection. Concurrent
 * fibers take turns.
 *
 * The sandbox does not show what the server does only at COMMIT: deferred constraints are not
 * checked, notifications are not sent, and the values of `SET LOCAL` remain.
 *
 * - An interrupted statement is undone, and so is the program's transaction around it, if there is
 *   one. The sandbox ends if the server does not confirm the cancel within a second; behind a pooler
 *   it always ends.
 * - A statement that would end the sandbox, such as COMMIT, fails with `QueryFailed`. On a
 *   reserved connection BEGIN, COMMIT and ROLLBACK act on a savepoint, and other statements wait
 *   while it is open.
 *
 * @see `Database.Members` for `layer`, which opens the database itself
 * @see `EmbeddedPostgres` for a server that the test starts
 * @example
 * ```ts
 * import { Layer, Redacted } from "effect"
 * import { Database, TestDatabase } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const DbLive = Db.layer({ writer: Redacted.make("postgres://me:secret@localhost/test") })
 *
 * // the tables exist, and each build of this layer finds them unchanged
 * export const DbTest = Layer.provide(TestDatabase.layer(Db), DbLive)
 * ```
 *
 * @since 0.1.0
 * @category layers
 */
export const layer = <Self>(tag: Context.Tag<Self, Database>): Layer.Layer<Self, never, Self> =>
  Layer.scoped(tag, Effect.flatMap(tag, sandbox)).pipe(Layer.provide(Reactivity.layer))
