/**
 * The databases that were left on a server: by runs whose process was killed, templates that are no
 * longer used, and databases of failed tests, which are kept for a while.
 */
import * as Effect from "effect/Effect"
import { withRealClock } from "../embedded/realClock.js"
import { isKept, isOfRun, isTemplate, markedAt, runOfName } from "./databaseNames.js"
import type { TestRun } from "./testRun.js"

/** The time for which a database of a failed test is kept. */
const keptFor = "1 day"

/** The time after which a template that no run has used is dropped. */
const templateAge = "7 days"

/** The pause before a left database is dropped. */
const grace = "1 second"

// `pg_locks` has the locks in all databases, so runs in different databases see each other. A run
// takes its lock before it creates a database, and the list of databases is read before that of the
// locks, so a new database is never taken for a left one.
const leftOvers = `
SELECT d.datname AS name
FROM pg_database d
WHERE pg_has_role(d.datdba, 'USAGE') AND (
  ${isOfRun} AND CASE WHEN ${isKept} THEN ${markedAt} < now() - interval '${keptFor}' ELSE ${runOfName} NOT IN (
    SELECT lpad(to_hex(classid::bigint), 8, '0') || lpad(to_hex(objid::bigint), 8, '0') FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1) END
  OR ${isTemplate} AND coalesce(${markedAt} < now() - interval '${templateAge}', true))`

/**
 * Drops what earlier runs have left. A database is dropped only if its run holds no lock, now and after
 * a while: a run that has lost all its connections, as in a restart of the server, takes the lock again.
 *
 * Failures are ignored, because another run may drop the same databases.
 */
export const sweep = (run: TestRun): Effect.Effect<void> => {
  const find = Effect.map(
    run.query<{ readonly name: string }>(leftOvers),
    (rows) => new Set(rows.map(({ name }) => name))
  )
  const later = (found: ReadonlySet<string>) =>
    Effect.sleep(grace).pipe(
      Effect.zipRight(find),
      Effect.flatMap((still) =>
        Effect.forEach(
          [...still].filter((name) => found.has(name)),
          run.drop,
          { concurrency: 2, discard: true }
        )
      ),
      Effect.ignore,
      withRealClock,
      // the end of the run waits for it, so that a short run sweeps, too
      Effect.uninterruptible
    )
  return find.pipe(
    Effect.tap((found) => Effect.when(Effect.forkIn(later(found), run.scope), () => found.size > 0)),
    Effect.ignore
  )
}
