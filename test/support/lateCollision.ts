import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import { query } from "./server.js"

/** Makes each COMMIT of an insert into a table fail with a serialization failure. */
export const collideAtCommit = (writer: Redacted.Redacted<string>, table: string) =>
  Effect.zipRight(
    query(
      writer,
      `CREATE FUNCTION collide() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE EXCEPTION 'late' USING ERRCODE = 'serialization_failure'; END $$`
    ),
    query(
      writer,
      `CREATE CONSTRAINT TRIGGER late AFTER INSERT ON ${table} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION collide()`
    )
  )
