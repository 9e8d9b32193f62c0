/**
 * Whose rows a piece of work is about, where each tenant has a schema of its own.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import { tenantChange } from "./internal/sql/schemaScopes.js"
import { inScopes } from "./internal/transaction/contextSlot.js"

/**
 * Where unqualified names are looked up: in one schema, or in several, one after the other, as in `search_path`. They are names and no
 * SQL: quotes, capitals and spaces are parts of them.
 *
 * @since 0.1.0
 * @category models
 */
export type Schema = string | ReadonlyArray<string>

/**
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /** The classes of the databases that it is for. Default: every database. */
  readonly databases?: ReadonlyArray<{ readonly databaseName: string }> | undefined
}

/**
 * Runs an effect as the work of one tenant: the unqualified names of all statements in it are looked up in this schema. It is before every
 * `withSchema`, whichever of the two is inside of the other; of two tenants the innermost counts. A name that is qualified in the
 * statement is looked up where that says.
 *
 * It holds for statements, not for connections: one outside of a transaction is sent in one of its own, all in one flight; in a
 * transaction each sees the schema that it is run in, and one that is run in none sees what was there before. Nothing is left in any
 * session. Fibers that are forked in it, hooks that are registered in it and `UnitOfWork.outside` are in it, too; plain code that is run by an
 * effect is not, unless a `DatabaseRuntime` runs it: that has a `withTenant` of its own.
 *
 * A name that can be no schema's (empty, longer than 63 bytes, with a NUL, `$user`, `pg_temp`) fails each statement with `SchemaInvalid`, before
 * anything is sent; so does `reserve`, whose transactions nobody else knows. A schema that is not there has no tables: what is looked up
 * in it alone is not found. Commands that may not be in a transaction, such as `VACUUM`, are refused by the server.
 *
 * What is batched runs in one scope, that of who waits for the whole batch: put it around `Effect.forEach` with `batching`, not inside of
 * it. Data loaders and request caches are shared by all that use them, so they are made for each tenant.
 *
 * @example
 * import { HttpMiddleware, HttpServerRequest } from "@effect/platform"
 * import { Effect } from "effect"
 * import { Tenant } from "effect-db"
 *
 * // who asks is known by then; a name that nobody has vouched for is no tenant
 * export const byHeader = HttpMiddleware.make((app) =>
 *   Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ headers }) => Tenant.withTenant(app, headers["x-tenant"] ?? ""))
 * )
 *
 * @since 0.1.0
 * @category combinators
 */
export const withTenant: {
  (schema: Schema, options?: Options): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, schema: Schema, options?: Options): Effect.Effect<A, E, R>
} = dual(
  (args) => Effect.isEffect(args[0]),
  <A, E, R>(self: Effect.Effect<A, E, R>, schema: Schema, options: Options = {}): Effect.Effect<A, E, R> =>
    inScopes(self, tenantChange(schema, options.databases))
)
