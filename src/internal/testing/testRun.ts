/**
 * A run: the use of one open database by tests. It has sessions of its own on the server of that
 * database, and creates and drops other databases there. At its end it drops all that are left.
 *
 * The sessions hold an advisory lock. A database whose run holds no lock any more was left by a
 * process that was killed, and the next run drops it.
 */
import type * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as Exit from "effect/Exit"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import type { Database } from "../../Database.js"
import type { DatabaseConfig } from "../../DatabaseConfig.js"
import { ConfigInvalid, type DatabaseError, refine, type StartupError } from "../../DatabaseError.js"
import { type Choose, Router } from "../../Router.js"
import { isInUse, isSystemRefusal } from "../../SqlState.js"
import type { NamedClass } from "../client/databaseNames.js"
import { openConfigured } from "../client/openDatabase.js"
import { sessionModeRequired } from "../client/sessionModeRequired.js"
import { withRealClock } from "../embedded/realClock.js"
import { makeListen } from "../listen/streams.js"
import { quoteIdentifier } from "../sql/quote.js"
import { adminSettings, withDatabase } from "./adminSettings.js"
import { isKept, type Mark, markSql, RunNames } from "./databaseNames.js"
import { makeDrop } from "./dropDatabase.js"
import { sweep } from "./leftOvers.js"
import { awaitReplicas, openReplicas } from "./replicas.js"

/** Requirements of the opening of a database. */
type Opening = Reactivity.Reactivity | Scope.Scope

/** Settings of an open database, which those of a run are made of. */
export interface Source {
  readonly config: DatabaseConfig
  readonly owner: NamedClass
  readonly choose: Choose
}

export interface TestRun {
  readonly source: Source
  /** The scope of the run, which ends before the database in the context is closed. */
  readonly scope: Scope.Scope
  /** The name of the user on the server. */
  readonly user: string
  /** The version of the server, such as 160004. */
  readonly version: number
  readonly names: RunNames
  /** Runs a statement of the user on the primary, outside of all transactions. */
  readonly query: <Row extends object>(text: string) => Effect.Effect<ReadonlyArray<Row>, DatabaseError>
  /** Runs an effect while a session holds an advisory lock; one effect of the run at a time. */
  readonly locked: <A, E, R>(key: string, self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | DatabaseError, R>
  /**
   * Creates a database as a copy of a template, or of `template1`, and waits until the replicas have
   * it. If it fails or is interrupted, the database may exist.
   */
  readonly create: (name: string, template?: string) => Effect.Effect<void, DatabaseError>
  /** Drops a database with its connections, if it exists. The end of the run repeats what fails. */
  readonly drop: (name: string) => Effect.Effect<void>
  readonly mark: (name: string, mark: Mark) => Effect.Effect<void, DatabaseError>
  /** Opens one of the databases of the run, with the settings and the name of the source. */
  readonly open: (database: string) => Effect.Effect<Database, StartupError, Opening>
}

/** Runs an effect outside of all transactions and schema scopes, and without spans. */
const apart = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.mapInputContext(
    Effect.withTracerEnabled(self, false),
    // the cast: the slot is not a part of R
    (context: Context.Context<R>) => Context.omit(SqlClient.TransactionConnection)(context) as Context.Context<R>
  )

/** The server waits for 5 seconds before it refuses, so this is a minute at most. */
const untilUnused = Schedule.intersect(Schedule.spaced("200 millis"), Schedule.recurs(10))

const stateOf = (error: DatabaseError): string => (error._tag === "QueryFailed" ? (error.sqlState ?? "") : "")

/** Facts of a server and its user. */
interface Facts {
  readonly version: number
  readonly durable: boolean
  readonly user: string
  readonly creates: boolean
}

const facts = `SELECT current_setting('server_version_num')::int AS version, current_setting('fsync') = 'on' AS durable,
  current_user::text AS "user", rolsuper OR rolcreatedb AS creates FROM pg_roles WHERE rolname = current_user`

/**
 * Returns the ways of copying a database, the fastest first. A copy of the files makes two
 * checkpoints, which are expensive on a server that waits for its disk; the other way writes all
 * pages to the log.
 */
const strategiesOf = ({ durable, version }: Facts): ReadonlyArray<string> => {
  // earlier versions copy the files, and do not have the option
  if (version < 150_000) return [""]
  return durable ? [" STRATEGY wal_log"] : [" STRATEGY file_copy", " STRATEGY wal_log"]
}

const lacksPrivilege = (database: string, user: string): ConfigInvalid =>
  new ConfigInvalid({
    database,
    setting: "writer",
    given: `a server on which the user ${JSON.stringify(user)} lacks the privilege CREATEDB`,
    expected: `a user with it, because each test has a database of its own: ALTER ROLE ${quoteIdentifier(user)} CREATEDB`
  })

/** Begins a run, which ends with the scope. */
export const openRun = (source: Source): Effect.Effect<TestRun, DatabaseError, Opening> =>
  Effect.gen(function* () {
    const { choose, config, owner } = source
    if (config.session.mode === "transactionPooler") {
      return yield* sessionModeRequired(config.name, "the databases of tests, whose locks belong to a session")
    }
    const names = new RunNames()
    const scope = yield* Effect.scope
    const admin = adminSettings(config, names.lockKey)
    const { writer } = yield* openConfigured(owner, admin, makeListen)
    const query = <Row extends object>(text: string) => apart(refine(writer.unsafe<Row>(text)))

    const [known] = yield* query<Facts>(facts)
    if (known === undefined || !known.creates) return yield* lacksPrivilege(config.name, known?.user ?? "")
    const replicas = yield* openReplicas(owner, config)
    let strategies = strategiesOf(known)
    // the effect needs sessions beside that of its lock, so the locks never take all of the pool
    const oneLock = Effect.unsafeMakeSemaphore(1)

    const copy = (name: string, template: string | undefined): Effect.Effect<void, DatabaseError> =>
      Effect.suspend(() => {
        const [strategy = "", next] = strategies
        const from = template === undefined ? "" : ` TEMPLATE ${quoteIdentifier(template)}`
        return query(`CREATE DATABASE ${quoteIdentifier(name)}${from}${strategy}`).pipe(
          // the server may finish a statement that is cancelled, after the database was dropped
          Effect.uninterruptible,
          Effect.asVoid,
          Effect.catchIf(
            (error) => next !== undefined && isSystemRefusal(stateOf(error)),
            () => {
              strategies = strategies.filter((other) => other !== strategy)
              return copy(name, template)
            }
          )
        )
      })

    const dropNow = yield* makeDrop(owner, admin, query)
    const drop = (name: string) => Effect.ignore(apart(dropNow(name)))

    const left = `SELECT d.datname AS name FROM pg_database d WHERE d.datname LIKE '${names.pattern}' AND NOT ${isKept}`
    yield* Effect.addFinalizer(() =>
      query<{ readonly name: string }>(left).pipe(
        Effect.flatMap((rows) => Effect.forEach(rows, ({ name }) => drop(name), { concurrency: 2, discard: true })),
        // a server that does not answer now is swept by the next run
        Effect.ignore,
        withRealClock
      )
    )

    const run: TestRun = {
      source,
      scope,
      user: known.user,
      version: known.version,
      names,
      query,
      locked: (key, self) =>
        Effect.scoped(
          Effect.gen(function* () {
            const session = yield* refine(writer.reserve)
            const execute = (text: string) => refine(session.executeUnprepared(text, [], undefined))
            yield* execute("BEGIN")
            yield* Effect.addFinalizer(() => Effect.ignore(execute("ROLLBACK")))
            yield* execute(`SELECT pg_advisory_xact_lock(${key})`)
            return yield* self
          })
        ).pipe(oneLock.withPermits(1)),
      create: (name, template) =>
        copy(name, template).pipe(
          Effect.retry({ schedule: untilUnused, while: (error) => isInUse(stateOf(error)) }),
          Effect.zipRight(apart(awaitReplicas(config, replicas, name))),
          withRealClock
        ),
      drop,
      mark: (name, mark) => Effect.asVoid(query(markSql(name, mark))),
      open: (database) =>
        Effect.provideService(openConfigured(owner, withDatabase(config, database), makeListen), Router, choose)
    }
    yield* sweep(run)
    return run
  })

/** The runs of open databases. The databases of a run, and their sandboxes, belong to it as well. */
const runs = new WeakMap<object, { readonly lock: Effect.Semaphore; run: TestRun | undefined }>()

/** Makes an opened database a part of a run. */
export const joinRun = (database: Database, run: TestRun): void => {
  runs.set(database.executor.topology, { lock: Effect.unsafeMakeSemaphore(1), run })
}

/** Returns the run of an open database. The first call begins it, and it ends before the database is closed. */
export const runOf = (database: Database): Effect.Effect<TestRun, DatabaseError, Reactivity.Reactivity> =>
  Effect.suspend(() => {
    const { executor, owner, scope } = database
    const known = runs.get(executor.topology) ?? { lock: Effect.unsafeMakeSemaphore(1), run: undefined }
    runs.set(executor.topology, known)
    if (known.run !== undefined) return Effect.succeed(known.run)
    const begin = Effect.uninterruptibleMask((restore) =>
      Effect.gen(function* () {
        const own = yield* Scope.fork(scope, ExecutionStrategy.sequential)
        const opening = openRun({ config: executor.config, owner, choose: executor.choose })
        known.run = yield* restore(Scope.extend(apart(opening), own)).pipe(
          Effect.onError((cause) => Scope.close(own, Exit.failCause(cause)))
        )
        return known.run
      })
    )
    return known.lock.withPermits(1)(
      Effect.suspend(() => (known.run === undefined ? begin : Effect.succeed(known.run)))
    )
  })
