/**
 * The table of the markers of COMMITs and the keys of requests, and the check that it can be used.
 *
 * A COMMIT writes its marker by a function, not by an INSERT. The server refuses an INSERT in a
 * read-only transaction even if it inserts no row, and the role that the program has set would need
 * the right to insert.
 */
import type { Connection, Failure } from "../connection/connection.js"
import { maintenanceQuery } from "../connection/statementRequest.js"
import { constantStep, step } from "../protocol/frontendMessages.js"

const none: ReadonlyArray<never> = []

/** The key of the advisory lock of the creation, which no two processes may do at the same time. */
const lockKey = "7306920148392116584"

const createSchema = "CREATE SCHEMA IF NOT EXISTS effect_db"

const createTable = `CREATE TABLE IF NOT EXISTS effect_db.outcome (
  id pg_catalog.uuid PRIMARY KEY,
  at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  is_fence pg_catalog.bool NOT NULL DEFAULT false,
  fingerprint pg_catalog.text,
  answer pg_catalog.text
)`

/** The index for the deletion of keys, whose ids contain no time. */
const createIndex = "CREATE INDEX IF NOT EXISTS outcome_key_at ON effect_db.outcome (at) WHERE fingerprint IS NOT NULL"

// the functions need no SET search_path: the only name in them has its schema
const createMark = `CREATE OR REPLACE FUNCTION effect_db.mark_commit(pg_catalog.uuid) RETURNS pg_catalog.bool
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  INSERT INTO effect_db.outcome (id) VALUES ($1);
  RETURN true;
END
$$`

const createKeep = `CREATE OR REPLACE FUNCTION effect_db.keep_key(pg_catalog.uuid, pg_catalog.text, pg_catalog.text)
RETURNS pg_catalog.bool
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
  INSERT INTO effect_db.outcome (id, fingerprint, answer) VALUES ($1, $2, $3);
  RETURN true;
END
$$`

/** The commands that create the table and its functions if they do not exist, for one transaction. */
export const createCommands: ReadonlyArray<string> = [
  `SELECT pg_catalog.pg_advisory_xact_lock(${lockKey})`,
  createSchema,
  createTable,
  createIndex,
  createMark,
  createKeep
]

/** The grants that a user needs, as a message shows them. */
const grants =
  "GRANT USAGE ON SCHEMA effect_db, and SELECT, INSERT, UPDATE and DELETE ON effect_db.outcome, to the user"

/** The query of the table, its functions and the rights of the user. */
const stateRequest = maintenanceQuery(`SELECT pg_catalog.pg_is_in_recovery(),
  c.oid IS NOT NULL AND p.oid IS NOT NULL AND k.oid IS NOT NULL, n.oid IS NOT NULL,
  pg_catalog.has_schema_privilege(n.oid, 'USAGE')
    AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE') AND pg_catalog.has_function_privilege(k.oid, 'EXECUTE')
    AND pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_table_privilege(c.oid, 'INSERT')
    AND pg_catalog.has_table_privilege(c.oid, 'UPDATE') AND pg_catalog.has_table_privilege(c.oid, 'DELETE')
FROM (SELECT 1) o
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname OPERATOR(pg_catalog.=) 'effect_db'
LEFT JOIN pg_catalog.pg_class c ON c.relnamespace OPERATOR(pg_catalog.=) n.oid
  AND c.relname OPERATOR(pg_catalog.=) 'outcome'
LEFT JOIN pg_catalog.pg_proc p ON p.pronamespace OPERATOR(pg_catalog.=) n.oid
  AND p.proname OPERATOR(pg_catalog.=) 'mark_commit'
LEFT JOIN pg_catalog.pg_proc k ON k.pronamespace OPERATOR(pg_catalog.=) n.oid
  AND k.proname OPERATOR(pg_catalog.=) 'keep_key'`)

/**
 * Result of the check of the table.
 *
 * - `ready`: COMMITs can be marked.
 * - `standby`: the server takes no writes, so it has nothing to mark.
 * - `late`: the check was not done in time, for example because another session holds a lock.
 * - an error: the table cannot be used, or the connection is lost.
 */
export type OutcomeTableState = "ready" | "standby" | "late" | { readonly failure: Failure } | { readonly fault: Error }

type OnState = (state: OutcomeTableState) => void

/**
 * Checks on an idle connection that the table can be used. If the table or one of its functions is
 * missing and `creates` is true, it is created.
 */
export const prepareOutcomeTable = (connection: Connection, creates: boolean, callback: OnState): void => {
  connection.run(none, stateRequest, none, (failure, exchange) => {
    if (failure !== undefined) return callback({ failure })
    const row = exchange.result.rows[0]
    const [isStandby, exists, hasSchema, isGranted]: ReadonlyArray<unknown> = Array.isArray(row) ? row : none
    if (isStandby === "t") return callback("standby")
    if (isGranted === "t") return callback("ready")
    if (exists === "t") {
      const fault = new Error(`the user may not use the table effect_db.outcome: ${grants}`)
      return callback({ fault })
    }
    if (!creates) {
      const fault = new Error(
        `the table effect_db.outcome or a function of it does not exist: create it with Migrations.outcomeTable, then ${grants}`
      )
      return callback({ fault })
    }
    create(connection, hasSchema === "t", callback)
  })
}

const commit = constantStep("COMMIT")
const rollback = [constantStep("ROLLBACK")]

const create = (connection: Connection, hasSchema: boolean, callback: OnState): void => {
  // CREATE SCHEMA IF NOT EXISTS needs the right to create schemas even if the schema exists
  const commands = hasSchema ? createCommands.filter((text) => text !== createSchema) : createCommands
  const steps = [constantStep("BEGIN READ WRITE"), ...commands.map(step), commit]
  connection.steps(steps, (failure) => {
    if (failure === undefined) return callback("ready")
    if (failure._tag !== "refused") return callback({ failure })
    const fault = new Error(
      `the table effect_db.outcome does not exist and cannot be created: ${failure.error.message} - ` +
        `create it with Migrations.outcomeTable as another user, then ${grants}`,
      { cause: failure.error }
    )
    if (connection.status === "I") return callback({ fault })
    connection.undo(rollback, () => callback({ fault }))
  })
}
