/** The side that answers: it has the databases, and an event loop that is never blocked. */
import { parentPort, workerData } from "node:worker_threads"
import { SqlError } from "@effect/sql"
import { Schema } from "effect"
import { DatabaseError, type DatabaseRuntime } from "effect-db"
import { type Answer, type Ask, answered, Failure, type Given } from "./protocol.js"

/** Functions by name, each called as one unit of work, or as a part of the one that its caller has begun. */
export type Functions = Readonly<Record<string, (...args: ReadonlyArray<never>) => Promise<unknown>>>

const rolledBack = new Error("its caller rolls it back")

/** Answers what the thread is asked that has started this one. */
export const answer = <D, R>(runtime: DatabaseRuntime.DatabaseRuntime<D, R>, functions: Functions): void => {
  const { bell, port }: Given = workerData
  let next: (ask: Ask) => void
  port.on("message", (ask: Ask) => next(ask))

  let asked = 0
  let ending = new AbortController()
  parentPort?.on("message", (one: number) => {
    // it may have been answered in the meantime
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
      // those of its type, as the caller's own was checked against it
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

  /** To the end of the unit of work that it is called in: one in another is a call of this in another. */
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
        // around what failed, an effect may have what the ecosystem puts there
        const failure = error instanceof SqlError.SqlError ? DatabaseError.fromSqlError(error) : error
        reply({ failure: Schema.encodeUnknownSync(Failure)(failure) })
      }
    }
  }
  void answerAll()
}
