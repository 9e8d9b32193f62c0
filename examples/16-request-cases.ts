/** Prints a table of requests with the rows that each stores and its response. */
import { HttpApp, HttpServerResponse } from "@effect/platform"
import { Console, Effect, Fiber, Logger, LogLevel } from "effect"
import { RequestTransaction, UnitOfWork } from "effect-db"
import { Audit, DatabasesLive, Db } from "./databases.js"
import { runMain } from "./main.js"
import * as Todos from "./todos.js"

type Step<A> = Effect.Effect<A, unknown, Db | Audit>

let n = 0
const add = Effect.suspend(() => Todos.add({ title: `todo ${n++}`, done: false }))
const addAndFail = Effect.zipRight(add, Effect.fail("undone"))
const event = Effect.flatMap(Audit.writer, (log) => log`INSERT INTO event VALUES ('added', 'the same')`)
const answer = (status: number) => HttpServerResponse.empty({ status })

/** The cases by name: the steps of a handler in their order, and its last step, which returns the response. */
const cases: Record<string, readonly [Step<unknown>[], Step<HttpServerResponse.HttpServerResponse>]> = {
  "an insert": [[add], answer(200)],
  "a redirection": [[add], answer(304)],
  "the handler says 500": [[add], answer(500)],
  "the handler throws": [[add], Effect.die("thrown")],
  "early commit, then more": [[add, Db.commit, add], answer(500)],
  "early rollback": [[add, Db.rollback], answer(200)],
  "independent work": [[add, Db.independent(add)], answer(500)],
  "nested, one of two undone": [
    [add, Db.withTransaction(add), Effect.option(Db.withTransaction(addAndFail))],
    answer(200)
  ],
  "five tasks at once": [[Effect.all([add, add, add, add, add], { concurrency: 5 })], answer(200)],
  "the second COMMIT refused": [[add, event, event], answer(200)],
  "a task of its own": [[add, Effect.flatMap(Effect.forkDaemon(UnitOfWork.outside(add)), Fiber.join)], answer(500)],
  // a server interrupts a request if its client has disconnected
  "the request is interrupted": [[add], Effect.interrupt]
}

const program = Effect.gen(function* () {
  const sql = yield* Db.writer
  const handle = HttpApp.toWebHandlerRuntime(yield* Effect.runtime<Db | Audit>())
  yield* Console.log(`${"case".padEnd(28)}ended  stored  the client saw`)
  for (const [name, [steps, end]] of Object.entries(cases)) {
    yield* sql`TRUNCATE todo`
    let ended = "failed"
    const handler = Effect.zipRight(Effect.all(steps), end).pipe(
      Effect.tap(({ status }) => {
        ended = String(status)
      })
    )
    const { status } = yield* Effect.promise(() =>
      handle(RequestTransaction.middleware()(handler))(new Request("http://localhost/"))
    )
    const [row] = yield* sql<{ stored: number }>`SELECT count(*)::int AS stored FROM todo`
    yield* Console.log(`${name.padEnd(28)}${ended.padEnd(7)}${String(row?.stored).padEnd(8)}${status}`)
  }
})

// without the log, because the table already shows the refused COMMIT
runMain(program.pipe(Effect.provide(DatabasesLive), Logger.withMinimumLogLevel(LogLevel.None)))
