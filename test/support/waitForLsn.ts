/**
 * The command `WAIT FOR LSN` of PostgreSQL 19 in front of a standby of an older version: a proxy
 * reports version 19, and gives the command to a function that waits for the replay.
 */
import * as Effect from "effect/Effect"
import type { Message, Proxy } from "./proxy.js"
import { query } from "./server.js"

/** The form of the command in PostgreSQL's documentation, with the options that are used. */
const command = /^WAIT FOR LSN '([0-9A-F]{1,8}\/[0-9A-F]{1,8})' WITH \(TIMEOUT '(\d+)ms', NO_THROW\)$/

const waitFunction = `CREATE FUNCTION wait_for_lsn(target pg_lsn, millis int) RETURNS text LANGUAGE plpgsql AS $$
DECLARE deadline timestamptz := clock_timestamp() + millis * interval '1 ms';
BEGIN
  LOOP
    IF NOT pg_is_in_recovery() THEN RETURN 'not in recovery'; END IF;
    IF pg_last_wal_replay_lsn() >= target THEN RETURN 'success'; END IF;
    IF clock_timestamp() > deadline THEN RETURN 'timeout'; END IF;
    PERFORM pg_sleep(0.001);
  END LOOP;
END $$`

/** Creates the function that waits, on the primary. */
export const createWaitFunction = (primary: Parameters<typeof query>[0]) => query(primary, waitFunction)

const encode = (type: string, body: string): Buffer => {
  const bytes = Buffer.from(`${body}\0`)
  const head = Buffer.alloc(5)
  head.write(type)
  head.writeInt32BE(4 + bytes.length, 1)
  return Buffer.concat([head, bytes])
}

const version = encode("S", "server_version\x0019.0")

/** The commands that have passed a proxy. */
export interface Commands {
  readonly count: () => number
  /** The number of connections that have sent one. */
  readonly connections: () => number
}

/**
 * Makes a proxy report version 19, and replace each command by the statement that `sql` returns; without
 * `sql` by a call of the function, with `"as it is"` by nothing.
 */
export const emulateWaitForLsn = (
  proxy: Proxy,
  sql: "as it is" | ((lsn: string, millis: string) => string) = (lsn, millis) =>
    `SELECT wait_for_lsn('${lsn}', ${millis}) AS status`
): Effect.Effect<Commands> => {
  const seen: Array<number> = []
  const change = ({ bytes, connection, from, type }: Message): Buffer | undefined => {
    if (from === "server" && type === "S" && bytes.includes("server_version\0")) return version
    if (from === "server" || type !== "Q") return undefined
    const [, lsn, millis] = command.exec(bytes.toString("utf8", 5, bytes.length - 1)) ?? []
    if (lsn === undefined || millis === undefined) return undefined
    seen.push(connection)
    return sql === "as it is" ? undefined : encode("Q", sql(lsn, millis))
  }
  return Effect.as(proxy.replace(change), {
    count: () => seen.length,
    connections: () => new Set(seen).size
  })
}
