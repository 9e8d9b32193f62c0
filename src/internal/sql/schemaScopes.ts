/**
 * The schema scopes of a fiber: those of single databases and those of a tenant.
 */
import { SearchPath } from "./searchPath.js"

type ByDatabase = ReadonlyMap<string, SearchPath>

const none: ByDatabase = new Map()

/** Scopes that are in force together. */
export class SchemaScopes {
  constructor(
    private readonly schemas: ByDatabase,
    /** The schemas of the tenant, for all databases that are not in `tenants`. */
    private readonly tenant: SearchPath | undefined,
    private readonly tenants: ByDatabase
  ) {}

  /**
   * Returns the search path for the statements of a database; `undefined` leaves it to the session.
   */
  find(database: string): SearchPath | undefined {
    return this.tenants.get(database) ?? this.tenant ?? this.schemas.get(database)
  }

  withSchema(database: string, path: SearchPath): SchemaScopes {
    return new SchemaScopes(new Map([...this.schemas, [database, path]]), this.tenant, this.tenants)
  }

  withTenant(databases: ReadonlyArray<string> | undefined, path: SearchPath): SchemaScopes {
    if (databases === undefined) return new SchemaScopes(this.schemas, path, none)
    const own = databases.map((name) => [name, path] as const)
    return new SchemaScopes(this.schemas, this.tenant, new Map([...this.tenants, ...own]))
  }
}

/** The scopes without any schema. */
export const noScopes = new SchemaScopes(none, undefined, none)

/** Function that derives scopes from those that are in force. */
export type ScopeChange = (scopes: SchemaScopes) => SchemaScopes

export const schemaChange = (database: string, schemas: string | ReadonlyArray<string>): ScopeChange => {
  const path = new SearchPath(schemas)
  return (scopes) => scopes.withSchema(database, path)
}

export const tenantChange = (
  schemas: string | ReadonlyArray<string>,
  databases: ReadonlyArray<{ readonly databaseName: string }> | undefined
): ScopeChange => {
  const path = new SearchPath(schemas)
  const names = databases?.map(({ databaseName }) => databaseName)
  return (scopes) => scopes.withTenant(names, path)
}
