/**
 * The schema scopes of a fiber: scopes of single databases, and the scope of a tenant.
 */
import { SearchPath } from "./searchPath.js"

type ByDatabase = ReadonlyMap<string, SearchPath>

const none: ByDatabase = new Map()

/** Schema scopes that apply together. The scope of a tenant takes precedence. */
export class SchemaScopes {
  constructor(
    private readonly schemas: ByDatabase,
    /** The search path of the tenant, for all databases that are not in `tenants`. */
    private readonly tenant: SearchPath | undefined,
    private readonly tenants: ByDatabase
  ) {}

  /**
   * Returns the search path for the statements of a database, or `undefined` if no scope sets one:
   * the search path of the server's session applies then.
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

/** No scopes: the search path of the session applies on all databases. */
export const noScopes = new SchemaScopes(none, undefined, none)

/** Function that adds a scope to the current scopes. */
export type ScopeChange = (scopes: SchemaScopes) => SchemaScopes

/** Returns the change of scopes for a schema scope of one database. */
export const schemaChange = (database: string, schemas: string | ReadonlyArray<string>): ScopeChange => {
  const path = new SearchPath(schemas)
  return (scopes) => scopes.withSchema(database, path)
}

/** Options of the scope of a tenant. */
interface TenantOptions {
  readonly databases?: ReadonlyArray<{ readonly databaseName: string }> | undefined
}

/**
 * Describes the fault of options, if there is one. A program without types may mistype `databases`;
 * if that were ignored, the schema of the tenant would apply to all databases.
 */
const optionFault = (options: object): string | undefined => {
  const unknown = Object.keys(options).find((name) => name !== "databases")
  if (unknown !== undefined) return `given with the unknown option "${unknown}"`
  const databases: unknown = Reflect.get(options, "databases")
  const isValid =
    databases === undefined ||
    (Array.isArray(databases) && databases.every((one) => typeof one?.databaseName === "string"))
  return isValid ? undefined : "given with `databases` that are no list of classes of databases"
}

/**
 * Returns the change of scopes for the scope of a tenant. If the options are invalid, every
 * statement in the scope is refused.
 */
export const tenantChange = (schemas: string | ReadonlyArray<string>, options: TenantOptions): ScopeChange => {
  const fault = optionFault(options)
  const path = new SearchPath(schemas, fault)
  const names = fault === undefined ? options.databases?.map(({ databaseName }) => databaseName) : undefined
  return (scopes) => scopes.withTenant(names, path)
}
