/** The thread that answers calls: it has the databases, and its event loop is never blocked. */
import { parentPort, workerData } from "node:worker_threads"
import { SqlError } from "@effect/sql"
import { Schema } from "effect"
import { DatabaseError, type DatabaseRuntime } from "effect-db"
import { type Answer, type Ask, answered, Failure, type Given } from "./protocol.js"

/** Functions by name. Each call is one unit of work, or a part of the unit that the caller has begun. */
export type Functions = Readonly<Record<string, (...args: ReadonlyArray<never>) => Promise<unknown>>>

const rolledBack = new Error("its caller rolls it back")

/** Answers the calls of the thread that has started this one. */
export const answer = <D, R>(runtime: DatabaseRuntime.DatabaseRuntime<D, R>, functions: Functions): void => {
  const { bell, port }: Given = workerData
  let next: (ask: Ask) => void
  port.on("message", (ask: Ask) => next(ask))

  let asked = 0
  let ending = new AbortController()
  parentPort?.on("message", (one: number) => {
    // an older call may have been answered in the meantime
    if (one === asked) ending.abort()
  })

  const reply = (answer: Answer) => {
    port.postMessage(answer)
    Atomics.store(bell, 0, answered)
    Atomics.notify(bell, 0)
  }

  const perform = async (ask: Ask): Promise<unknown> => {
    if (ask.what === "open") return runtime.open()
    if (ask.what === "close") return runtime.close()
    if (ask.what === "call") {
      const { signal } = ending
      // the cast: the types of the arguments are checked at the caller
      return runtime.unitOfWork(async () => functions[ask.name]?.(...(ask.args as Array<never>)), { signal })
    }
    const inside = () => {
      reply({ value: undefined })
      return answerAll()
    }
    return runtime.unitOfWork(inside).catch((error) => {
      if (error !== rolledBack) throw error
    })
  }

  /** Answers calls until the current unit of work ends. A nested unit of work is a nested call of this function. */
  const answerAll = async (): Promise<void> => {
    for (;;) {
      const ask = await new Promise<Ask>((resolve) => {
        next = resolve
      })
      asked++
      if (ask.what === "commit") return
      if (ask.what === "rollback") throw rolledBack
      ending = new AbortController()
      try {
        reply({ value: await perform(ask) })
      } catch (error) {
        // the failure may be wrapped in the `SqlError` of `@effect/sql`
        const failure = error instanceof SqlError.SqlError ? DatabaseError.fromSqlError(error) : error
        reply({ failure: Schema.encodeUnknownSync(Failure)(failure) })
      }
    }
  }
  void answerAll()
}
