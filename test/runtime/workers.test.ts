/**
 * Worker processes and threads do not share the connections of their parent: neither their work nor
 * their end affects it.
 */
import * as ChildProcess from "node:child_process"
import cluster, { type Worker as ClusterWorker } from "node:cluster"
import * as fs from "node:fs"
import { Worker } from "node:worker_threads"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { describe } from "vitest"
import { compiled } from "../support/compiledTree.js"
import { Db, fresh, Place } from "../support/databases.js"
import type { Said } from "../support/worker.js"

const program = (name: string) => {
  const [options = "", script = ""] = compiled(name)
  return { script, execArgv: [options] }
}
const worker = program("test/support/worker.ts")

/** Waits until a worker ends, and returns its last message. */
const messageOf = (
  start: (url: string) => {
    on(event: "message", listener: (said: Said) => void): unknown
    on(event: "error", listener: (cause: unknown) => void): unknown
    on(event: "exit", listener: (code: number | null) => void): unknown
  }
) =>
  Effect.flatMap(Place, ({ writer }) =>
    Effect.async<Said>((resume) => {
      let said: Said | undefined
      const worker = start(Redacted.value(writer))
      worker.on("message", (message) => {
        said = message
      })
      worker.on("error", (cause) => resume(Effect.die(cause)))
      worker.on("exit", (code) =>
        resume(
          said === undefined
            ? Effect.die(new Error(`the worker sent no message and ended with ${code}`))
            : Effect.succeed(said)
        )
      )
    })
  )

const ours = Effect.flatMap(Db.writer, (sql) =>
  Effect.map(
    sql<{ pid: number; port: number }>`
      SELECT pid, client_port AS port FROM pg_stat_activity WHERE pid = pg_backend_pid()`,
    (rows) => rows[0]
  )
)

/** Returns the name of a connection's socket in the system, by its local port. */
const socketOf = (port: number): string | undefined => {
  const local = `:${port.toString(16).toUpperCase().padStart(4, "0")}`
  const rows = ["/proc/net/tcp", "/proc/net/tcp6"].flatMap((file) => fs.readFileSync(file, "utf8").split("\n"))
  const row = rows.map((line) => line.trim().split(/\s+/)).find(([, from]) => from?.endsWith(local))
  return row?.[9] === undefined ? undefined : `socket:[${row[9]}]`
}

/** Waits until a process of a cluster listens, and returns its port. */
const portOf = (worker: ClusterWorker): Promise<number> =>
  new Promise((resolve, reject) => {
    worker.once("listening", ({ port }) => resolve(port))
    worker.once("exit", (code) => reject(new Error(`the worker did not listen and ended with ${code}`)))
  })

const gone = (worker: ClusterWorker): Promise<unknown> =>
  new Promise((resolve) => {
    if (worker.isDead()) resolve(undefined)
    worker.once("exit", resolve)
    worker.process.kill("SIGKILL")
  })

describe("workers", () => {
  it.scopedLive("a child process has connections of its own, and leaves those of its parent as they are", () =>
    Effect.gen(function* () {
      const before = yield* ours
      const socket = process.platform === "linux" ? socketOf(before?.port ?? 0) : undefined
      const said = yield* messageOf((url) =>
        ChildProcess.fork(worker.script, {
          execArgv: worker.execArgv,
          env: { ...process.env, WORKER_DATABASE_URL: url }
        })
      )
      assert.isAbove(said.pid, 0)
      assert.notStrictEqual(said.pid, before?.pid)
      if (process.platform === "linux") {
        assert.isDefined(socket)
        assert.notInclude(said.sockets, socket)
      }
      assert.deepStrictEqual(yield* ours, before)
    }).pipe(Effect.provide(fresh({ maxConnections: 1, readers: [] })))
  )

  it.scopedLive("a worker thread has connections of its own, and leaves those of the main thread as they are", () =>
    Effect.gen(function* () {
      const before = yield* ours
      const said = yield* messageOf((url) => new Worker(worker.script, { execArgv: worker.execArgv, workerData: url }))
      assert.isAbove(said.pid, 0)
      assert.notStrictEqual(said.pid, before?.pid)
      assert.deepStrictEqual(yield* ours, before)
    }).pipe(Effect.provide(fresh({ maxConnections: 1, readers: [] })))
  )

  it.scopedLive("processes of a cluster share a port, and no connection", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const before = yield* ours
      const { execArgv, script } = program("test/support/clustered.ts")
      cluster.setupPrimary({ exec: script, execArgv })
      const start = Effect.acquireRelease(
        Effect.sync(() => cluster.fork({ WORKER_DATABASE_URL: Redacted.value(writer) })),
        (worker) => Effect.promise(() => gone(worker))
      )
      const workers = yield* Effect.all([start, start])
      const ports = yield* Effect.promise(() => Promise.all(workers.map(portOf)))
      assert.strictEqual(ports[0], ports[1])
      const seen = new Map<number, number>()
      // the system selects the process that serves
      yield* Effect.repeat(
        Effect.promise(async () => {
          const answer = await fetch(`http://127.0.0.1:${ports[0]}/`)
          const { session, worker }: { worker: number; session: number } = JSON.parse(await answer.text())
          seen.set(worker, session)
        }),
        { until: () => seen.size === 2 }
      )
      assert.deepStrictEqual([...seen.keys()].sort(), workers.map(({ process }) => process.pid).sort())
      assert.strictEqual(new Set([before?.pid, ...seen.values()]).size, 3)
      assert.deepStrictEqual(yield* ours, before)
    }).pipe(Effect.provide(fresh({ maxConnections: 1, readers: [] })))
  )

  it("a database cannot be sent to a worker", async () => {
    const database = await Effect.runPromise(Effect.provide(Db, fresh({ readers: [] })))
    assert.throws(() => structuredClone(database), /could not be cloned/)
  })
})
