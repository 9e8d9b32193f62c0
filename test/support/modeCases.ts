/**
 * Programs over three databases, whose results must be the same in every mode of a test database. Each
 * is a kind of work, a way to run it, an end, and a number of databases.
 */
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import { Database, DatabaseError, UnitOfWork } from "effect-db"

export class One extends Database.Service<One>()("one") {}
export class Two extends Database.Service<Two>()("two") {}
export class Three extends Database.Service<Three>()("three") {}

export type All = One | Two | Three

/** One of the databases. */
interface Member
  extends Pick<
    Database.Members<All>,
    "writer" | "reader" | "withTransaction" | "listen" | "notify" | "afterCommit" | "afterRollback"
  > {
  readonly databaseName: string
}

export const databases: ReadonlyArray<Member> = [One, Two, Three]

/** Creates the tables of a database. */
export const migrate = (database: Member): Effect.Effect<unknown, unknown, All> =>
  Effect.flatMap(
    database.writer,
    (sql) => sql`CREATE TABLE item (name text PRIMARY KEY, n int NOT NULL DEFAULT 0 CHECK (n >= 0));
      CREATE TABLE tag (item text CONSTRAINT of_item REFERENCES item DEFERRABLE INITIALLY DEFERRED, word text)`
  )

type Sql = Effect.Effect.Success<Member["writer"]>

/**
 * Work on a database. The names of its rows begin with a key: sandboxes that run at the same time wait
 * for each other if they write equal keys.
 */
type Work = (database: Member, key: string) => Effect.Effect<unknown, unknown, All>

/** Work by statements of the writer. */
const by =
  (statement: (sql: Sql, key: string) => Effect.Effect<unknown, unknown>): Work =>
  (database, key) =>
    Effect.flatMap(database.writer, (sql) => statement(sql, key))

/** Inserts the row that all cases find. */
const seed = by((sql, key) => sql`INSERT INTO item VALUES (${`${key}seed`}, 1)`)

const insert = by((sql, key) => sql`INSERT INTO item VALUES (${`${key}new`}, 2) RETURNING n`)

const works: Readonly<Record<string, Work>> = {
  insert,
  update: by((sql, key) => sql`UPDATE item SET n = n + 1 WHERE name = ${`${key}seed`} RETURNING n`),
  "delete and insert": by((sql, key) =>
    Effect.zipRight(
      sql`DELETE FROM item WHERE name = ${`${key}seed`}`,
      sql`INSERT INTO item VALUES (${`${key}seed`}, 7), (${`${key}other`}, 8)`
    )
  ),
  duplicate: by((sql, key) => sql`INSERT INTO item VALUES (${`${key}seed`})`),
  "missing parent": by((sql, key) => sql`INSERT INTO tag VALUES (${`${key}later`}, 'a')`),
  "late parent": by((sql, key) =>
    Effect.zipRight(
      sql`INSERT INTO tag VALUES (${`${key}later`}, 'b')`,
      sql`INSERT INTO item VALUES (${`${key}later`})`
    )
  ),
  "ignored failure": by((sql, key) =>
    Effect.zipRight(
      Effect.ignore(sql`INSERT INTO item VALUES (${`${key}bad`}, -1)`),
      sql`INSERT INTO item VALUES (${`${key}good`})`
    )
  ),
  "failure in a savepoint": (database, key) =>
    Effect.zipRight(
      Effect.ignore(
        database.withTransaction(by((sql) => sql`INSERT INTO item VALUES (${`${key}bad`}, NULL)`)(database, key))
      ),
      insert(database, key)
    ),
  stream: by((sql, key) =>
    Stream.runCollect(sql`INSERT INTO item SELECT ${key} || n FROM generate_series(1, 9) n RETURNING n`.stream)
  ),
  "local setting": by((sql) =>
    Effect.zipRight(sql`SET LOCAL lock_timeout = '9s'`, sql`SELECT current_setting('lock_timeout')`)
  ),
  notification: (database, key) => Effect.zipRight(database.notify(`modes${key}`, "sent"), insert(database, key)),
  copy: by((sql, key) => sql.copyFrom("item", ["name", "n"], Stream.make([`${key}copied`, 3])))
}

/** Runs the work of several databases. */
type Way = (
  work: ReadonlyArray<readonly [Member, Effect.Effect<unknown, unknown, All>]>,
  end: End
) => Effect.Effect<unknown, unknown, All>

type End = Effect.Effect<unknown, string>

const inOrder = (work: Parameters<Way>[0]) => Effect.forEach(work, ([, effect]) => effect)

const ways: Readonly<Record<string, Way>> = {
  autocommit: (work, end) => Effect.zipRight(inOrder(work), end),
  transaction: (work, end) =>
    work.reduceRight<Effect.Effect<unknown, unknown, All>>(
      (inner, [database, effect]) => database.withTransaction(Effect.zipRight(effect, inner)),
      end
    ),
  unit: (work, end) => UnitOfWork.run(Effect.zipRight(inOrder(work), end)),
  "nested unit": (work, end) =>
    UnitOfWork.run(
      Effect.flatMap(Effect.either(UnitOfWork.nested(Effect.zipRight(inOrder(work), end))), (either) =>
        Effect.as(One.notify("after", ""), either._tag)
      )
    )
}

const ends: Readonly<Record<string, End>> = {
  success: Effect.succeed("done"),
  failure: Effect.fail("no"),
  defect: Effect.die("broken"),
  interruption: Effect.interrupt
}

/** A case, and its name. */
export interface ModeCase {
  readonly name: string
  /** Runs the case; returns all that it has left behind. */
  readonly run: Effect.Effect<unknown, unknown, All>
}

const shown = (exit: Exit.Exit<unknown, unknown>): unknown => {
  if (exit._tag === "Success") return JSON.parse(JSON.stringify(exit.value ?? null))
  const { cause } = exit
  const failures = [...Cause.failures(cause)].map((failure) => {
    return typeof failure === "string" ? failure : DatabaseError.fromUnknown(failure)._tag
  })
  return { failures, defects: [...Cause.defects(cause)].map(String), isInterrupted: Cause.isInterrupted(cause) }
}

/** Reads what is stored in a database, and a setting after the work. */
const state = (database: Member, key: string) =>
  Effect.flatMap(database.reader, (sql) =>
    Effect.all([
      sql`SELECT name, n FROM item WHERE name LIKE ${`${key}%`} ORDER BY name`,
      sql`SELECT item, word FROM tag WHERE item LIKE ${`${key}%`} ORDER BY item`,
      sql`SELECT current_setting('lock_timeout') AS limit`
    ])
  )

/** Runs an effect, and returns its result with the notifications that have arrived meanwhile. */
const withMessages = <A, E>(database: Member, channel: string, self: Effect.Effect<A, E, All>) =>
  Effect.gen(function* () {
    const ready = yield* Deferred.make<void>()
    const fiber = yield* database.listen(channel).pipe(
      Stream.tap(({ _tag }) => (_tag === "Listening" ? Deferred.succeed(ready, undefined) : Effect.void)),
      Stream.filterMap((notification) =>
        notification._tag === "Message" ? Option.some(notification.payload) : Option.none()
      ),
      Stream.takeUntil((payload) => payload === "last"),
      Stream.runCollect,
      Effect.fork
    )
    yield* Deferred.await(ready)
    const result = yield* self
    yield* database.notify(channel, "last")
    return [result, [...(yield* Fiber.join(fiber))]]
  })

const makeCase = (
  kind: string,
  work: Work,
  way: string,
  runWay: Way,
  end: string,
  ended: End,
  count: number,
  key: string
): ModeCase => {
  const used = databases.slice(0, count)
  const log: Array<string> = []
  const hooked = (database: Member) =>
    Effect.zipRight(
      Effect.all([
        database.afterCommit(Effect.sync(() => log.push(`${database.databaseName} committed`))),
        database.afterRollback(Effect.sync(() => log.push(`${database.databaseName} rolled back`)))
      ]),
      work(database, key)
    )
  const body = Effect.map(
    Effect.exit(
      runWay(
        used.map((database) => [database, hooked(database)] as const),
        ended
      )
    ),
    shown
  )
  const run = Effect.gen(function* () {
    yield* Effect.forEach(databases, (database) => seed(database, key), { discard: true })
    const result = yield* kind === "notification" ? withMessages(One, `modes${key}`, body) : body
    return { result, log, states: yield* Effect.forEach(databases, (database) => state(database, key)) }
  })
  return { name: `${kind}, ${way}, ${end}, ${count} databases`, run }
}

let count = 0

/** All cases. */
export const modeCases: ReadonlyArray<ModeCase> = Object.entries(works).flatMap(([kind, work]) =>
  Object.entries(ways).flatMap(([way, runWay]) =>
    Object.entries(ends).flatMap(([end, ended]) =>
      [1, 2, 3].map((used) => makeCase(kind, work, way, runWay, end, ended, used, `${++count}:`))
    )
  )
)
