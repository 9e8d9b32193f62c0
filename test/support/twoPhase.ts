/** Two databases for units of work that end in two phases. */
import { assert } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import { type Database, UnitOfWork } from "effect-db"
import { Audit, Db } from "./databases.js"
import { makeProxy } from "./proxy.js"
import { freshDatabase, query } from "./server.js"

/** A database may be left for twice the `resolveWithin` before the recovery ends what it finds. */
export const options: Partial<Database.Options> = { outcome: "marker", twoPhase: true, resolveWithin: "1 second" }

export const given = (more: Partial<Database.Options> = {}) =>
  Effect.gen(function* () {
    const [one, two] = [yield* freshDatabase, yield* freshDatabase]
    for (const { writer } of [one, two]) {
      yield* query(writer, "CREATE TABLE moved (id int)")
      yield* query(
        writer,
        `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN IF NEW.id < 0 THEN RAISE EXCEPTION 'refused'; END IF; RETURN NEW; END $$`
      )
      yield* query(
        writer,
        "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON moved DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()"
      )
    }
    const proxies = { one: yield* makeProxy(one.writer), two: yield* makeProxy(two.writer) }
    const context = yield* Layer.build(
      Layer.merge(
        Db.layer({ writer: proxies.one.url, ...options, ...more }),
        Audit.layer({ writer: proxies.two.url, ...options, ...more })
      )
    )
    const stored = Effect.forEach([one, two], ({ writer }) =>
      Effect.map(query<{ id: number }>(writer, "SELECT id FROM moved ORDER BY id"), (rows) => rows.map(({ id }) => id))
    )
    const prepared = Effect.map(
      Effect.forEach([one, two], ({ writer }) =>
        query(writer, "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
      ),
      (all) => all.flat().length
    )
    return { one: one.writer, two: two.writer, proxies, context: Context.pick(Db, Audit)(context), stored, prepared }
  })

export const move = (id: number) => Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO moved VALUES (${id})`)
export const moveOther = (id: number) => Effect.flatMap(Audit.writer, (sql) => sql`INSERT INTO moved VALUES (${id})`)
export const both = (id: number) => Effect.zipRight(move(id), moveOther(id))
export const run = <A, E, R>(self: Effect.Effect<A, E, R>) => UnitOfWork.run(self, { atomic: "twoPhase" })

/** Leaves a prepared transaction, as a process that was killed does, and returns the marker's id. */
export const leave = (url: Redacted.Redacted<string>, decider: Redacted.Redacted<string>, id: number) =>
  Effect.gen(function* () {
    const [found] = yield* query<{ key: string; marker: string }>(
      decider,
      `SELECT system_identifier || '/' || (SELECT oid FROM pg_database WHERE datname = current_database()) AS key,
         lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || substr(md5(random()::text), 13) AS marker
       FROM pg_control_system()`
    )
    const { key, marker } = found ?? assert.fail("no identity")
    const uuid = `${marker.slice(0, 8)}-${marker.slice(8, 12)}-7${marker.slice(13, 16)}-8${marker.slice(17, 20)}-${marker.slice(20, 32)}`
    yield* query(url, `BEGIN; INSERT INTO moved VALUES (${id}); PREPARE TRANSACTION 'effect-db:${key}:${uuid}:0'`)
    return uuid
  })

/** Undoes what is still prepared in a database, so that it can be dropped. */
export const undoPrepared = (url: Redacted.Redacted<string>) =>
  Effect.gen(function* () {
    const left = yield* query<{ gid: string }>(
      url,
      "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
    )
    for (const { gid } of left) yield* query(url, `ROLLBACK PREPARED '${gid}'`)
  })
