/**
 * The tenant of a piece of work, in databases with one schema for each tenant.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import { dual } from "effect/Function"
import { tenantChange } from "./internal/sql/schemaScopes.js"
import { inScopes } from "./internal/transaction/ambientScopes.js"

/**
 * The schema in which unqualified names are looked up, or several in the order of the lookup, as in
 * `search_path`.
 *
 * The strings are names, not SQL: quotes, capitals and spaces are parts of a name.
 *
 * @see {@link withTenant} and `Db.withSchema`, which take it
 * @since 0.1.0
 * @category models
 */
export type Schema = string | ReadonlyArray<string>

/**
 * The options of {@link withTenant}.
 *
 * @see {@link withTenant} for an example
 * @since 0.1.0
 * @category options
 */
export interface Options {
  /**
   * The classes of the databases that have the schema.
   *
   * @default every database
   */
  readonly databases?: ReadonlyArray<{ readonly databaseName: string }> | undefined
}

/**
 * Runs an effect as the work of one tenant: the unqualified names of all its statements are looked
 * up in the schema of the tenant.
 *
 * The schema takes precedence over every `withSchema`, inside or outside of it. Of several nested
 * tenants the innermost counts. A qualified name in a statement is looked up in its own schema.
 *
 * - **Statements, not connections.** A statement outside of a transaction is sent in a transaction
 *   of its own, in one exchange. In a transaction each statement has the schema of its own scope, so
 *   `withTenant` does not affect the statements before and after it. Nothing remains in the session
 *   of the server.
 * - **Scope.** Forked fibers, registered hooks and `UnitOfWork.outside` are in the scope. Plain code
 *   is in it only if a `DatabaseRuntime` runs the code; the runtime has a `withTenant` of its own.
 * - **Batches.** A batch runs in the scope of the fiber that waits for it: put `withTenant` around
 *   `Effect.forEach` with `batching`, not inside. Create data loaders and request caches for each
 *   tenant, because all callers of a cache share its results.
 * - **Refused commands.** Commands that cannot run in a transaction, such as `VACUUM`, are refused
 *   by the server.
 *
 * Each statement fails with `SchemaInvalid`, before anything is sent, if a name cannot be that of a
 * schema: if it is empty, longer than 63 bytes, has a NUL, or is `$user` or `pg_temp`. `reserve`
 * always fails with `SchemaInvalid` in the scope, because the program begins and ends the
 * transactions of a reserved connection itself. A schema that does not exist has no tables, so
 * statements fail with `QueryFailed`.
 *
 * @see `Db.withSchema` for the schema of one database
 * @example
 * ```ts
 * import { HttpMiddleware, HttpServerRequest } from "@effect/platform"
 * import { Effect } from "effect"
 * import { Tenant } from "effect-db"
 *
 * // runs after authentication, which must have verified the header
 * export const byHeader = HttpMiddleware.make((app) =>
 *   Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ headers }) =>
 *     Tenant.withTenant(app, headers["x-tenant"] ?? "")
 *   )
 * )
 * ```
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
    inScopes(self, tenantChange(schema, options))
)
