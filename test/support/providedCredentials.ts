/** Databases whose credentials come from a provider, and the sessions that they open. */
import type { PgClient } from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import type { Database, Observation } from "effect-db"
import { Db } from "./databases.js"
import { eventually } from "./eventually.js"
import { anonymous, freshRole, Provider } from "./roles.js"
import { freshDatabase, query } from "./server.js"

/** Creates a database, two roles, and a provider of the credentials of the first role. */
export const given = Effect.gen(function* () {
  const { name, writer } = yield* freshDatabase
  const a = yield* freshRole(writer)
  const b = yield* freshRole(writer)
  return { name, admin: writer, writer: anonymous(writer), a, b, provider: new Provider(a) }
})

/** Opens the database and records its observations from its first connection on. */
export const open = (options: Database.Options) =>
  Effect.gen(function* () {
    const context = yield* Layer.build(Db.layer({ startup: "lazy", ...options }))
    const facts: Array<Observation.Observation> = []
    const hearing = Stream.runForEach(Db.observations, (fact) => Effect.sync(() => void facts.push(fact)))
    yield* Effect.forkScoped(Effect.provide(hearing, context))
    yield* Effect.yieldNow()
    const sql = yield* Effect.provide(Db.writer, context)
    return {
      context,
      sql,
      facts,
      /** The figures of the writer's pool. */
      figures: Effect.map(Effect.provide(Db.status, context), ({ servers }) => {
        const { active, connecting, idle, total, waiting } = servers[0]?.writes ?? assert.fail("no writer")
        return { active, connecting, idle, total, waiting }
      }),
      /** Waits until an observation was made `times` times. */
      heard: (tag: Observation.Observation["_tag"], times = 1) =>
        eventually(
          Effect.sync(() => facts.filter((fact) => fact._tag === tag).length),
          (n) => n >= times
        )
    }
  })

export const session = (sql: PgClient) =>
  Effect.map(
    sql<{ user: string; pid: number }>`SELECT current_user AS user, pg_backend_pid() AS pid`,
    ([row]) => row ?? assert.fail("no row")
  )

/**
 * Begins a transaction, which holds a connection. The effect inside ends it, and returns its
 * session as it was at the beginning and at the end.
 */
export const holder = (sql: PgClient) =>
  Effect.gen(function* () {
    const held = yield* Deferred.make<void>()
    const release = yield* Deferred.make<void>()
    const fiber = yield* Effect.forkScoped(
      sql.withTransaction(
        Effect.gen(function* () {
          const first = yield* session(sql)
          yield* Deferred.succeed(held, undefined)
          yield* Deferred.await(release)
          return [first, yield* session(sql)] as const
        })
      )
    )
    yield* Effect.raceFirst(Deferred.await(held), Fiber.join(fiber))
    return Effect.zipRight(Deferred.succeed(release, undefined), Fiber.join(fiber))
  })

/** Opens `count` connections, and leaves them idle. */
export const fill = (sql: PgClient, count: number) =>
  Effect.flatMap(Effect.all(Array.from({ length: count }, () => holder(sql))), Effect.all)

/**
 * Returns the users of all sessions on a database, without the session of this query.
 */
export const users = (admin: Redacted.Redacted<string>, name: string) =>
  Effect.map(
    query<{ user: string }>(
      admin,
      "SELECT usename AS user FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid() ORDER BY 1",
      [name]
    ),
    (rows) => rows.map(({ user }) => user)
  )
