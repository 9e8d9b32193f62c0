/**
 * The state of a stopped server, from its control file.
 */
import * as path from "node:path"
import * as Effect from "effect/Effect"
import * as Files from "./noFollowFiles.js"

/** The value of `state` after a clean shutdown of a primary, `DB_SHUTDOWNED` of PostgreSQL. */
const cleanlyStopped = 1

/**
 * Returns the position of the shutdown checkpoint, the last record of a primary that was stopped
 * cleanly. Returns `undefined` if the server was killed, or was a standby.
 *
 * The file is read here because `pg_controldata` is not among the programs. Its first fields have
 * been the same since PostgreSQL 11.
 */
export const shutdownCheckpoint = (data: string) =>
  Files.read(path.join(data, "global", "pg_control"), 40).pipe(
    Effect.map((control) => (control?.readUInt32LE(16) === cleanlyStopped ? control.readBigUInt64LE(32) : undefined))
  )
