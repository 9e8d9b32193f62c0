/**
 * Migrations of named databases with the Migrator of `@effect/sql`, which several processes may run
 * at the same time.
 *
 * @since 0.2.0
 */
import * as Migrator from "@effect/sql/Migrator"
import { SqlClient } from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Order from "effect/Order"
import * as Predicate from "effect/Predicate"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Database from "./Database.js"
import { ConfigInvalid, type DatabaseError, fromUnknown, refine } from "./DatabaseError.js"
import {
  aDuration,
  anEffect,
  aText,
  aWord,
  invalidOption,
  type OptionRules
} from "./internal/config/callOptionRules.js"
import { type Location, locationText } from "./internal/errors/messageParts.js"
import { createCommands } from "./internal/outcome/outcomeTable.js"
import * as UnitOfWork from "./UnitOfWork.js"

/**
 * Options of the migrations of one database.
 *
 * @see {@link run}, {@link layer} and {@link on}, which take them
 * @since 0.2.0
 * @category models
 */
export interface Options<R = never> {
  /**
   * The migrations: `Migrator.fromRecord`, `fromGlob` or `fromBabelGlob` of `@effect/sql`, or
   * `fromFileSystem` of its `Migrator/FileSystem`.
   */
  readonly loader: Migrator.Loader<R>
  /**
   * The table of the applied migrations, in lower case, with or without its schema. `PgMigrator`
   * uses the same table in the same form.
   *
   * @default "effect_sql_migrations"
   */
  readonly table?: string | undefined
  /**
   * The treatment of a migration with a lower id than an applied one, such as from a branch that
   * was merged late: `"fail"`, or `"apply"`, which applies it now.
   *
   * @default "fail"
   */
  readonly outOfOrder?: "fail" | "apply" | undefined
  /**
   * The time to wait for another process that migrates the same database. A plain number is in
   * milliseconds. The statements of a migration wait for locks on their tables within the
   * `lockTimeout` of the database.
   *
   * @default "5 minutes"
   */
  readonly lockTimeout?: Duration.DurationInput | undefined
  /**
   * The server's limit for a statement of a migration. The `statementTimeout` of the database is
   * meant for requests and does not apply here.
   *
   * @default Duration.infinity
   */
  readonly statementTimeout?: Duration.DurationInput | undefined
}

/**
 * Migrations that a run has applied, in their order.
 *
 * @see {@link run} and {@link runAll}, which return it
 * @since 0.2.0
 * @category models
 */
export type Applied = ReadonlyArray<readonly [id: number, name: string]>

/**
 * Class of a named database, with the parts that migrations use.
 *
 * @see `Database.Service` for such a class
 * @since 0.2.0
 * @category models
 */
export type Target<Self> = UnitOfWork.Named &
  Context.Tag<Self, Database.Database> &
  Pick<Database.Members<Self>, "layerSqlClient" | "withTransaction">

/**
 * One database with its migrations.
 *
 * @see {@link on}, which creates it
 * @since 0.2.0
 * @category models
 */
export interface Plan<R = never> {
  /** The name of the database. */
  readonly database: string
  /** @internal */ readonly settings: UnitOfWork.UnitSettings
  /** @internal */ readonly lockTimeout: Duration.Duration
  /** @internal */ readonly lock: Effect.Effect<void, Failure | Busy, R>
  /** @internal */ readonly apply: Effect.Effect<Applied, Failure, R>
}

/**
 * Error of a run of migrations. No migration of the run is stored.
 *
 * - `failed`: a statement of a migration was refused, or its effect failed, and `cause` is the
 *   failure; or the table of the applied migrations did not accept their rows.
 * - `outOfOrder`: a migration has a lower id than an applied one, or an id below 1.
 * - `renamed`: a migration has the id of another one that was applied under another name, so it
 *   would never run.
 * - `duplicates`: two migrations have the same id.
 * - `import`: the loader could not load a migration.
 * - `locked`: another process held the lock for longer than `lockTimeout`.
 *
 * `migrations` names the migrations in question, such as `3_item`, and `detail` says what to do.
 *
 * @see {@link run} for the other failures of a run
 * @since 0.2.0
 * @category errors
 */
export class MigrationFailed extends Schema.TaggedError<MigrationFailed>("effect-db/MigrationFailed")(
  "MigrationFailed",
  {
    /** The name of the database. */
    database: Schema.String,
    /**
     * The server: `host:port`, `a:5432,b:5432` for several hosts, the folder of a Unix socket, or
     * the `name` of a server that is given as a `socket`.
     */
    server: Schema.String,
    reason: Schema.Literal("failed", "outOfOrder", "renamed", "duplicates", "import", "locked"),
    migrations: Schema.Array(Schema.String),
    /** The problem, and what to do about it. */
    detail: Schema.String,
    cause: Schema.optional(Schema.Defect)
  }
) {
  override get message(): string {
    return `${locationText(this)}: ${this.detail}`
  }
}

type Failure = MigrationFailed | DatabaseError

/** Failure of an attempt because another process holds the lock. */
class Busy {
  readonly _tag = "Busy"
  constructor(
    readonly location: Location,
    /** The process that holds the lock, as far as the server shows it. */
    readonly holder: string
  ) {}
}

type Sql = Database.Database["writer"]

type Fault = Pick<MigrationFailed, "reason" | "migrations" | "detail">

type Requirements<P> = P extends Plan<infer R> ? R : never

/** At this level, statements after the lock see everything that its last holder has committed. */
const isolation = "read committed"

/** Matches names that mean the same with and without quotes: the Migrator uses both forms. */
const plainTable = /^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$/

const nameOf = ([id, name]: readonly [id: number, name: string, ...rest: ReadonlyArray<unknown>]) => `${id}_${name}`

const byId = Order.mapInput(Order.number, ([id]: Migrator.ResolvedMigration) => id)
const byDatabase = Order.mapInput(Order.string, ({ database }: { readonly database: string }) => database)

const migrate = Migrator.make({})

/**
 * Returns the message of a failure, without its database and server if they are those of
 * `location`.
 */
const failureMessage = (cause: unknown, location: Location): string => {
  const error = Predicate.isTagged(cause, "SqlError") ? fromUnknown(cause) : cause
  const message = Predicate.hasProperty(error, "message") ? String(error.message) : String(error)
  const prefix = `${locationText(location)}: `
  return message.startsWith(prefix) ? message.slice(prefix.length) : message
}

/** Returns the first fault of a list of migrations, compared with the applied ones. */
const faultOf = (
  all: ReadonlyArray<Migrator.ResolvedMigration>,
  applied: ReadonlyMap<number, string>,
  outOfOrder: "fail" | "apply"
): Fault | undefined => {
  const latest = Math.max(0, ...applied.keys())
  const seen = new Map<number, string>()
  for (const migration of all) {
    const [id, name] = migration
    if (id < 1) {
      return {
        reason: "outOfOrder",
        migrations: [nameOf(migration)],
        detail: `${nameOf(migration)} never runs, because ids begin with 1`
      }
    }
    const twin = seen.get(id)
    if (twin !== undefined) {
      const migrations = [nameOf([id, twin]), nameOf(migration)]
      return {
        reason: "duplicates",
        migrations,
        detail: `${migrations.join(" and ")} have the same id - renumber one of them`
      }
    }
    seen.set(id, name)
    const before = applied.get(id)
    if (before !== undefined && before !== name) {
      return {
        reason: "renamed",
        migrations: [nameOf(migration), nameOf([id, before])],
        detail:
          `${nameOf(migration)} would never run, because ${nameOf([id, before])} is applied under that id` +
          " - give it another id, or if it is the same migration, its old name"
      }
    }
  }
  const late = all.filter(([id]) => id < latest && !applied.has(id)).map(nameOf)
  if (late.length === 0 || outOfOrder === "apply") return undefined
  return {
    reason: "outOfOrder",
    migrations: late,
    detail:
      `${late.join(", ")} ${late.length === 1 ? "has a lower id" : "have lower ids"} than ` +
      `${nameOf([latest, applied.get(latest) ?? ""])}, which is applied - give ${late.length === 1 ? "it a higher id" : "them higher ids"},` +
      ' or allow late migrations with outOfOrder: "apply"'
  }
}

const lockOf = (sql: Sql, table: string, location: Location): Effect.Effect<void, Failure | Busy> =>
  Effect.gen(function* () {
    // a lock of a transaction is released at its end, also if the process dies, and never remains in
    // a session of a pooler
    const [row] = yield* sql<{ key: string; locked: boolean }>`
      SELECT key::text, pg_try_advisory_xact_lock(key) AS locked
      FROM hashtextextended('effect-db/Migrations ' || coalesce(current_schema()::text, '') || ' ' || ${table}::text, 0) AS key
    `.withoutTransform
    if (row?.locked === true) return
    const [holder] = yield* sql<{ pid: number; name: string | null }>`
      SELECT pid, application_name AS name FROM pg_locks LEFT JOIN pg_stat_activity USING (pid)
      WHERE locktype = 'advisory' AND granted AND objsubid = 1
        AND (classid::bigint << 32 | objid::bigint) = ${row?.key}::bigint
        AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    `.withoutTransform
    const named = holder?.name ? ` (${holder.name})` : ""
    return yield* Effect.fail(
      new Busy(location, holder === undefined ? "another process" : `process ${holder.pid}${named}`)
    )
  }).pipe(refine)

/** Creates the table of the applied migrations if it does not exist, and returns its rows. */
const appliedIn = (sql: Sql, table: string) =>
  Effect.gen(function* () {
    // checked first, because CREATE TABLE IF NOT EXISTS requires the right to create tables in any
    // case
    const [row] = yield* sql<{ exists: boolean }>`SELECT to_regclass(${table}) IS NOT NULL AS exists`.withoutTransform
    if (row?.exists !== true) {
      yield* sql`CREATE TABLE ${sql(table)} (
        migration_id integer PRIMARY KEY,
        created_at timestamp with time zone NOT NULL DEFAULT now(),
        name text NOT NULL
      )`
    }
    const rows = yield* sql<{ migration_id: number; name: string }>`SELECT migration_id, name FROM ${sql(table)}`
      .withoutTransform
    return new Map(rows.map((row) => [row.migration_id, row.name]))
  })

/**
 * Runs an effect while the rows of later migrations are removed from the table, because the Migrator
 * skips ids below the highest id in the table. The lock and the transaction hide the removal from
 * other processes.
 */
const withoutLater = <A, E, R>(sql: Sql, table: string, first: number, self: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const later = yield* sql`
      DELETE FROM ${sql(table)} WHERE migration_id > ${first}
      RETURNING migration_id, name, created_at::text AS created_at`.withoutTransform
    const result = yield* self
    yield* sql`INSERT INTO ${sql(table)} ${sql.insert(later)}`.withoutTransform
    return result
  })

const optionRules: OptionRules<Options> = {
  loader: anEffect,
  table: aText,
  outOfOrder: aWord("fail", "apply"),
  lockTimeout: aDuration,
  statementTimeout: aDuration
}

/**
 * Returns a database with its migrations, for {@link runAll}.
 *
 * It applies nothing; an option that is not valid fails the run with `ConfigInvalid`.
 *
 * @see {@link runAll}, which takes several
 * @see {@link run} for one database
 * @example
 * ```ts
 * import type * as Migrator from "@effect/sql/Migrator"
 * import { Database, Migrations } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * declare const loader: Migrator.Loader
 *
 * export const plan = Migrations.on(Db, { loader, table: "meta.migrations", outOfOrder: "apply" })
 * ```
 *
 * @since 0.2.0
 * @category constructors
 */
export const on = <Self, R = never>(database: Target<Self>, options: Options<R>): Plan<Self | R> => {
  const { loader, lockTimeout = "5 minutes", outOfOrder = "fail", statementTimeout = Duration.infinity } = options
  const table = options.table ?? "effect_sql_migrations"
  const name = database.databaseName
  const locationOf = ({ executor }: Database.Database): Location => ({
    database: name,
    server: executor.topology.writer.name
  })

  const lock = Effect.gen(function* () {
    const invalid = invalidOption(name, options, optionRules)
    if (invalid !== undefined) return yield* invalid
    if (!plainTable.test(table)) {
      return yield* new ConfigInvalid({
        database: name,
        setting: "table",
        given: JSON.stringify(table),
        expected: "a name of lower-case letters, digits and _, with or without a schema before it"
      })
    }
    const open = yield* database
    return yield* lockOf(open.writer, table, locationOf(open))
  })

  const apply = Effect.gen(function* () {
    const open = yield* database
    const sql = open.writer
    const fail = (fault: Fault & { readonly cause?: unknown }) =>
      Effect.fail(new MigrationFailed({ ...locationOf(open), ...fault }))
    const migratorFailure = (all: ReadonlyArray<Migrator.ResolvedMigration>) => (error: Migrator.MigrationError) => {
      const migrations = all.map(nameOf).filter((name) => error.message.includes(`"${name}"`))
      return error.reason === "failed"
        ? fail({
            reason: "failed",
            migrations,
            // the message of the cause comes last, because it ends with the lines about its
            // statement
            detail: `${error.message}, and nothing of this run is stored: ${failureMessage(error.cause, locationOf(open))}`,
            cause: error.cause
          })
        : fail({ reason: "import", migrations, detail: error.message, cause: error })
    }
    const all = [...(yield* Effect.catchAll(loader, migratorFailure([])))].sort(byId)
    const applied = yield* appliedIn(sql, table)
    const fault = faultOf(all, applied, outOfOrder)
    if (fault !== undefined) return yield* fail(fault)

    const pending = all.filter(([id]) => !applied.has(id))
    const [next] = pending
    // the Migrator locks its table exclusively, and a program without new migrations may not have
    // the right to do that
    if (next === undefined) return []
    const migrated = migrate({ loader: Effect.succeed(pending), table }).pipe(
      Effect.provide(database.layerSqlClient),
      // the Migrator turns a failed migration into a defect
      Effect.catchAllDefect((defect) =>
        defect instanceof Migrator.MigrationError ? Effect.fail(defect) : Effect.die(defect)
      ),
      Effect.catchTag("MigrationError", migratorFailure(pending))
    )
    const isLate = [...applied.keys()].some((id) => id > next[0])
    const done = yield* isLate ? withoutLater(sql, table, next[0], migrated) : migrated
    if (done.length === pending.length) return done
    // the Migrator takes a refused INSERT for the work of another process, and returns without an
    // error
    const detail = `the table ${table} does not accept rows: check if the user may INSERT - nothing of this run is stored`
    return yield* fail({ reason: "failed", migrations: pending.map(nameOf), detail })
  }).pipe(refine)

  return {
    database: name,
    settings: { isolation, statementTimeout },
    lockTimeout: Duration.decode(lockTimeout),
    lock,
    apply
  }
}

/** Repeats a run while another process holds the lock, up to a limit. */
const awaitLock = <A, E, R>(
  once: Effect.Effect<A, E | Busy, R>,
  limit: Duration.Duration
): Effect.Effect<A, Exclude<E, Busy> | MigrationFailed, R> =>
  Effect.suspend(() => {
    let isReported = false
    return once.pipe(
      Effect.tapError((error) => {
        if (!(error instanceof Busy) || isReported) return Effect.void
        isReported = true
        return Effect.logInfo(
          `${locationText(error.location)}: ${error.holder} is migrating this database; waiting for up to ${Duration.format(limit)}`
        )
      }),
      Effect.retry({
        while: (error) => error instanceof Busy,
        schedule: Schedule.spaced("100 millis").pipe(Schedule.jittered, Schedule.upTo(limit))
      }),
      Effect.mapError((error) =>
        error instanceof Busy
          ? new MigrationFailed({
              ...error.location,
              reason: "locked",
              migrations: [],
              detail:
                `${error.holder} held the lock of the migrations for longer than ${Duration.format(limit)}` +
                " - stop that process, or raise lockTimeout"
            })
          : // an error that is not Busy belongs to the rest of E
            (error as Exclude<E, Busy>)
      )
    )
  })

/**
 * Applies the migrations of one database that are not applied yet. Each is applied once, even if
 * several processes call this at the same time.
 *
 * One process applies all of them or none, in one transaction and under an advisory lock of that
 * transaction. The other processes log that they wait, for at most `lockTimeout`, and then have
 * nothing to do. If the process with the lock dies, its work is rolled back, and another
 * process takes over. This works behind PgBouncer in transaction mode, in a sandbox of
 * `TestDatabase`, and in the scope of a tenant: each schema has its own table and lock.
 *
 * Returns the applied migrations. It fails with `MigrationFailed`, which names the migration, with
 * `ConfigInvalid` for an option that is not valid, and with the errors of a transaction. An applied
 * migration that the loader does not have, such as in an older release, is no failure.
 *
 * @see {@link runAll} for several databases
 * @see {@link layer} for a layer
 * @example
 * ```ts
 * import * as Migrator from "@effect/sql/Migrator"
 * import { SqlClient } from "@effect/sql/SqlClient"
 * import { Effect } from "effect"
 * import { Database, Migrations } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const migrate = Migrations.run(Db, {
 *   loader: Migrator.fromRecord({
 *     "1_todo": Effect.flatMap(SqlClient, (sql) => sql`CREATE TABLE todo (id int PRIMARY KEY, title text NOT NULL)`)
 *   })
 * })
 * ```
 *
 * @since 0.2.0
 * @category running
 */
export const run = <Self, R = never>(
  database: Target<Self>,
  options: Options<R>
): Effect.Effect<Applied, MigrationFailed | DatabaseError, Self | R> => {
  const { apply, lock, lockTimeout, settings } = on(database, options)
  return awaitLock(database.withTransaction(Effect.zipRight(lock, apply), settings), lockTimeout)
}

/**
 * Applies the migrations of several databases together, in one unit of work: if one database
 * cannot be migrated, no database is.
 *
 * All locks are taken before the first migration, in the order of the databases' names, so that two
 * processes cannot wait for each other. The longest `lockTimeout` applies to all. Returns the
 * applied migrations by the names of the databases. It fails as {@link run} does, and with
 * `PartialCommit` if a connection is lost between two COMMITs: the next run continues from there.
 *
 * @see {@link run} for one database
 * @example
 * ```ts
 * import type * as Migrator from "@effect/sql/Migrator"
 * import { Database, Migrations } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 * class Audit extends Database.Service<Audit>()("audit") {}
 *
 * declare const app: Migrator.Loader
 * declare const audit: Migrator.Loader
 *
 * export const migrate = Migrations.runAll([
 *   Migrations.on(Db, { loader: app }),
 *   Migrations.on(Audit, { loader: audit })
 * ])
 * ```
 *
 * @since 0.2.0
 * @category running
 */
export const runAll = <Plans extends ReadonlyArray<Plan<unknown>>>(
  plans: Plans
): Effect.Effect<ReadonlyMap<string, Applied>, MigrationFailed | DatabaseError, Requirements<Plans[number]>> => {
  // the cast: Plan<unknown> is for inference alone, and each element has the requirements of its
  // own type
  const sorted = ([...plans] as ReadonlyArray<Plan<Requirements<Plans[number]>>>).toSorted(byDatabase)
  const once = UnitOfWork.runNew(
    Effect.gen(function* () {
      for (const { lock } of sorted) yield* lock
      const applied = new Map<string, Applied>()
      for (const { apply, database } of sorted)
        applied.set(database, [...(applied.get(database) ?? []), ...(yield* apply)])
      return applied
    }),
    { databases: plans.map(({ database, settings }) => ({ database, settings })) }
  )
  return awaitLock(
    once,
    plans.reduce((longest, plan) => Duration.max(longest, plan.lockTimeout), Duration.zero)
  )
}

/**
 * Applies the migrations of one database when the layer is built. Layers that it is provided to are
 * built after that.
 *
 * @see {@link run} for the semantics and the errors
 * @example
 * ```ts
 * import type * as Migrator from "@effect/sql/Migrator"
 * import { Config, Layer } from "effect"
 * import { Database, Migrations } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * declare const loader: Migrator.Loader
 *
 * export const DbLive = Migrations.layer(Db, { loader }).pipe(
 *   Layer.provideMerge(Db.layerConfig({ writer: Config.redacted("DATABASE_URL") }))
 * )
 * ```
 *
 * @since 0.2.0
 * @category layers
 */
export const layer = <Self, R = never>(
  database: Target<Self>,
  options: Options<R>
): Layer.Layer<never, MigrationFailed | DatabaseError, Self | R> => Layer.effectDiscard(run(database, options))

/**
 * Migration that creates the table of `outcome: "marker"`, `effect_db.outcome`, with its schema and
 * the functions `effect_db.mark_commit` and `effect_db.keep_key`, if they do not exist.
 *
 * It is for a user that may create them while the user of the service may not, with `outcomeTable:
 * "exists"`. Each other user needs grants, which a migration adds:
 *
 * ```sql
 * GRANT USAGE ON SCHEMA effect_db TO app;
 * GRANT SELECT, INSERT, UPDATE, DELETE ON effect_db.outcome TO app
 * ```
 *
 * A role that transactions set (`SET LOCAL role`) needs USAGE alone, because the functions run
 * with the rights of their owner. It fails with the `SqlError` of a refused statement.
 *
 * @see `DatabaseConfig.DatabaseOptions` for `outcome` and `outcomeTable`
 * @example
 * ```ts
 * import * as Migrator from "@effect/sql/Migrator"
 * import { Database, Migrations } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const migrate = Migrations.run(Db, {
 *   loader: Migrator.fromRecord({ "1_outcome": Migrations.outcomeTable })
 * })
 * ```
 *
 * @since 0.3.0
 * @category migrations
 */
export const outcomeTable: Effect.Effect<void, SqlError, SqlClient> = Effect.flatMap(SqlClient, (sql) =>
  sql.withTransaction(Effect.forEach(createCommands, (text) => sql.unsafe(text), { discard: true }))
)
