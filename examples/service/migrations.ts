import * as Migrator from "@effect/sql/Migrator"
import { SqlClient } from "@effect/sql/SqlClient"
import { Effect } from "effect"
import { Migrations } from "effect-db"
import { Audit, Db } from "./databases.js"

const statement = (text: string) => Effect.flatMap(SqlClient, (sql) => sql.unsafe(text))

const app = Migrator.fromRecord({
  "1_todo": statement(`
    CREATE TABLE todo (
      id text PRIMARY KEY,
      title text NOT NULL,
      done boolean NOT NULL DEFAULT false,
      created timestamptz NOT NULL DEFAULT now()
    )`),
  "2_record": statement(`
    CREATE TABLE record (
      iata text PRIMARY KEY,
      name text NOT NULL,
      city text NOT NULL,
      state text NOT NULL,
      country text NOT NULL,
      latitude float8 NOT NULL,
      longitude float8 NOT NULL
    )`)
})

const audit = Migrator.fromRecord({
  "1_event": statement(`
    CREATE TABLE event (
      id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
      at timestamptz NOT NULL DEFAULT now(),
      what text NOT NULL,
      subject text NOT NULL,
      request text NOT NULL
    )`)
})

/**
 * Creates the tables of both databases, which may be one database on the server. If several instances start at the same time, one of them
 * creates the tables, and the others wait.
 */
export const run = Migrations.runAll([
  Migrations.on(Db, { loader: app, table: "app_migrations" }),
  Migrations.on(Audit, { loader: audit, table: "audit_migrations" })
])
