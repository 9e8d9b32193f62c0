/** Notices that a server sends beside its answers. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as HashMap from "effect/HashMap"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import type { Database, Observation } from "effect-db"
import { Db, fresh, Place } from "../support/databases.js"
import { query } from "../support/server.js"

type Noticed = Extract<Observation.Observation, { readonly _tag: "Noticed" }>

const say = (severity: string, text: string) =>
  Effect.flatMap(Db.writer, (sql) =>
    sql.unsafe(`DO $$ BEGIN RAISE ${severity} '${text}' USING DETAIL = 'the detail', HINT = 'the hint'; END $$`)
  )

/** Runs an effect and returns the notices that are observed. */
const noticed = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const all: Array<Noticed> = []
    const { observers } = yield* Db
    const stop = observers.add((one) => {
      if (one._tag === "Noticed") all.push(one)
    })
    yield* self
    stop()
    return all
  })

const open = (options: Partial<Database.Options> = {}) => fresh({ readers: [], ...options })

describe("notices", () => {
  it.scopedLive("a notice of a statement is observed with its severity, message, detail and hint", () =>
    Effect.gen(function* () {
      const { processId } = yield* Effect.flatMap(Db.writer, (sql) =>
        Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, ([row]) => ({ processId: row?.pid }))
      )
      const all = yield* noticed(
        Effect.gen(function* () {
          yield* say("NOTICE", "said")
          yield* Db.withTransaction(say("WARNING", "warned"))
        })
      )
      const { database, server } = all[0] ?? {}
      assert.strictEqual(database, "app")
      assert.match(server ?? "", /^127\.0\.0\.1:\d+$/)
      const common = { _tag: "Noticed", database, server, processId, detail: "the detail", hint: "the hint" }
      assert.deepStrictEqual(
        all.map((one) => ({ ...one })),
        [
          { ...common, severity: "NOTICE", sqlState: "00000", message: "said" },
          { ...common, severity: "WARNING", sqlState: "01000", message: "warned" }
        ] as unknown as Array<Noticed>
      )
    }).pipe(Effect.provide(open({ maxConnections: 1 })))
  )

  it.scopedLive("a notice at login is observed as well", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      yield* query(
        writer,
        "CREATE FUNCTION greet() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'welcome'; END $$"
      )
      yield* query(writer, "CREATE EVENT TRIGGER greeting ON login EXECUTE FUNCTION greet()")
      const all = yield* noticed(Effect.flatMap(Db.writer, (sql) => sql`SELECT 1`))
      assert.deepStrictEqual(
        all.map(({ message, severity }) => [severity, message]),
        [["NOTICE", "welcome"]]
      )
    }).pipe(Effect.provide(open({ startup: "lazy" })))
  )

  it.scopedLive("a notice is logged by echo: a WARNING as a warning and a NOTICE as information", () =>
    Effect.gen(function* () {
      const said: Array<string> = []
      const logger = Logger.make(({ annotations, logLevel, message }) => {
        const event = Object.fromEntries(HashMap.toEntries(annotations))
        if (event.event === "Noticed") said.push(`${logLevel._tag} ${event.sqlState} ${String(message)}`)
      })
      yield* Effect.gen(function* () {
        yield* say("NOTICE", "said")
        yield* say("WARNING", "warned")
      }).pipe(
        Effect.provide(
          Layer.provide(
            open({ echo: true }),
            Layer.merge(Logger.replace(Logger.defaultLogger, logger), Logger.minimumLogLevel(LogLevel.All))
          )
        )
      )
      assert.lengthOf(said, 2)
      assert.match(said[0] ?? "", /^Info 00000 database "app" at 127\.0\.0\.1:\d+: .*NOTICE: said/)
      assert.match(said[1] ?? "", /^Warning 01000 database "app" at 127\.0\.0\.1:\d+: .*WARNING: warned/)
    })
  )
})
