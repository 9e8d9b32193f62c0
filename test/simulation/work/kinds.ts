/**
 * The kinds of calls: statements, transactions, units of work and reads with a required consistency.
 */
import * as Effect from "effect/Effect"
import { Consistency, UnitOfWork } from "effect-db"
import { calls } from "../postgres/commands.js"
import { type Attempt, type Call, Planned } from "./call.js"
import { type DatabaseName, type Databases, databases } from "./databases.js"
import type { Operation } from "./ledger.js"

type Work = Effect.Effect<unknown, unknown, Databases>

/** Knowledge that the calls have of the clusters. */
export interface Knowledge {
  /** Returns the number of failovers of a database so far. */
  readonly failovers: (database: string) => number
}

/** The number of counters, which transactions lock. */
const counters = 3

const databaseOf = ({ random }: Call): DatabaseName => (random.chance(0.7) ? "app" : "audit")

const mark = (call: Call): Work =>
  call.statement(databaseOf(call), call.random.chance(0.5) ? "reader" : "writer", calls.mark, [])

const sleep = (call: Call): Work =>
  call.statement(databaseOf(call), call.random.chance(0.5) ? "reader" : "writer", calls.sleep, [
    call.random.exponential(0.8)
  ])

const step = (call: Call, database: DatabaseName): Work =>
  Effect.suspend(() => {
    const id = call.random.whole(1, counters)
    return call.statement(database, "writer", calls.step, [id, `c${call.id}`])
  })

/** A nested transaction whose write is undone. */
const undone = (call: Call, database: DatabaseName, attempt: Attempt): Work =>
  Effect.suspend(() => {
    const nested: Attempt = { ...attempt, operations: [] }
    return databases[database]
      .withTransaction(Effect.zipRight(call.insert(database, nested), Effect.fail(new Planned())))
      .pipe(
        Effect.catchIf(
          (error) => error instanceof Planned,
          () => Effect.void
        ),
        Effect.onExit(() =>
          Effect.sync(() => {
            for (const operation of nested.operations) call.ledger.settle(operation, "absent")
          })
        )
      )
  })

/** The statements of a transaction; a failure on purpose ends some. */
const body = (call: Call, database: DatabaseName, attempt: Attempt): Work =>
  Effect.gen(function* () {
    const { random } = call
    for (let left = random.whole(1, 3); left > 0; left--) {
      yield* call.insert(database, attempt)
      if (random.chance(0.15)) yield* undone(call, database, attempt)
      if (random.chance(0.1)) yield* call.statement(database, "writer", calls.mark, [])
      if (random.chance(0.15)) yield* Effect.sleep(random.exponential(100))
    }
    if (random.chance(0.4)) yield* step(call, database)
    if (random.chance(0.3)) yield* step(call, database)
    if (random.chance(0.03)) yield* call.statement(database, "writer", calls.fail, [])
    if (random.chance(0.08)) yield* Effect.fail(new Planned())
  })

const transaction = (call: Call): Work => {
  const { random } = call
  const database = databaseOf(call)
  const attempted = Effect.suspend(() => {
    const attempt = call.beginAttempt(database)
    return Effect.zipRight(call.hook(attempt), body(call, database, attempt))
  })
  const retry = random.chance(0.6)
  return databases[database].withTransaction(
    attempted,
    random.pick([
      { retry },
      { retry },
      { retry, isolation: "serializable" },
      { retry, isolation: "repeatable read" },
      { retry, statementTimeout: 800 }
    ])
  )
}

/** A unit of work over one or two databases. */
const unit = (call: Call): Work => {
  const { random } = call
  const attempted = Effect.suspend(() => {
    const attempt = call.beginAttempt("app")
    const hooked = Effect.zipRight(call.hook(attempt), body(call, "app", attempt))
    return random.chance(0.7) ? Effect.zipRight(hooked, Effect.asVoid(call.insert("audit", attempt))) : hooked
  })
  return UnitOfWork.run(attempted, { retry: random.chance(0.5), checkFirst: random.chance(0.5) })
}

const count = (call: Call, { database, id }: Operation): Effect.Effect<number, unknown, Databases> =>
  Effect.map(call.statement(database as DatabaseName, "reader", calls.count, [id]), ({ n }) => Number(n))

/** Checks the number of rows of a write, unless a failover may have lost it. */
const verify = (call: Call, knowledge: Knowledge, operation: Operation, n: number): void => {
  if (n > 1) call.violated("exactly once", `${operation.id} is read ${n} times`)
  const isSameHistory = knowledge.failovers(operation.database) === operation.failovers && !operation.isAtRisk
  if (n === 0 && isSameHistory) {
    call.violated("consistency", `${operation.id} is stored, and the read does not see it`)
  }
}

/** Writes in a causal session, and reads the write. */
const session = (call: Call, knowledge: Knowledge): Work =>
  Effect.suspend(() => {
    const database = databaseOf(call)
    const within = Consistency.withSession(Consistency.makeSession({ maxWait: call.random.pick([0, 50, 1000]) }))
    return within(
      Effect.gen(function* () {
        const operation = yield* call.insert(database)
        for (let reads = call.random.whole(1, 3); reads > 0; reads--) {
          const n = yield* count(call, operation)
          verify(call, knowledge, operation, n)
        }
      })
    )
  })

/** Reads a write of another call with strong consistency. */
const strong = (call: Call, knowledge: Knowledge): Work =>
  Effect.suspend(() => {
    const { recent } = call.ledger
    const operation = recent[call.random.whole(0, Math.max(0, recent.length - 1))]
    if (operation === undefined) return mark(call)
    const database = databases[operation.database as DatabaseName]
    return database.withConsistency(
      Effect.map(count(call, operation), (n) => verify(call, knowledge, operation, n)),
      Consistency.Strong()
    )
  })

/** Returns the work of a call. */
export const workOf = (call: Call, knowledge: Knowledge): readonly [kind: string, work: Work] => {
  const kind = call.random.weighted([
    ["mark", 3],
    ["insert", 3],
    ["transaction", 5],
    ["unit", 3],
    ["session", 2],
    ["strong", 2],
    ["sleep", 1]
  ])
  switch (kind) {
    case "insert":
      return [kind, Effect.suspend(() => call.insert(databaseOf(call)))]
    case "transaction":
      return [kind, transaction(call)]
    case "unit":
      return [kind, unit(call)]
    case "session":
      return [kind, session(call, knowledge)]
    case "strong":
      return [kind, strong(call, knowledge)]
    case "sleep":
      return [kind, sleep(call)]
    default:
      return [kind, mark(call)]
  }
}
