/**
 * The COMMIT of a transaction in a sandbox. On the server it is the release of a savepoint, so the
 * steps here do before it what the server does at a COMMIT: they check the deferred constraints, and
 * end the settings of SET LOCAL.
 */
import { constantStep, type Step } from "../protocol/frontendMessages.js"
import { restoreSetting, saveSetting } from "../sql/localSettings.js"

const none: ReadonlyArray<never> = []

/** Executes the deferred triggers, among them those that check constraints. */
export const checkConstraints: Step = constantStep("SET CONSTRAINTS ALL IMMEDIATE")

/**
 * Defers the constraints again that are deferred at the begin of a transaction. `SET CONSTRAINTS ALL
 * DEFERRED` would defer all that are deferrable, and a savepoint around the check would undo the work
 * of triggers. A command needs the names of the constraints, so it is built on the server.
 *
 * A name stands for all constraints of that name in a schema. A constraint is left out, and stays
 * immediate, if another one of the same name is not deferred at first; and if the user has no right to
 * use its schema.
 */
const deferAgain = constantStep(`DO $effect_db$
DECLARE names text;
BEGIN
  SELECT pg_catalog.string_agg(pg_catalog.format('%I.%I', n.nspname, c.conname), ', ') INTO names
  FROM pg_catalog.pg_constraint c JOIN pg_catalog.pg_namespace n ON n.oid = c.connamespace
  WHERE c.condeferred AND NOT pg_catalog.pg_is_other_temp_schema(n.oid)
    AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
    AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_constraint o
      WHERE o.conname = c.conname AND o.connamespace = c.connamespace AND NOT o.condeferred
    );
  IF names IS NOT NULL THEN EXECUTE 'SET CONSTRAINTS ' || names || ' DEFERRED'; END IF;
END $effect_db$`)

/** Returns the steps before the release of the savepoint, given the settings to end. */
export const emulateCommit = (localSettings: Iterable<string> = none): ReadonlyArray<Step> =>
  // a role of SET LOCAL is restored before the names of the constraints are looked up
  [checkConstraints, ...Array.from(localSettings, restoreSetting), deferAgain]

/** Returns the steps before a statement, given the settings that it sets for its transaction. */
export const saveSettings = (localSettings: ReadonlySet<string>): ReadonlyArray<Step> =>
  Array.from(localSettings, saveSetting)
