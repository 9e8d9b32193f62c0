/**
 * The meaning of SQLSTATEs, of error codes of Node, and of messages of the server, a pooler and the
 * driver. No other module of this library interprets them.
 *
 * @since 0.1.0
 */

/**
 * Meaning of a SQLSTATE for a program.
 *
 * SQLSTATEs that need no handling of their own are `"QueryFailed"`.
 *
 * @see {@link meaning}, which returns it
 * @since 0.1.0
 * @category models
 */
export type Meaning =
  | "UniqueViolation"
  | "ForeignKeyViolation"
  | "CheckViolation"
  | "NotNullViolation"
  | "ExclusionViolation"
  | "SerializationFailure"
  | "DeadlockDetected"
  | "StatementTimeout"
  | "LockTimeout"
  | "IdleTransactionTimeout"
  | "ReadOnlyViolation"
  | "Disconnected"
  | "InvalidInput"
  | "QueryFailed"

/**
 * Reason of a failed connect.
 *
 * @see `DatabaseError.ConnectFailed`, which carries it
 * @since 0.1.0
 * @category models
 */
export type ConnectReason =
  | "unreachable"
  | "unresponsive"
  | "authentication"
  | "tls"
  | "tooManyConnections"
  | "startingUp"
  | "noSuchDatabase"
  | "wrongRole"
  | "credentials"
  | "setup"
  | "poolerMode"
  | "protocol"
  | "outcomeTable"

/**
 * Outcome of a statement that has lost its connection.
 *
 * - `notSent`: the statement was not sent.
 * - `undone`: the server kept no change.
 * - `inDoubt`: the outcome is unknown.
 *
 * @see `DatabaseError.Disconnected`, which carries it
 * @since 0.1.0
 * @category models
 */
export type Outcome = "notSent" | "undone" | "inDoubt"

const meanings: ReadonlyMap<string, Meaning> = new Map<string, Meaning>([
  ["23505", "UniqueViolation"],
  ["23503", "ForeignKeyViolation"],
  ["23514", "CheckViolation"],
  ["23502", "NotNullViolation"],
  ["23P01", "ExclusionViolation"],
  ["40001", "SerializationFailure"],
  ["40P01", "DeadlockDetected"],
  ["57014", "StatementTimeout"],
  ["55P03", "LockTimeout"],
  ["25P03", "IdleTransactionTimeout"],
  ["25P04", "IdleTransactionTimeout"],
  ["25006", "ReadOnlyViolation"],
  ["57P01", "Disconnected"],
  ["57P02", "Disconnected"],
  ["57P05", "Disconnected"]
])

/** The SQLSTATE of all messages of PgBouncer itself. */
const poolerState = "08P01"

/**
 * Returns the meaning of a SQLSTATE.
 *
 * `57014` (query_canceled) is `"StatementTimeout"`. Its cause is the server's own timeout or an
 * administrator's `pg_cancel_backend`: a cancel by this library is not reported to a caller.
 *
 * @see {@link refusalMeaning} and {@link lossMeaning}, which also read the message
 * @example
 * ```ts
 * import { SqlState } from "effect-db"
 *
 * console.log(SqlState.meaning("23505")) // "UniqueViolation"
 * ```
 *
 * @since 0.1.0
 * @category classification
 */
export const meaning = (sqlState: string): Meaning => meanings.get(sqlState) ?? classMeaning(sqlState)

const classMeaning = (sqlState: string): Meaning => {
  if (sqlState.startsWith("08")) return "Disconnected"
  return sqlState.startsWith("22") ? "InvalidInput" : "QueryFailed"
}

/**
 * Returns the meaning of the last message of a lost connection.
 *
 * PgBouncer uses one SQLSTATE for all its messages, so the text decides as well.
 *
 * @see {@link refusalMeaning} for a refused statement
 * @example
 * ```ts
 * import { SqlState } from "effect-db"
 *
 * console.log(SqlState.lossMeaning("57P01", "terminating connection due to administrator command")) // "Disconnected"
 * console.log(SqlState.lossMeaning("08P01", "idle transaction timeout")) // "IdleTransactionTimeout"
 * ```
 *
 * @since 0.1.0
 * @category classification
 */
export const lossMeaning = (sqlState: string, message: string): Meaning =>
  sqlState === poolerState && message.startsWith("idle transaction timeout")
    ? "IdleTransactionTimeout"
    : meaning(sqlState)

/**
 * Returns the meaning of the refusal of a statement.
 *
 * A standby that cancels a read because of a conflict with recovery uses the SQLSTATE of other
 * cancels, so the text decides as well.
 *
 * @see {@link lossMeaning} for a lost connection
 * @example
 * ```ts
 * import { SqlState } from "effect-db"
 *
 * const message = "canceling statement due to conflict with recovery"
 * console.log(SqlState.refusalMeaning("57014", message)) // "SerializationFailure"
 * ```
 *
 * @since 0.2.0
 * @category classification
 */
export const refusalMeaning = (sqlState: string, message: string): Meaning => {
  const means = meaning(sqlState)
  return means === "StatementTimeout" && message.includes("conflict with recovery") ? "SerializationFailure" : means
}

/**
 * Checks if a pooler closed a connection before any server had received the last statement: all
 * its server connections were in use for too long, the assigned server connection was lost, or the
 * pooler could not connect to the server or log in.
 *
 * Such a statement was not sent, so another attempt is safe.
 *
 * @see {@link lossMeaning} for any other loss
 * @example
 * ```ts
 * import { SqlState } from "effect-db"
 *
 * console.log(SqlState.isUnserved("08P01", "query_wait_timeout")) // true
 * ```
 *
 * @since 0.1.0
 * @category classification
 */
export const isUnserved = (sqlState: string, message: string): boolean =>
  sqlState === poolerState &&
  /^(?:query_wait_timeout|invalid server parameter)|\(server_login_retry\)|^pgbouncer cannot connect/.test(message)

/**
 * Checks if a statement was refused only because an earlier one in its transaction had failed.
 *
 * @see `DatabaseError.QueryFailed`, whose cause then has the first failure as its cause
 * @example
 * ```ts
 * import { SqlState } from "effect-db"
 *
 * console.log(SqlState.isAborted("25P02")) // true
 * ```
 *
 * @since 0.2.0
 * @category classification
 */
export const isAborted = (sqlState: string): boolean => sqlState === "25P02"

/**
 * Checks if a notice is a warning, by its severity or its SQLSTATE. One of them is enough, because a
 * function may set any SQLSTATE, and a server may name the severity in any language.
 *
 * @internal
 */
export const isWarning = (sqlState: string, severity: string): boolean =>
  severity === "WARNING" || sqlState.startsWith("01")

/**
 * Returns the advice for a cancelled statement, by the text of the server. A text in another
 * language than English gets both kinds of advice.
 *
 * @internal
 */
export const cancelAdvice = (message: string): string => {
  const raise = "make the statement faster, or raise statementTimeout"
  const cancelled = "an administrator or another program cancelled it"
  if (message.includes("statement timeout")) return raise
  return message.includes("user request") ? cancelled : `${raise}; or ${cancelled}`
}

/** The codes of a certificate from an issuer that is not trusted. */
const unknownAuthority: ReadonlySet<string> = new Set([
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "UNABLE_TO_GET_ISSUER_CERT",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
  "CERT_UNTRUSTED"
])

/**
 * Returns the advice for a failed TLS handshake, by the code of Node's error.
 *
 * @internal
 */
export const tlsAdvice = (code: string | undefined): string => {
  if (code !== undefined && unknownAuthority.has(code)) {
    return (
      "the issuer of the server's certificate is not trusted: give the issuer's certificate with sslrootcert=FILE in the URL " +
      "or with ssl: { ca }; sslmode=no-verify or ssl: { rejectUnauthorized: false } encrypts without verification"
    )
  }
  return code === "ERR_TLS_CERT_ALTNAME_INVALID"
    ? "connect by a name in the certificate, or verify the chain alone with sslmode=verify-ca"
    : "TLS could not be established: check the certificate, and sslmode in the URL or `ssl`"
}

/**
 * Returns the advice for a lock that was not free, by the text of the server.
 *
 * @internal
 */
export const lockAdvice = (message: string): string => {
  const raise = "try again, or raise lockTimeout"
  const wait = "another transaction holds the lock: try again, or omit NOWAIT to wait"
  if (message.includes("lock timeout")) return raise
  return message.startsWith("could not obtain lock") ? wait : `${raise}; or ${wait}`
}

/**
 * Returns the advice for a transaction that exceeded a time limit, by the text of the server.
 *
 * @internal
 */
export const limitAdvice = (message: string): string => {
  const isOpen = /\btransaction timeout/.test(message) && !/\bidle\b/.test(message)
  return isOpen
    ? "make the transaction shorter, or raise the server's transaction_timeout"
    : "do slow work outside of the transaction"
}

/**
 * Returns the advice for a SQLSTATE, if there is any, for an error without a hint of the server.
 *
 * @internal
 */
export const stateAdvice = (sqlState: string): string | undefined => advice.get(sqlState)

const pooled = 'a pooler in transaction mode may be in between: set mode: "transactionPooler"'

const advice: ReadonlyMap<string, string> = new Map([
  ["25P02", "let a failed statement end its transaction, or run it in a nested transaction"],
  ["26000", pooled],
  ["42P05", pooled]
])

/**
 * Checks if a transaction may succeed when it is run again from its start, by the server's
 * SQLSTATE.
 *
 * @see `RetryPolicy.isReplayable` for an error
 * @example
 * ```ts
 * import { SqlState } from "effect-db"
 *
 * console.log(SqlState.isReplayable("40001")) // true: serialization_failure
 * console.log(SqlState.isReplayable("23505")) // false: unique_violation
 * ```
 *
 * @since 0.1.0
 * @category classification
 */
export const isReplayable = (sqlState: string): boolean => {
  const means = meaning(sqlState)
  return means === "SerializationFailure" || means === "DeadlockDetected"
}

/**
 * Checks if a prepared statement must be prepared again: the session does not know it, its result
 * type has changed, or a type of its parameters was dropped.
 *
 * @see {@link isReplayable} for other refusals after which another attempt may succeed
 * @example
 * ```ts
 * import { SqlState } from "effect-db"
 *
 * console.log(SqlState.isStalePlan("0A000", "cached plan must not change result type")) // true
 * ```
 *
 * @since 0.1.0
 * @category classification
 */
export const isStalePlan = (sqlState: string, message: string): boolean =>
  sqlState === "26000" ||
  (sqlState === "0A000" && message.includes("cached plan")) ||
  (sqlState === "XX000" && message.startsWith("cache lookup failed for type "))

/**
 * Checks if a function has refused the value of a parameter, such as the id of a transaction that
 * does not exist.
 *
 * @internal
 */
export const isInvalidParameter = (sqlState: string): boolean => sqlState === "22023"

/**
 * Checks if a statement was refused because its table or schema does not exist.
 *
 * @internal
 */
export const isMissing = (sqlState: string): boolean => sqlState === "42P01" || sqlState === "3F000"

/**
 * Checks if a server does not know the object of a command, such as a prepared transaction.
 *
 * @internal
 */
export const isUndefinedObject = (sqlState: string): boolean => sqlState === "42704"

/**
 * The codes of the failures that the layers for tests cause.
 *
 * @internal
 */
export const faultCodes = {
  refusedConnect: "ECONNREFUSED",
  reset: "ECONNRESET",
  unknownStatement: "26000",
  wrongPassword: "28P01",
  lockNotAvailable: "55P03",
  featureNotSupported: "0A000"
} as const

/**
 * Checks if a command on a database was refused because sessions or prepared transactions use it.
 *
 * @internal
 */
export const isInUse = (sqlState: string): boolean => sqlState === "55006"

/**
 * Checks if a database has the name that a command would give to another one.
 *
 * @internal
 */
export const isDuplicateDatabase = (sqlState: string): boolean => sqlState === "42P04"

/**
 * Checks if a command names a database that does not exist.
 *
 * @internal
 */
export const isUndefinedDatabase = (sqlState: string): boolean => sqlState === "3D000"

/**
 * Checks if the server's system refused an operation, such as a way of copying a file that the file
 * system does not have.
 *
 * @internal
 */
export const isSystemRefusal = (sqlState: string): boolean => sqlState === "XX000"

/**
 * Checks if a statement ended because a client cancelled it, and not because of the server's own
 * limit.
 *
 * A server that reports in another language than English is not recognised.
 *
 * @see {@link meaning} for both cases together
 * @example
 * ```ts
 * import { SqlState } from "effect-db"
 *
 * console.log(SqlState.isCancelled("57014", "canceling statement due to user request")) // true
 * console.log(SqlState.isCancelled("57014", "canceling statement due to statement timeout")) // false
 * ```
 *
 * @since 0.2.0
 * @category classification
 */
export const isCancelled = (sqlState: string, message: string): boolean =>
  meaning(sqlState) === "StatementTimeout" && message.endsWith("due to user request")

/**
 * Checks if the proof of a server's role failed. The statement that proves the role then casts a
 * text, which names the reason, to a number on purpose.
 *
 * @internal
 */
export const isUnproved = (sqlState: string): boolean => sqlState === "22P02"

const connectReasons: ReadonlyMap<string, ConnectReason> = new Map<string, ConnectReason>([
  ["28P01", "authentication"],
  ["28000", "authentication"],
  ["3D000", "noSuchDatabase"],
  ["53300", "tooManyConnections"],
  ["57P03", "startingUp"],
  ["57P01", "startingUp"],
  ["57P02", "startingUp"],
  ["ERR_TLS_CERT_ALTNAME_INVALID", "tls"],
  ["ERR_SSL_WRONG_VERSION_NUMBER", "tls"],
  ["DEPTH_ZERO_SELF_SIGNED_CERT", "tls"],
  ["SELF_SIGNED_CERT_IN_CHAIN", "tls"],
  ["UNABLE_TO_GET_ISSUER_CERT", "tls"],
  ["UNABLE_TO_GET_ISSUER_CERT_LOCALLY", "tls"],
  ["UNABLE_TO_VERIFY_LEAF_SIGNATURE", "tls"],
  ["CERT_HAS_EXPIRED", "tls"],
  ["CERT_NOT_YET_VALID", "tls"],
  ["CERT_UNTRUSTED", "tls"],
  ["HOSTNAME_MISMATCH", "tls"],
  // even if the message mentions TLS, as during a handshake
  ["ECONNRESET", "unreachable"],
  ["ETIMEDOUT", "unresponsive"]
])

/**
 * The messages of PgBouncer, and of a server that refused PgBouncer. PgBouncer sends both with its
 * own SQLSTATE.
 */
const poolerReasons: ReadonlyArray<readonly [text: RegExp, reason: ConnectReason]> = [
  [/max_client_conn|too many (clients|connections)|connection slots/, "tooManyConnections"],
  [/server_login_retry|is disabled|starting up|shutting down|recovery|not (yet )?accepting/, "startingUp"],
  [/query_wait_timeout/, "unresponsive"],
  [/^no such database|^database ".*" does not exist/, "noSuchDatabase"],
  [/authentication failed|no such user|login rejected|^role |pg_hba/, "authentication"],
  // a pooler in transaction mode refuses the parameters of a session
  [/^unsupported startup parameter/, "poolerMode"]
]

/**
 * Returns the reason of a failed connect.
 *
 * `code` is a SQLSTATE, or a code of Node or OpenSSL, and `message` the message of the driver's
 * error.
 *
 * @see {@link isTransient} to decide about a retry
 * @example
 * ```ts
 * import { SqlState } from "effect-db"
 *
 * console.log(SqlState.connectReason("28P01", "password authentication failed for user \"me\"")) // "authentication"
 * console.log(SqlState.connectReason("ECONNREFUSED", "connect ECONNREFUSED 127.0.0.1:5432")) // "unreachable"
 * ```
 *
 * @since 0.1.0
 * @category classification
 */
export const connectReason = (code: string, message: string): ConnectReason => {
  const known = connectReasons.get(code)
  if (known !== undefined) return known
  const pooler = code === poolerState ? poolerReasons.find(([text]) => text.test(message)) : undefined
  if (pooler !== undefined) return pooler[1]
  if (/\bSSL\b|\bTLS\b|certificate/i.test(message) || code.startsWith("ERR_SSL") || code.startsWith("ERR_TLS"))
    return "tls"
  if (/SASL|password|authentication/i.test(message)) return "authentication"
  return "unreachable"
}

/**
 * Checks if a server is running but not ready.
 *
 * The start of a database waits for such a server, up to `connectTimeout`, and for a writer also
 * while it is unreachable.
 *
 * @see {@link isTransient} for all reasons after which another attempt may succeed
 * @example
 * ```ts
 * import { SqlState } from "effect-db"
 *
 * console.log(SqlState.isNotYet("startingUp")) // true
 * console.log(SqlState.isNotYet("unreachable")) // false
 * ```
 *
 * @since 0.1.0
 * @category classification
 */
export const isNotYet = (reason: ConnectReason): boolean => reason === "startingUp" || reason === "tooManyConnections"

/** The reasons after which another attempt would fail, too, on this server or another. */
const permanent: ReadonlySet<ConnectReason> = new Set([
  "authentication",
  "noSuchDatabase",
  "tls",
  "setup",
  "poolerMode",
  "protocol",
  "outcomeTable"
])

/**
 * Checks if another attempt to connect may succeed, on this server or another, without a change by
 * an operator.
 *
 * @see {@link isNotYet} for a server that is about to be ready
 * @see {@link connectReason}, which returns the reason
 * @example
 * ```ts
 * import { SqlState } from "effect-db"
 *
 * console.log(SqlState.isTransient("unreachable")) // true
 * console.log(SqlState.isTransient("authentication")) // false
 * ```
 *
 * @since 0.1.0
 * @category classification
 */
export const isTransient = (reason: ConnectReason): boolean => !permanent.has(reason)

/**
 * The codes of a file that stays unreadable. `ENOENT` is not among them, because a missing file may
 * be about to be replaced.
 */
const lastingFileCodes = new Set(["EACCES", "EPERM", "ELOOP", "EISDIR"])

/**
 * Checks if a file stays unreadable until an operator corrects it, by the code of Node's error.
 *
 * @internal
 */
export const isLastingFile = (code: string): boolean => lastingFileCodes.has(code)

/**
 * Checks if a file does not exist, by the code of Node's error.
 *
 * @internal
 */
export const isMissingFile = (code: string | undefined): boolean => code === "ENOENT"
