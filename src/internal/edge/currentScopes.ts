/**
 * The schema scopes of a fiber.
 */
import * as Context from "effect/Context"
import { noScopes, type SchemaScopes } from "../sql/schemaScopes.js"

/** Scopes of the current fiber. Both kinds are in one reference, so that a statement reads one. */
export class CurrentScopes extends Context.Reference<CurrentScopes>()("effect-db/Tenant/Scopes", {
  defaultValue: (): SchemaScopes => noScopes
}) {}
