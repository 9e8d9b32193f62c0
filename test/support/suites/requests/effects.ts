/** The handlers of the Effect server: the same as those of plain code. */
import { HttpServerResponse } from "@effect/platform"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { Consistency, DatabaseError, UnitOfWork } from "effect-db"
import { event } from "../../audit.js"
import { type Audit, Db, insert } from "../../databases.js"
import { hearing, meet, telling } from "./messages.js"
import { statuses } from "./plain.js"

const respond = (status: number, body?: string) =>
  body === undefined ? HttpServerResponse.empty({ status }) : HttpServerResponse.text(body, { status })

const first = <A extends object, B>(kind: "writer" | "reader", text: string, pick: (row: A | undefined) => B) =>
  Effect.flatMap(Db[kind], (sql) => Effect.map(sql.unsafe<A>(text), (rows) => pick(rows[0])))

const pid = first("writer", "SELECT pg_backend_pid() AS pid", (row: { pid: number } | undefined) => row?.pid)
const schemaOf = (kind: "writer" | "reader") =>
  first(kind, "SELECT current_schema() AS name", (row: { name: string } | undefined) => row?.name)
const schema = (kind: "writer" | "reader") =>
  Effect.map(Effect.all([pid, schemaOf(kind)]), (both) => respond(200, JSON.stringify(both)))
const port = first("writer", "SELECT inet_client_port() AS port", (row: { port: number } | undefined) => row?.port)
const orphan = Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO late VALUES (-1)`)
const seen = (name: string) =>
  first(
    "reader",
    `SELECT pg_is_in_recovery() AS standby, count(*)::int AS n FROM item WHERE name = '${name}'`,
    (row: { standby: boolean; n: number } | undefined) => row
  )

const failed = (self: Effect.Effect<unknown, unknown, Db>) =>
  Effect.match(DatabaseError.refine(self), {
    onFailure: (error) => (DatabaseError.isDatabaseError(error) ? error._tag : "no tag"),
    onSuccess: () => "no failure"
  })

/** Returns a response with a streamed body, which has the context of its handler. */
const streamed = (self: Stream.Stream<string, unknown, Db>) =>
  Effect.map(Effect.context<Db>(), (context) =>
    HttpServerResponse.stream(Stream.encodeText(Stream.provideContext(self, context)))
  )

export const handlers: Readonly<
  Record<string, Effect.Effect<HttpServerResponse.HttpServerResponse, unknown, Db | Audit>>
> = {
  ...Object.fromEntries(
    statuses.map((status) => [`status-${status}`, Effect.as(insert(`status-${status}`), respond(status))])
  ),
  insert: Effect.as(insert("insert"), respond(200, "inserted")),
  throws: Effect.zipRight(insert("throws"), Effect.die(new Error("a bug"))),
  "early-commit": Effect.gen(function* () {
    yield* insert("early-commit: kept")
    yield* Db.commit
    yield* insert("early-commit: undone")
    return respond(500)
  }),
  "early-rollback": Effect.as(Effect.zipRight(insert("early-rollback"), Db.rollback), respond(200)),
  independent: Effect.gen(function* () {
    yield* insert("independent: undone")
    yield* Db.independent(insert("independent: kept"))
    return respond(500)
  }),
  nested: Effect.gen(function* () {
    yield* insert("nested: before")
    yield* Db.withTransaction(insert("nested: one"))
    yield* Effect.ignore(Db.withTransaction(Effect.zipRight(insert("nested: undone"), Effect.fail("caught"))))
    yield* Db.withTransaction(Db.withTransaction(insert("nested: two")))
    return respond(200)
  }),
  five: Effect.map(
    Effect.forEach([1, 2, 3, 4, 5], (n) => Effect.zipRight(insert(`five: ${n}`), pid), { concurrency: 5 }),
    (pids) => respond(200, JSON.stringify(pids))
  ),
  race: Effect.map(Effect.all([pid, pid], { concurrency: 2 }), (pids) => respond(200, JSON.stringify(pids))),
  two: Effect.as(Effect.zipRight(insert("two"), event("two", 13)), respond(201, "both stored")),
  "orphan-empty": Effect.as(Effect.zipRight(insert("orphan-empty"), orphan), respond(204)),
  "orphan-text": Effect.as(Effect.zipRight(insert("orphan-text"), orphan), respond(200, "stored")),
  "orphan-stream": Effect.zipRight(
    Effect.zipRight(insert("orphan-stream"), orphan),
    streamed(Stream.make("stored ", "and more"))
  ),
  hang: Effect.gen(function* () {
    yield* insert("hang")
    yield* telling("hang", yield* pid)
    return yield* Effect.never
  }),
  sleep: Effect.gen(function* () {
    yield* insert("sleep")
    yield* telling("sleep", yield* pid)
    const sql = yield* Db.writer
    yield* sql`SELECT pg_sleep(600)`
    return respond(200)
  }),
  leaving: Effect.as(insert("leaving"), respond(200)),
  stream: Effect.gen(function* () {
    yield* insert("stream: in time")
    const own = yield* UnitOfWork.detach(Stream.fromEffect(Effect.as(insert("stream: own"), "own\n")))
    const late = Effect.zipRight(hearing("stream: started"), failed(insert("stream: undone")))
    return yield* streamed(
      Stream.concat(
        Stream.make("start\n"),
        Stream.concat(Stream.fromEffect(Effect.map(late, (tag) => `${tag}\n`)), own)
      )
    )
  }),
  background: Effect.gen(function* () {
    yield* insert("background: in time")
    yield* hearing("background: answered").pipe(
      Effect.zipRight(failed(insert("background: undone"))),
      Effect.zipLeft(UnitOfWork.outside(insert("background: own"))),
      Effect.flatMap((late) => telling("background: done", late)),
      Effect.forkDaemon
    )
    return respond(202)
  }),
  hook: Effect.as(Effect.zipRight(insert("hook"), Db.beforeCommit(event("hook"))), respond(200)),
  veto: Effect.as(Effect.all([insert("veto"), event("veto"), Db.beforeCommit(Effect.fail("no"))]), respond(200)),
  readers: Effect.gen(function* () {
    const before = yield* seen("readers")
    yield* insert("readers")
    return respond(200, JSON.stringify([before, yield* seen("readers")]))
  }),
  wrote: Effect.as(insert("wrote"), respond(201)),
  again: Effect.gen(function* () {
    const strong = yield* Db.withConsistency(seen("wrote"), Consistency.Strong())
    return respond(200, JSON.stringify([strong, (yield* seen("wrote"))?.standby]))
  }),
  move: Effect.gen(function* () {
    yield* insert("move: before")
    yield* telling("move: under way")
    yield* hearing("move: moved")
    yield* insert("move: after")
    return respond(200, String(yield* port))
  }),
  schemas: Effect.gen(function* () {
    const sql = yield* Db.writer
    yield* insert("schemas: by default")
    yield* sql`SET LOCAL search_path TO ${sql("tenant")}`
    yield* insert("schemas: of the request")
    yield* sql`INSERT INTO ${sql("public.item")} ${sql.insert({ name: "schemas: of the statement" })}`
    return yield* schema("reader")
  }),
  tenants: Effect.gen(function* () {
    const sql = yield* Db.writer
    const before = yield* schemaOf("writer")
    yield* insert("tenants")
    yield* sql`INSERT INTO ${sql("public.item")} ${sql.insert({ name: `tenants: of ${before}` })}`
    // the three concurrent requests have inserted by now, and none has committed
    yield* Effect.promise(() => meet("tenants", 3))
    const reader = yield* Db.reader
    const [row] = yield* reader<{ n: number }>`SELECT count(*)::int AS n FROM item WHERE name = 'tenants'`
    const seen = [
      before,
      yield* schemaOf("reader"),
      yield* Db.withSchema(schemaOf("writer"), "other"),
      yield* Db.withTransaction(schemaOf("writer")),
      yield* Db.independent(schemaOf("writer")),
      row?.n
    ]
    return respond(200, JSON.stringify(seen))
  }),
  "tenant-stream": Effect.gen(function* () {
    yield* insert("tenant-stream")
    const both = Stream.concat(Stream.fromEffect(schemaOf("writer")), Stream.fromEffect(schemaOf("reader")))
    return yield* streamed(Stream.map(yield* UnitOfWork.detach(both), (name) => `${name}\n`))
  }),
  "no-tenant": Effect.map(failed(insert("no-tenant")), (tag) => respond(200, tag)),
  schema: schema("writer"),
  where: Effect.map(port, (port) => respond(200, String(port)))
}
