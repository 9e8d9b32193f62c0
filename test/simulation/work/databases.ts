/** The databases of the program under test. */
import type * as Effect from "effect/Effect"
import { type Consistency, type Copy, Database, type DatabaseError, type Transaction } from "effect-db"

/** Database of a cluster. */
export class App extends Database.Service<App>()("app") {}

/** Database of one server. */
export class Audit extends Database.Service<Audit>()("audit") {}

/** Both databases. */
export type Databases = App | Audit

export type DatabaseName = "app" | "audit"

type Hook = (hook: Effect.Effect<unknown>) => Effect.Effect<void, never, Databases>

/** The members of a database that calls use, for a database that is chosen at run time. */
export interface AnyDatabase {
  readonly writer: Effect.Effect<Copy.Client, never, Databases>
  readonly reader: Effect.Effect<Copy.Client, never, Databases>
  readonly withTransaction: <A, E>(
    self: Effect.Effect<A, E, Databases>,
    options?: Transaction.Options
  ) => Effect.Effect<A, E | DatabaseError.TransactionError, Databases>
  readonly withConsistency: <A, E>(
    self: Effect.Effect<A, E, Databases>,
    consistency: Consistency.Consistency
  ) => Effect.Effect<A, E, Databases>
  readonly afterCommit: Hook
  readonly afterRollback: Hook
  readonly afterUnknown: Hook
}

export const databases: Readonly<Record<DatabaseName, AnyDatabase>> = { app: App, audit: Audit }
