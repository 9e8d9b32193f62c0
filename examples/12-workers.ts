/** node:cluster and worker_threads: each worker opens the databases for itself, and no socket is shared with its parent. */
import cluster from "node:cluster"
import type { EventEmitter } from "node:events"
import { isMainThread, Worker } from "node:worker_threads"
import { Config, Console, Effect } from "effect"
import { DatabasesLive, Db } from "./databases.js"
import { runMain } from "./main.js"

/** Returns the backend process of the connection of this process or thread, and the number of stored titles. */
const state = Effect.gen(function* () {
  const sql = yield* Db.writer
  const [row] = yield* sql<{ pid: number; n: number }>`
    SELECT pg_backend_pid() AS pid, count(DISTINCT title)::int AS n FROM todo`
  return row ?? { pid: 0, n: 0 }
})

const work = Effect.gen(function* () {
  const sql = yield* Db.writer
  yield* sql`INSERT INTO todo ${sql.insert({ title: `by connection ${(yield* state).pid}` })}`
  yield* Console.log(`${isMainThread ? "a process" : "a thread"} has stored one on a connection of its own`)
  // the channel to the parent would keep the process alive
  cluster.worker?.disconnect()
})

const ended = (worker: EventEmitter, stop: () => unknown) =>
  Effect.async<void, Error>((resume) => {
    worker.once("error", (error) => resume(Effect.fail(error)))
    worker.once("exit", (code) =>
      resume(code === 0 ? Effect.void : Effect.fail(new Error(`a worker ended with ${code}`)))
    )
    return Effect.sync(stop)
  })

// In JavaScript this is `new Worker(new URL(import.meta.url), { env })`; here the thread registers a loader for TypeScript.
const code = `import("tsx/esm/api").then(({ register }) => { register(); return import(${JSON.stringify(import.meta.url)}) })`

const parent = Effect.gen(function* () {
  const before = yield* state
  const env = { ...process.env, DATABASE_URL: yield* Config.string("DATABASE_URL") }
  const processes = [cluster.fork(env), cluster.fork(env)]
  const thread = new Worker(code, { eval: true, execArgv: [], env })
  const all = [...processes.map((one) => ended(one, () => one.kill())), ended(thread, () => thread.terminate())]
  yield* Effect.all(all, { concurrency: "unbounded" })
  const { n, pid } = yield* state // in the transaction that was open while the workers ran
  yield* Console.log(
    `stored: ${n}, by ${n} connections; the parent ${pid === before.pid ? "still has" : "lost"} its own`
  )
})

const Own = Db.layerConfig({ writer: Config.redacted("DATABASE_URL") })

if (cluster.isPrimary && isMainThread) runMain(Effect.provide(Db.withTransaction(parent), DatabasesLive))
else runMain(Effect.provide(work, Own))
