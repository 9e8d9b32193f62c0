/**
 * The schema scopes of a fiber.
 */
import * as Context from "effect/Context"
import { noScopes, type SchemaScopes } from "../sql/schemaScopes.js"

/**
 * Scopes of the current fiber. The scopes of databases and of the tenant are in one reference, so
 * that a statement reads only one.
 */
export class CurrentScopes extends Context.Reference<CurrentScopes>()("effect-db/Tenant/Scopes", {
  defaultValue: (): SchemaScopes => noScopes
}) {}
