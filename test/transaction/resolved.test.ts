/**
 * Transfers whose COMMIT loses its connection at each point: none is doubled, none lost, and each
 * outcome is right.
 *
 * - `EFFECT_DB_CHAOS=full`: 500 transfers of each kind, otherwise 8, which are 128 at each point.
 */
import { HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import { type Database, DatabaseError, RequestTransaction, UnitOfWork } from "effect-db"
import { describe } from "vitest"
import { Audit, Db, idle } from "../support/databases.js"
import { answers, type Message, makeProxy, type Proxy, sends } from "../support/proxy.js"
import { freshDatabase, query } from "../support/server.js"

const transfers = process.env.EFFECT_DB_CHAOS === "full" ? 500 : 8

const given = (options: Partial<Database.Options> = {}) =>
  Effect.gen(function* () {
    const databases = [yield* freshDatabase, yield* freshDatabase] as const
    for (const { writer } of databases) yield* query(writer, "CREATE TABLE moved (id int)")
    const [db, audit] = databases
    const proxies = { db: yield* makeProxy(db.writer), audit: yield* makeProxy(audit.writer) }
    const context = yield* Layer.build(
      Layer.merge(
        Db.layer({ writer: proxies.db.url, ...options }),
        Audit.layer({ writer: proxies.audit.url, ...options })
      )
    )
    /** Returns the number of rows of each id. */
    const counts = (url: Redacted.Redacted<string>) =>
      Effect.map(
        query<{ id: number; rows: number }>(url, "SELECT id, count(*)::int AS rows FROM moved GROUP BY id"),
        (all) => new Map(all.map(({ id, rows }) => [id, rows]))
      )
    const stored = Effect.all([counts(db.writer), counts(audit.writer)])
    return { proxies, context: Context.pick(Db, Audit)(context), stored }
  })

const move = (id: number) => Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO moved VALUES (${id})`)
const moveBoth = (id: number) =>
  Effect.zipRight(
    move(id),
    Effect.flatMap(Audit.writer, (sql) => sql`INSERT INTO moved VALUES (${id})`)
  )

/** Matches the end of the answer to COMMIT. */
const endsCommit = () => {
  let connection = 0
  return (message: Message): boolean => {
    if (answers("COMMIT")(message)) connection = message.connection
    return message.connection === connection && message.from === "server" && message.type === "Z"
  }
}

/** The points at which a connection is lost, as effects before COMMIT. */
const points: ReadonlyArray<
  readonly [name: string, isStored: boolean, lose: (proxy: Proxy) => Effect.Effect<unknown>]
> = [
  ["before COMMIT", false, (proxy) => proxy.cut],
  ["after COMMIT was sent", false, (proxy) => proxy.when(sends("COMMIT"), "cut")],
  ["after the server has committed", true, (proxy) => proxy.when(answers("COMMIT"), "cut")],
  ["in the middle of the answer", true, (proxy) => proxy.when(endsCommit(), "cut")]
]

/** Runs work as a request, and fails if the request does. */
const request = <E, R>(work: Effect.Effect<unknown, E, R>) =>
  RequestTransaction.middleware({ retry: true })(Effect.as(work, HttpServerResponse.empty())).pipe(
    Effect.provideService(
      HttpServerRequest.HttpServerRequest,
      HttpServerRequest.fromWeb(new Request("http://localhost/", { method: "POST" }))
    ),
    Effect.scoped,
    Effect.filterOrFail(({ status }) => status < 400)
  )

type Way = (id: number, lose: Effect.Effect<unknown>) => Effect.Effect<unknown, unknown, Db | Audit>

/** The ways to store, with the database that is lost, the retry, and the number of databases. */
const ways: ReadonlyArray<
  readonly [name: string, lost: "db" | "audit", hasRetry: boolean, isOfBoth: boolean, way: Way]
> = [
  ["withTransaction", "db", false, false, (id, lose) => Db.withTransaction(Effect.zipRight(move(id), lose))],
  [
    "withTransaction with retry",
    "db",
    true,
    false,
    (id, lose) => Db.withTransaction(Effect.zipRight(move(id), lose), { retry: true })
  ],
  ["UnitOfWork.run", "db", false, false, (id, lose) => UnitOfWork.run(Effect.zipRight(move(id), lose))],
  [
    "UnitOfWork.run with retry",
    "db",
    true,
    false,
    (id, lose) => UnitOfWork.run(Effect.zipRight(move(id), lose), { retry: true })
  ],
  ["a request with retry", "db", true, false, (id, lose) => request(Effect.zipRight(move(id), lose))],
  [
    "UnitOfWork.run over two databases, the first lost",
    "db",
    false,
    true,
    (id, lose) => UnitOfWork.run(Effect.zipRight(moveBoth(id), lose))
  ],
  [
    "UnitOfWork.run over two databases with retry, the first lost",
    "db",
    true,
    true,
    (id, lose) => UnitOfWork.run(Effect.zipRight(moveBoth(id), lose), { retry: true })
  ],
  [
    "UnitOfWork.run over two databases, the second lost",
    "audit",
    false,
    true,
    (id, lose) => UnitOfWork.run(Effect.zipRight(moveBoth(id), lose))
  ]
]

/** Loses the connection once, also if the work runs again. */
const once = (lose: Effect.Effect<unknown>) => {
  let isLost = false
  return Effect.suspend(() => {
    if (isLost) return Effect.void
    isLost = true
    return lose
  })
}

const outcomeOf = (exit: Exit.Exit<unknown, unknown>): string => {
  if (Exit.isSuccess(exit)) return "stored"
  const error = DatabaseError.fromUnknown(Cause.squash(exit.cause))
  return "outcome" in error ? `${error._tag} ${error.outcome}` : error._tag
}

const cases = (["status", "marker"] as const).flatMap((outcome) => ways.map((way) => ({ outcome, way })))

describe("a COMMIT that loses its connection", () => {
  for (const { outcome, way: all } of cases) {
    const [name, lost, hasRetry, isOfBoth, way] = all
    for (const [point, isStored, lose] of points) {
      it.scopedLive(
        `${name}, by ${outcome}: ${transfers} transfers that lose the connection ${point} are stored once or not at all, as reported`,
        () =>
          Effect.gen(function* () {
            const { context, proxies, stored } = yield* given({ outcome })
            const outcomes: Array<string> = []
            for (let id = 0; id < transfers; id++) {
              const exit = yield* way(id, once(lose(proxies[lost]))).pipe(Effect.exit, Effect.provide(context))
              outcomes.push(outcomeOf(exit))
            }
            // after the last transfer, so that a late COMMIT would show
            const [inDb, inAudit] = yield* stored
            outcomes.forEach((outcome, id) => {
              const rows = [inDb.get(id) ?? 0, inAudit.get(id) ?? 0]
              if (outcome === "stored") assert.deepStrictEqual(rows, [1, isOfBoth ? 1 : 0])
              // the first COMMIT was answered, and the second certainly has no effect
              else if (outcome === "PartialCommit rolledBack") assert.deepStrictEqual(rows, [1, 0])
              else assert.deepStrictEqual([outcome, rows], ["Disconnected undone", [0, 0]])
            })
            const seen = new Set(outcomes)
            // the cut before COMMIT is noticed before the first COMMIT or during the second
            const unstored =
              lost === "audit" && point !== "before COMMIT" ? ["PartialCommit rolledBack"] : ["Disconnected undone"]
            if (isStored || hasRetry) assert.deepStrictEqual([...seen], ["stored"])
            else if (lost === "db" || point !== "before COMMIT") assert.deepStrictEqual([...seen], unstored)
            yield* Effect.provide(idle, context)
          }),
        { timeout: 60_000 + transfers * 200 }
      )
    }
  }
})
