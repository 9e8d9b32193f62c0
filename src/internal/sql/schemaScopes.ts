/**
 * The schema scopes of a fiber: the scopes of single databases, and the scopes of a tenant.
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

/** The scopes without any schema. */
export const noScopes = new SchemaScopes(none, undefined, none)

/** Function that derives scopes from those that are in force. */
export type ScopeChange = (scopes: SchemaScopes) => SchemaScopes

/** Returns the change that a schema scope of one database makes to the scopes in force. */
export const schemaChange = (database: string, schemas: string | ReadonlyArray<string>): ScopeChange => {
  const path = new SearchPath(schemas)
  return (scopes) => scopes.withSchema(database, path)
}

/** Options of the scope of a tenant. */
interface TenantOptions {
  readonly databases?: ReadonlyArray<{ readonly databaseName: string }> | undefined
}

/**
 * Describes the fault of options, if there is one: a program without types may mistype a name. If a
 * mistyped `databases` were ignored, the schema of the tenant would apply to all databases.
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
 * Returns the change that the scope of a tenant makes to the scopes in force. With invalid options
 * every statement in the scope is refused.
 */
export const tenantChange = (schemas: string | ReadonlyArray<string>, options: TenantOptions): ScopeChange => {
  const fault = optionFault(options)
  const path = new SearchPath(schemas, fault)
  const names = fault === undefined ? options.databases?.map(({ databaseName }) => databaseName) : undefined
  return (scopes) => scopes.withTenant(names, path)
}
