/**
 * Programs that compile and programs that do not. `tsc` is the test; nothing here runs. Each line
 * that must not compile stands below the correct line.
 */
import type * as HttpApp from "@effect/platform/HttpApp"
import type { SqlClient } from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type { PgClient } from "@effect/sql-pg/PgClient"
import type { ConfigError } from "effect/ConfigError"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type * as Stream from "effect/Stream"
import {
  type Copy,
  Database,
  type DatabaseError,
  DatabaseRuntime,
  Discovery,
  Notification,
  RequestTransaction,
  Tenant,
  TestDatabase,
  UnitOfWork
} from "effect-db"
import { expectTypeOf } from "vitest"
import type * as Internal from "../../src/internal/unitOfWork/options.js"

class App extends Database.Service<App>()("app") {}
class Audit extends Database.Service<Audit>()("audit") {}

const url = Redacted.make("postgres://localhost/app")
const AppLive = App.layer({ writer: url })
const AuditLive = Audit.layer({ writer: url })

const one = Effect.flatMap(App.writer, (sql) => sql<{ readonly id: number }>`SELECT 1 AS id`)
const both = Effect.zip(one, Audit.writer)

export const aDatabaseHasToBeProvided = () => [
  Effect.runPromise(Effect.provide(one, AppLive)),
  // @ts-expect-error: App is missing
  Effect.runPromise(one)
]

export const databasesAreNotInterchangeable = () => [
  Effect.runPromise(Effect.provide(one, AppLive)),
  // @ts-expect-error: App is missing
  Effect.runPromise(Effect.provide(one, AuditLive)),
  Effect.runPromise(Effect.provide(both, Layer.merge(AppLive, AuditLive))),
  // @ts-expect-error: Audit is missing
  Effect.runPromise(Effect.provide(both, AppLive)),
  // @ts-expect-error: App is missing
  Effect.runPromise(Effect.provide(both, AuditLive))
]

export const settingsAreKnown = () => [
  App.layer({ writer: url, maxConnections: 5 }),
  // @ts-expect-error: there is no such setting
  App.layer({ writer: url, maxConnection: 5 }),
  App.layer({ writer: url, startup: "lazy" }),
  // @ts-expect-error: there is no such start-up
  App.layer({ writer: url, startup: "later" }),
  // @ts-expect-error: the writer is missing
  App.layer({ readers: [url] }),
  App.layer({ hosts: url, discover: Discovery.list([{ host: "a" }]) }),
  // @ts-expect-error: the user and the database are missing
  App.layer({ discover: Discovery.list([{ host: "a" }]) }),
  // @ts-expect-error: Patroni needs an HttpClient
  App.layer({ hosts: url, discover: Discovery.patroni(["http://a:8008"]) })
]

export const poolOptionsHaveKnownValues = (session: Effect.Effect<number, string, SqlClient>) => [
  App.layer({ writer: url, order: "fifo" }),
  // @ts-expect-error: there is no such order
  App.layer({ writer: url, order: "random" }),
  App.layer({ writer: url, strategy: "assertSingle" }),
  // @ts-expect-error: there is no such strategy
  App.layer({ writer: url, strategy: "singleton" }),
  App.layer({ writer: url, resetOnReturn: "discardAll" }),
  // @ts-expect-error: there is no such reset
  App.layer({ writer: url, resetOnReturn: "rollback" }),
  App.layer({ writer: url, resetOnReturn: session, onConnect: session, onCheckout: session }),
  // @ts-expect-error: a session hook may need a client and nothing else
  App.layer({ writer: url, onConnect: Effect.zip(session, Audit.writer) }),
  // @ts-expect-error: a session hook is an effect, not a function
  App.layer({ writer: url, onCheckout: () => session }),
  App.layer({ writer: url, idleTimeout: "5 minutes", leakThreshold: 1000 }),
  // @ts-expect-error: that is no duration
  App.layer({ writer: url, idleTimeout: "5 moments" }),
  // @ts-expect-error: a number of connections is a number
  App.layer({ writer: url, maxOverflow: "5" })
]

export const credentialsHaveAShape = (password: Redacted.Redacted<string>) => [
  App.layer({ writer: url, credentials: Effect.succeed({ username: "me", password }) }),
  App.layer({ writer: url, credentials: Effect.fail("not now") }),
  // @ts-expect-error: a password that is not redacted
  App.layer({ writer: url, credentials: Effect.succeed({ username: "me", password: "secret" }) }),
  // @ts-expect-error: the user is missing
  App.layer({ writer: url, credentials: Effect.succeed({ password }) }),
  // @ts-expect-error: credentials are an effect; constant ones belong in the URL
  App.layer({ writer: url, credentials: { username: "me", password } }),
  App.layer({ writer: { host: "localhost", database: "app", username: "me", passwordFile: "/run/secrets/app" } }),
  // @ts-expect-error: a password that is not redacted
  App.layer({ writer: { host: "localhost", database: "app", username: "me", password: "secret" } })
]

export const transactionOptionsHaveKnownValues = () => [
  App.withTransaction(one, { isolation: "serializable" }),
  // @ts-expect-error: there is no such isolation level
  App.withTransaction(one, { isolation: "serialisable" }),
  one.pipe(App.withTransaction({ access: "read only" })),
  // @ts-expect-error: there is no such access
  one.pipe(App.withTransaction({ access: "readonly" })),
  App.withTransaction(one, { propagation: "requiresNew" }),
  // @ts-expect-error: there is no such propagation
  App.withTransaction(one, { propagation: "REQUIRES_NEW" }),
  one.pipe(App.withTransaction()),
  // @ts-expect-error: withTransaction has to be called
  one.pipe(App.withTransaction)
]

export const unitsOfWorkEndInOneOfTwoWays = () => [
  UnitOfWork.run(one, { outcome: () => "rollback" }),
  // @ts-expect-error: there is no such outcome
  UnitOfWork.run(one, { outcome: () => "abort" }),
  one.pipe(UnitOfWork.run()),
  // @ts-expect-error: run has to be called
  one.pipe(UnitOfWork.run),
  one.pipe(UnitOfWork.runNew()),
  // @ts-expect-error: runNew has to be called
  one.pipe(UnitOfWork.runNew)
]

export const unitOptionsHaveKnownValues = () => [
  UnitOfWork.run(one, { databases: [UnitOfWork.on(App, { isolation: "serializable" })], order: [App, Audit] }),
  // @ts-expect-error: there is no such isolation
  UnitOfWork.run(one, { databases: [UnitOfWork.on(App, { isolation: "snapshot" })] }),
  // @ts-expect-error: a unit has no propagation
  UnitOfWork.run(one, { transaction: { propagation: "requiresNew" } }),
  // @ts-expect-error: there is no such order
  UnitOfWork.run(one, { order: "random" })
]

export const runtimesHaveWhatTheirLayerOpens = () => [
  DatabaseRuntime.make({ app: App }, AppLive).databases.app.writer,
  // @ts-expect-error: Audit is not opened
  DatabaseRuntime.make({ app: App, audit: Audit }, AppLive),
  // @ts-expect-error: there is no such database
  DatabaseRuntime.make({ app: App }, AppLive).databases.audit,
  DatabaseRuntime.make({ app: App }, AppLive).runPromise(one),
  // @ts-expect-error: Audit is not opened
  DatabaseRuntime.make({ app: App }, AppLive).runPromise(both)
]

export const whatDatabasesProvideAndNeed = () => {
  expectTypeOf(AppLive).toEqualTypeOf<Layer.Layer<App, DatabaseError.StartupError>>()
  expectTypeOf(App.layerConfig).returns.toEqualTypeOf<Layer.Layer<App, DatabaseError.StartupError | ConfigError>>()
  expectTypeOf(App.layerSqlClient).toEqualTypeOf<Layer.Layer<SqlClient | PgClient, never, App>>()
  expectTypeOf(TestDatabase.layer(App)).toEqualTypeOf<Layer.Layer<App, never, App>>()
  expectTypeOf(App.writer).toEqualTypeOf<Effect.Effect<Copy.Client, never, App>>()
  expectTypeOf(App.reader).toEqualTypeOf<Effect.Effect<Copy.Client, never, App>>()
  expectTypeOf(App.any).toEqualTypeOf<Effect.Effect<Copy.Client, never, App>>()
  expectTypeOf(App.databaseName).toEqualTypeOf<"app">()
  // @ts-expect-error: the name is a literal type
  expectTypeOf(App.databaseName).toEqualTypeOf<"audit">()
}

export const whatTransactionsAdd = (work: Effect.Effect<number, "refused", Audit>) => {
  type InTransaction<R> = Effect.Effect<number, "refused" | DatabaseError.TransactionError, R>
  expectTypeOf(App.withTransaction(work)).toEqualTypeOf<InTransaction<App | Audit>>()
  expectTypeOf(App.withTransaction(work, { retry: true })).toEqualTypeOf<InTransaction<App | Audit>>()
  expectTypeOf(work.pipe(App.withTransaction())).toEqualTypeOf<InTransaction<App | Audit>>()
  // @ts-expect-error: the database is needed
  expectTypeOf(App.withTransaction(work)).toEqualTypeOf<InTransaction<Audit>>()
  expectTypeOf(App.commit).toEqualTypeOf<Effect.Effect<void, DatabaseError.TransactionError, App>>()
  expectTypeOf(App.rollback).toEqualTypeOf<Effect.Effect<void, DatabaseError.TransactionError, App>>()
  expectTypeOf(App.independent(work)).toEqualTypeOf<Effect.Effect<number, "refused", App | Audit>>()
  // a hook may fail and need any service: its failure fails the commit, and the program provides
  // the service
  expectTypeOf(App.beforeCommit(work)).toEqualTypeOf<Effect.Effect<void, never, App | Audit>>()
}

export const whatListenersReceive = () => {
  type Received<R> = Stream.Stream<Notification.Notification, DatabaseError.ListenError, R>
  expectTypeOf(App.listen("news")).toEqualTypeOf<Received<App>>()
  // @ts-expect-error: the database is needed
  expectTypeOf(App.listen("news")).toEqualTypeOf<Received<never>>()
  expectTypeOf(App.notify("news", "x")).toEqualTypeOf<Effect.Effect<void, DatabaseError.DatabaseError, App>>()
  const handlers = { Listening: () => "all", Message: () => "one", Gap: () => "all" }
  expectTypeOf(Notification.Notification.$match(handlers)).returns.toEqualTypeOf<string>()
  // @ts-expect-error: a match has to handle a gap
  Notification.Notification.$match({ Listening: () => "all", Message: () => "one" })
}

export const whatUnitsOfWorkAdd = (work: Effect.Effect<number, "refused", Audit>) => {
  expectTypeOf(UnitOfWork.run(work)).toEqualTypeOf<
    Effect.Effect<number, "refused" | DatabaseError.TransactionError, Audit>
  >()
}

export const aMiddlewareAddsNothing = (app: HttpApp.Default<"refused", App>) => {
  expectTypeOf(RequestTransaction.middleware()(app)).toEqualTypeOf<HttpApp.Default<"refused", App>>()
}

export const whatStatementsFailWith = () => {
  expectTypeOf(one).toEqualTypeOf<Effect.Effect<ReadonlyArray<{ readonly id: number }>, SqlError, App>>()
}

export const scopesChangeNoType = () => {
  expectTypeOf(App.withSchema(one, "tenant")).toEqualTypeOf<typeof one>()
  expectTypeOf(one.pipe(App.withSchema(["tenant", "shared"]))).toEqualTypeOf<typeof one>()
  expectTypeOf(Tenant.withTenant(both, "tenant", { databases: [App, Audit] })).toEqualTypeOf<typeof both>()
  expectTypeOf(both.pipe(Tenant.withTenant("tenant"))).toEqualTypeOf<typeof both>()
}

export const schemasAreNames = (header: string | undefined) => [
  App.withSchema(one, header ?? ""),
  // @ts-expect-error: a header that may be missing is no name
  App.withSchema(one, header),
  Tenant.withTenant(one, "tenant", { databases: [App] }),
  // @ts-expect-error: a database is given as its class
  Tenant.withTenant(one, "tenant", { databases: ["app"] }),
  Effect.runPromise(Effect.provide(Tenant.withTenant(one, "tenant"), AppLive)),
  // @ts-expect-error: a scope provides no database
  Effect.runPromise(Tenant.withTenant(one, "tenant"))
]

export const plainScopesReturnTheResultOfTheirCode = () => {
  const runtime = DatabaseRuntime.make({ app: App }, AppLive)
  expectTypeOf(runtime.withTenant(() => 1, "tenant")).toEqualTypeOf<number>()
  expectTypeOf(runtime.databases.app.withSchema(async () => "a", "tenant")).toEqualTypeOf<Promise<string>>()
}

export const optionsOfUnitsAreThoseOfTheirImplementation = () => {
  expectTypeOf<UnitOfWork.Options<1, 2>>().toEqualTypeOf<Internal.UnitOptions<1, 2>>()
  expectTypeOf<UnitOfWork.NestedOptions<1, 2>>().toEqualTypeOf<Internal.NestedOptions<1, 2>>()
}
