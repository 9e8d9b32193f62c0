import { inspect } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as HashMap from "effect/HashMap"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Redacted from "effect/Redacted"
import type * as Tracer from "effect/Tracer"
import { type Database, Observation } from "effect-db"
import { describe } from "vitest"
import { makeLogger } from "../../src/internal/observability/logger.js"
import { Db, insert } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { freshDatabase, terminateBackends } from "../support/server.js"

interface Entry {
  readonly level: string
  readonly text: string
  readonly annotations: Readonly<Record<string, unknown>>
}

/** Creates a logger that keeps its messages. */
const keepingLogger = () => {
  const entries: Array<Entry> = []
  const logger = Logger.make(({ annotations, logLevel, message }) => {
    const text = String(Array.isArray(message) ? message[0] : message)
    entries.push({ level: logLevel._tag, text, annotations: Object.fromEntries(HashMap.toEntries(annotations)) })
  })
  return { entries, layer: Logger.replace(Logger.defaultLogger, logger) }
}

const writes = Effect.map(Db.status, ({ servers }) => servers[0]?.writes)

/** Opens a database, commits, rolls back, loses its connection and closes. */
const life = (options: Partial<Database.Options>) =>
  Effect.gen(function* () {
    const { name, writer } = yield* freshDatabase
    const { host, password } = new URL(Redacted.value(writer))
    yield* Effect.gen(function* () {
      const sql = yield* Db.writer
      yield* sql`CREATE TABLE item (name text)`
      yield* Db.withTransaction(insert("a"), { label: "adding" })
      yield* Effect.flip(Db.withTransaction(Effect.zipRight(insert("b"), Effect.fail("no"))))
      yield* terminateBackends(name)
      yield* eventually(writes, (_) => _?.total === 0)
      yield* sql`SELECT 1`
    }).pipe(Effect.provide(Db.layer({ writer, startup: "lazy", maxConnections: 1, ...options })))
    return { host, password: decodeURIComponent(password) }
  })

const logOf = (options: Partial<Database.Options>, around: Layer.Layer<never> = Layer.empty) => {
  const { layer, entries } = keepingLogger()
  return Effect.map(Effect.provide(life(options), Layer.merge(layer, around)), (server) => ({ ...server, entries }))
}

const about = (entries: ReadonlyArray<Entry>, ...tags: ReadonlyArray<Observation.Observation["_tag"]>) =>
  entries.filter(({ annotations }) => tags.some((tag) => tag === annotations.event))

describe("echo", () => {
  it.scopedLive("echo sends each event at its level, without secrets, to the loggers around the layer", () =>
    Effect.gen(function* () {
      const { host, password, entries } = yield* logOf({ echo: true }, Logger.minimumLogLevel(LogLevel.All))
      const some = about(entries, "Connected", "Lost", "Closed", "TransactionEnded")
      assert.deepStrictEqual(
        some.map(({ annotations, level }) => `${level} ${annotations.event}`),
        [
          "Info Connected",
          "Debug TransactionEnded",
          "Debug TransactionEnded",
          "Warning Lost",
          "Info Closed",
          "Info Connected",
          // at the release of the layer
          "Info Closed"
        ]
      )
      for (const { annotations, text } of some) {
        assert.deepInclude(annotations, { database: "app", server: host })
        assert.isTrue(text.startsWith(`database "app" at ${host}: `), text)
      }
      const [connected, added, failed, lost] = some
      const processId = connected?.annotations.processId
      assert.isNumber(processId)
      assert.include(connected?.text, `connection ${processId} was opened in `)
      assert.deepInclude(added?.annotations, { label: "adding", outcome: "committed" })
      assert.include(added?.text, 'transaction "adding" committed after ')
      assert.deepInclude(failed?.annotations, { outcome: "rolledBack" })
      assert.notProperty(failed?.annotations, "label")
      assert.strictEqual(lost?.annotations.processId, processId)
      assert.include(lost?.text, "terminating connection due to administrator command")
      assert.notInclude(inspect(entries, { depth: 10 }), password)
    })
  )

  it.scopedLive("the program's minimum level applies to echo, and a level given as `echo` drops events below it", () =>
    Effect.gen(function* () {
      const usual = yield* logOf({ echo: true })
      assert.isNotEmpty(about(usual.entries, "Connected"))
      assert.isEmpty(about(usual.entries, "TransactionEnded"))
      const trouble = yield* logOf({ echo: "Warning" }, Logger.minimumLogLevel(LogLevel.All))
      assert.deepStrictEqual([...new Set(trouble.entries.map(({ level }) => level))], ["Warning"])
      assert.isNotEmpty(about(trouble.entries, "Lost"))
    })
  )

  it.scopedLive("echo is off by default, and no observation is created when nothing consumes it", () =>
    Effect.gen(function* () {
      for (const options of [{}, { echo: false }, { echo: "None" as const }]) {
        const { entries } = yield* logOf(options, Logger.minimumLogLevel(LogLevel.All))
        assert.isEmpty(entries)
      }
      const { writer } = yield* freshDatabase
      const listened = (echo: boolean) =>
        Effect.provide(
          Effect.map(Db, ({ observers }) => observers.active),
          Db.layer({ writer, startup: "lazy", echo })
        )
      assert.isFalse(yield* listened(false))
      assert.isTrue(yield* listened(true))
    })
  )

  it.scopedLive("a logger that throws does no harm to the database", () =>
    Effect.gen(function* () {
      let thrown = 0
      const broken = Logger.make(() => {
        thrown++
        throw new Error("this logger is broken")
      })
      // at this level the runtime reports a failed fiber to the loggers as well
      const around = Layer.merge(Logger.replace(Logger.defaultLogger, broken), Logger.minimumLogLevel(LogLevel.All))
      yield* Effect.provide(life({ echo: true }), around)
      assert.isAbove(thrown, 2)
    })
  )

  it.effect("echo adds nothing to the span in which the database was opened", () =>
    Effect.gen(function* () {
      const { layer, entries } = keepingLogger()
      const events: Array<string> = []
      const opening = yield* Effect.makeSpan("opening")
      const span: Tracer.Span = Object.create(opening, { event: { value: (name: string) => void events.push(name) } })
      const echo = yield* Effect.zipLeft(makeLogger(LogLevel.All), Effect.log("opened")).pipe(
        Effect.provide(layer),
        Effect.withParentSpan(span)
      )
      echo(Observation.Observation.MarkedUp({ database: "app", server: "localhost:5432" }))
      assert.deepStrictEqual(events, ["opened"])
      assert.deepStrictEqual(entries.at(-1), {
        level: "Info",
        text: 'database "app" at localhost:5432: the server is marked up',
        annotations: { event: "MarkedUp", database: "app", server: "localhost:5432" }
      })
    })
  )

  it.effect("a log entry names no server if its event has none", () =>
    Effect.gen(function* () {
      const { layer, entries } = keepingLogger()
      const echo = yield* Effect.provide(makeLogger(LogLevel.All), layer)
      const { HookFailed, Retried } = Observation.Observation
      echo(Retried({ database: "app", what: "statement", attempt: 2, message: "it was lost" }))
      echo(HookFailed({ database: "app", hook: "afterCommit", message: "Error: no mail" }))
      assert.deepStrictEqual(entries, [
        {
          level: "Info",
          text: 'database "app": statement is retried after attempt 2: it was lost',
          annotations: { event: "Retried", database: "app", what: "statement", attempt: 2 }
        },
        {
          level: "Info",
          text: 'database "app": a hook failed (afterCommit): Error: no mail',
          annotations: { event: "HookFailed", database: "app", hook: "afterCommit" }
        }
      ])
    })
  )
})
