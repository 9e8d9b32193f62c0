/** Reads that a standby cancels because they block its replay. */
import { inspect } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { DatabaseError, EmbeddedPostgres, RetryPolicy } from "effect-db"
import { Db, fresh, Place } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually } from "../support/eventually.js"
import { query } from "../support/server.js"
import { only, watch } from "../support/suites/pooling/observations.js"

it.scopedLive(
  "a read outside of a transaction that a replica cancels for a conflict with recovery is retried on another server",
  () =>
    Effect.gen(function* () {
      const { awaitReplicas, primary, replicas } = yield* EmbeddedPostgres.make({
        directory,
        replicas: 1,
        settings: { max_standby_streaming_delay: 0 }
      })
      const writer = primary.url()
      const reader = (replicas[0] ?? assert.fail("no replica")).url()
      yield* query(writer, "CREATE TABLE item (n int)")
      yield* awaitReplicas
      yield* Effect.gen(function* () {
        const sql = yield* Db.reader
        const slow = sql<{ standby: boolean }>`SELECT pg_is_in_recovery() AS standby,
        (SELECT count(*) FROM item), CASE WHEN pg_is_in_recovery() THEN pg_sleep(20)::text END`
        const conflict = (self: Effect.Effect<unknown, unknown>) =>
          Effect.gen(function* () {
            const reading = yield* Effect.fork(self)
            const running = query(reader, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'")
            yield* eventually(running, (rows) => rows.length === 1)
            yield* query(writer, "ALTER TABLE item ALTER n SET NOT NULL")
            return yield* Fiber.join(reading)
          })
        const facts = yield* watch
        const [row] = yield* conflict(slow) as Effect.Effect<ReadonlyArray<{ readonly standby: boolean }>>
        assert.strictEqual(row?.standby, false)
        assert.deepStrictEqual(
          only(facts, "Retried").map(({ what }) => what),
          ["statement"]
        )
        yield* query(writer, "ALTER TABLE item ALTER n DROP NOT NULL")
        // if the replica replayed this during the next read, that would be cancelled before it sleeps
        yield* awaitReplicas
        const error = yield* Effect.flip(
          conflict(slow.pipe(RetryPolicy.with(RetryPolicy.never), DatabaseError.refine)) as Effect.Effect<
            never,
            DatabaseError.DatabaseError
          >
        )
        assert.strictEqual(error._tag, "SerializationFailure", inspect(error))
      }).pipe(Effect.scoped, Effect.provide(Db.layer({ writer, readers: [reader] })))
    }),
  60_000
)

it.scopedLive(
  "a read that a replica cancels with SQLSTATE 57014 is retried only if the message names a conflict with recovery",
  () =>
    Effect.gen(function* () {
      const { reader, writer } = yield* Place
      // fails as on a standby that cancels with SQLSTATE 57014
      yield* query(
        writer,
        `CREATE FUNCTION cancelled(why text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
         IF pg_is_in_recovery() THEN
           RAISE EXCEPTION 'canceling statement due to %', why USING ERRCODE = '57014';
         END IF;
         RETURN true;
       END $$`
      )
      const isThere = query(reader, "SELECT 1 FROM pg_proc WHERE proname = 'cancelled'")
      yield* eventually(isThere, (rows) => rows.length === 1)
      const sql = yield* Db.reader
      const facts = yield* watch
      const rows = yield* sql<{ yes: boolean }>`SELECT cancelled('conflict with recovery') AS yes`
      assert.deepStrictEqual(rows, [{ yes: true }])
      assert.lengthOf(only(facts, "Retried"), 1)
      // a statement of a transaction is not retried alone: the whole transaction is, if it has `retry`
      const own = sql.withTransaction(sql`SELECT cancelled('conflict with recovery')`)
      const error = yield* Effect.flip(DatabaseError.refine(own))
      assert.strictEqual(error._tag, "SerializationFailure")
      assert.isTrue(RetryPolicy.isReplayable(error))
      const timeout = yield* Effect.flip(DatabaseError.refine(sql`SELECT cancelled('statement timeout')`))
      assert.strictEqual(timeout._tag, "StatementTimeout")
      assert.lengthOf(only(facts, "Retried"), 1)
    }).pipe(Effect.provide(fresh()))
)
