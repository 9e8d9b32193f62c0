/** Tests of code with promises, by plain vitest: in a sandbox, and with real commits. With `node:test` they are the same. */
import { Layer } from "effect"
import { DatabaseRuntime, TestDatabase } from "effect-db"
import { afterAll, expect, test } from "vitest"
import { Audit, DatabasesLive, Db } from "./databases.js"

// the application: its functions know nothing of tests, and commit by themselves
const runtime = DatabaseRuntime.make({ db: Db, audit: Audit }, DatabasesLive, { lazy: true })
const { audit, db } = runtime.databases

const add = (title: string) =>
  runtime.unitOfWork(async () => {
    await db.writer`INSERT INTO todo (title) VALUES (${title})`
    await audit.writer`INSERT INTO event (what, subject) VALUES ('todo.added', ${title})`
  })

const titles = async () => {
  const rows = await db.reader`SELECT title FROM todo ORDER BY id`
  return rows.map((row) => row.title)
}

const timeout = 60_000
afterAll(() => runtime.close(), timeout)

/** Runs a test in a transaction of each database, which is always rolled back: the commits of the application are savepoints. */
const sandboxed = (code: () => Promise<void>) => () =>
  TestDatabase.runPromise(runtime, Layer.merge(TestDatabase.layer(Db), TestDatabase.layer(Audit)), code)

/** Runs a test with real commits, and empties the tables after it. Such tests take turns. */
const committed = (code: () => Promise<void>) => async () => {
  try {
    await code()
  } finally {
    await db.writer`TRUNCATE todo RESTART IDENTITY`
    await audit.writer`TRUNCATE event`
  }
}

for (const [way, run] of Object.entries({ sandboxed, committed })) {
  test(
    `todos are stored in their order, ${way}`,
    run(async () => {
      await add("milk")
      await add("eggs")
      expect(await titles()).toEqual(["milk", "eggs"])
    }),
    timeout
  )
}

// the database refuses a subject of events at COMMIT, which a sandbox does not show
test(
  "an event is stored once",
  committed(async () => {
    await audit.writer`INSERT INTO event (what, subject) VALUES ('imported', 'milk')`
    await expect(add("milk")).rejects.toMatchObject({ _tag: "CommitFailed" })
  }),
  timeout
)
