/**
 * The names of the databases that tests create. A name says to which run a database belongs, and a
 * command that creates a database sets the name with it, so that no database is ever without an
 * owner, even if the process is killed. A comment would be set by a second command.
 */
import { createHash, randomBytes } from "node:crypto"

const digest = (text: string): string => createHash("sha256").update(text).digest("hex")

/** Returns a number of 64 bits, as SQL writes it, for 16 hexadecimal digits. */
const lockKeyOf = (digits: string): string => BigInt.asIntN(64, BigInt(`0x${digits}`)).toString()

/** Run: the use of one open database by tests, with the databases that they create on its server. */
export class RunNames {
  /** The identity of the run: 16 hexadecimal digits. */
  private readonly id = randomBytes(8).toString("hex")
  private count = 0

  /** The advisory lock that the sessions of the run hold for as long as it lives. */
  readonly lockKey = lockKeyOf(this.id)

  /** The pattern of the names of the run, for `LIKE`. */
  readonly pattern = `effect\\_db\\_${this.id}\\_%`

  /** Returns a name that no database has. */
  next(): string {
    return `effect_db_${this.id}_${++this.count}`
  }
}

/** The SQL condition that a database belongs to a run. */
export const isOfRun = "d.datname ~ '^effect_db_[0-9a-f]{16}_[0-9]+$'"

/** The SQL expression for the identity of the run of a database. */
export const runOfName = "substring(d.datname FROM 11 FOR 16)"

/** The SQL condition that a database is a template. */
export const isTemplate = "d.datname ~ '^effect_db_template_[0-9a-f]{24}$'"

/** Returns the name of the template of some parts: the user, the database and the caller's hash. */
export const templateName = (...parts: ReadonlyArray<string>): string =>
  `effect_db_template_${digest(JSON.stringify(parts)).slice(0, 24)}`

/** Returns the advisory lock under which a template is created. */
export const templateLock = (name: string): string => lockKeyOf(digest(name).slice(0, 16))

/** Mark of a database, in its comment, with the time when it was set. */
export type Mark = "kept" | "used"

/** The SQL expression for the time of the mark of a database; NULL if it has none. */
export const markedAt =
  "to_timestamp(substring(shobj_description(d.oid, 'pg_database') FROM '^effect-db: (?:kept|used) at ([0-9]{1,12})$')::bigint)"

/** The SQL condition that a database is kept for the developer, because its test has failed. */
export const isKept = "coalesce(shobj_description(d.oid, 'pg_database') LIKE 'effect-db: kept at %', false)"

/** Returns the command that sets the mark of a database, with the server's time. */
export const markSql = (name: string, mark: Mark): string =>
  `DO $$ BEGIN EXECUTE format('COMMENT ON DATABASE %I IS %L', '${name}', ` +
  `'effect-db: ${mark} at ' || extract(epoch FROM now())::bigint); END $$`
