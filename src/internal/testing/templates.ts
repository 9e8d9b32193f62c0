/**
 * The templates of a run: databases that are migrated once, and then copied.
 *
 * A template with a hash serves all runs of all processes. It is created under a name of the run,
 * and gets its own name when it is complete: there is never half a template, and if two processes
 * create one at the same time, one of the names is refused. The advisory lock only saves the second
 * migration. A template without a hash belongs to its run.
 */

import type * as Reactivity from "@effect/experimental/Reactivity"
import type { SqlError } from "@effect/sql/SqlError"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"
import type { Database } from "../../Database.js"
import { ConfigInvalid, type DatabaseError, refine } from "../../DatabaseError.js"
import { isDuplicateDatabase } from "../../SqlState.js"
import { withRealClock } from "../embedded/realClock.js"
import { quoteIdentifier } from "../sql/quote.js"
import { templateLock, templateName } from "./databaseNames.js"
import type { TestRun } from "./testRun.js"

/** Work that makes a template. The types are those of `TestDatabase.layerTemplate`. */
export interface TemplateWork<E, R> {
  readonly migrate: Effect.Effect<unknown, E, R>
  readonly seed: Effect.Effect<unknown, E, R> | undefined
  readonly hash: string | Effect.Effect<string, E, R> | undefined
}

/** Failures of such work, and of the database. */
export type TemplateFailure<E> = Exclude<E, SqlError> | DatabaseError

/** Requirements of such work, without the database that it runs with. */
export type TemplateNeeds<R, Self> = Exclude<Exclude<R, Self>, Scope.Scope>

/** Template of a run. */
interface Entry {
  readonly migrate: unknown
  readonly seed: unknown
  readonly hash: unknown
  readonly lock: Effect.Semaphore
  /** The name of the database, when it is ready. */
  name: string | undefined
}

/** The templates of each run, in the order of their first use. */
const entries = new WeakMap<TestRun, Array<Entry>>()

/** Returns the entry of some work. The same effects are the same work. */
const entryOf = (run: TestRun, { hash, migrate, seed }: TemplateWork<unknown, unknown>): Entry => {
  const known = entries.get(run) ?? []
  entries.set(run, known)
  const found = known.find((entry) =>
    typeof hash === "string"
      ? entry.hash === hash
      : entry.migrate === migrate && entry.seed === seed && entry.hash === hash
  )
  if (found !== undefined) return found
  const entry: Entry = { migrate, seed, hash, lock: Effect.unsafeMakeSemaphore(1), name: undefined }
  known.push(entry)
  return entry
}

/**
 * Checks that a connection leads to the database whose name it was opened with. A stream that the
 * program opens may lead to one database always, and the migration would change that one.
 */
const verify = (run: TestRun, { writer }: Database, name: string): Effect.Effect<void, DatabaseError> =>
  Effect.flatMap(refine(writer<{ name: string }>`SELECT current_database()::text AS name`), ([row]) =>
    row?.name === name
      ? Effect.void
      : new ConfigInvalid({
          database: run.source.config.name,
          setting: "writer",
          given: `a server whose connections all lead to the database ${JSON.stringify(row?.name)}`,
          expected:
            "a server on which each test has a database of its own; for a server with one database, such as a PGlite, " +
            "use TestDatabase.layer over it"
        })
  )

/** Creates a database under a name of the run and migrates it. If that fails, it is dropped. */
const build = <Self, E, R>(
  run: TestRun,
  tag: Context.Tag<Self, Database>,
  { migrate, seed = Effect.void }: TemplateWork<E, R>
) => {
  const name = run.names.next()
  const work = Effect.zipRight(refine(migrate), refine(seed))
  return run.create(name).pipe(
    Effect.zipRight(
      Effect.scoped(
        Effect.flatMap(run.open(name), (database) =>
          Effect.zipRight(verify(run, database, name), Effect.provideService(work, tag, database))
        )
      )
    ),
    // the first session after a migration stores what the server knows of the tables in a file, which
    // a copy of the files has, too, so that the first session of each copy starts faster
    Effect.zipRight(Effect.scoped(Effect.flatMap(run.open(name), ({ writer }) => refine(writer`SELECT 1`)))),
    // a session would prevent copies
    Effect.zipRight(run.query(`ALTER DATABASE ${quoteIdentifier(name)} ALLOW_CONNECTIONS false`)),
    Effect.zipRight(
      // PostgreSQL 13 does not wait here, but a copy and a new name wait for the end of the sessions as well
      run.query(`SELECT pg_terminate_backend(pid${run.version < 140_000 ? "" : ", 5000"}) FROM pg_stat_activity
        WHERE datname = '${name}' AND backend_type = 'client backend'`)
    ),
    Effect.as(name),
    Effect.onExit((exit) => (Exit.isSuccess(exit) ? Effect.void : run.drop(name)))
  )
}

const exists = (run: TestRun, name: string) =>
  Effect.map(run.query(`SELECT 1 FROM pg_database WHERE datname = '${name}'`), (rows) => rows.length > 0)

/** Gives a template its own name. Another process may have been faster. */
const publish = (run: TestRun, built: string, name: string) =>
  run.mark(built, "used").pipe(
    Effect.zipRight(run.query(`ALTER DATABASE ${quoteIdentifier(built)} RENAME TO ${quoteIdentifier(name)}`)),
    Effect.catchIf(
      (error) => error._tag === "QueryFailed" && isDuplicateDatabase(error.sqlState ?? ""),
      () => run.drop(built)
    ),
    Effect.onExit((exit) => (Exit.isSuccess(exit) ? Effect.void : run.drop(built)))
  )

/** Finds or creates the template with a hash. */
const shared = <Self, E, R>(run: TestRun, tag: Context.Tag<Self, Database>, work: TemplateWork<E, R>, hash: string) => {
  const { name: database, writer } = run.source.config
  const name = templateName("1", run.user, writer.database, database, hash)
  const create = Effect.flatMap(exists(run, name), (isThere) =>
    isThere ? Effect.void : Effect.flatMap(build(run, tag, work), (built) => publish(run, built, name))
  )
  return Effect.flatMap(exists(run, name), (isThere) =>
    isThere
      ? // two processes may mark it at the same time, and one of them is refused
        Effect.ignore(run.mark(name, "used"))
      : run.locked(templateLock(name), create)
  ).pipe(Effect.as(name))
}

/** Returns the name of the template for some work, and creates it if it does not exist. */
export const templateOf = <Self, E, R>(
  run: TestRun,
  tag: Context.Tag<Self, Database>,
  live: Database,
  work: TemplateWork<E, R>
): Effect.Effect<string, TemplateFailure<E>, TemplateNeeds<R, Self> | Reactivity.Reactivity> =>
  Effect.suspend(() => {
    const entry = entryOf(run, work)
    const { hash } = work
    const create = Effect.suspend(() => {
      if (hash === undefined) return build(run, tag, work)
      if (typeof hash === "string") return shared(run, tag, work, hash)
      // effects with the same text are the same template, which is built once
      return Effect.flatMap(Effect.scoped(Effect.provideService(refine(hash), tag, live)), (text) =>
        templateOf(run, tag, live, { ...work, hash: text })
      )
    }).pipe(
      Effect.tap((name) =>
        Effect.sync(() => {
          entry.name = name
        })
      ),
      withRealClock
    )
    if (entry.name !== undefined) return Effect.succeed(entry.name)
    return entry.lock.withPermits(1)(
      Effect.suspend(() => (entry.name === undefined ? create : Effect.succeed(entry.name)))
    )
  })

/** Forgets the name of a template that was dropped on the server. */
export const forget = (run: TestRun, name: string): void => {
  for (const entry of entries.get(run) ?? []) if (entry.name === name) entry.name = undefined
}
