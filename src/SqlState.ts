/**
 * What the signs of a server and a driver mean. The only place that knows SQLSTATEs, Node error codes and driver messages.
 *
 * @since 0.1.0
 */

/**
 * What a SQLSTATE means for a program. Everything that no program acts upon is `"QueryFailed"`.
 *
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
 * Why no connection could be made.
 *
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

/**
 * What became of a statement whose connection was lost: it was never sent, it is undone for certain, or nobody can tell.
 *
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

/** What PgBouncer says of everything. */
const poolerState = "08P01"

/**
 * The meaning of a SQLSTATE.
 *
 * `57014` (query_canceled) is `"StatementTimeout"`: a statement that this library has cancelled itself has no caller left who could see
 * it, so the server's own timeout and an administrator's `pg_cancel_backend` are what is left.
 *
 * @example
 * import { SqlState } from "effect-db"
 *
 * console.log(SqlState.meaning("23505")) // "UniqueViolation"
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
 * What the last words of a connection mean. PgBouncer has one SQLSTATE for all that it says itself, so its words count.
 *
 * @since 0.1.0
 * @category classification
 */
export const lossMeaning = (sqlState: string, message: string): Meaning =>
  sqlState === poolerState && message.startsWith("idle transaction timeout")
    ? "IdleTransactionTimeout"
    : meaning(sqlState)

/**
 * What the refusal of a statement means. A standby cancels a read that stands in the way of what it has to replay; under the SQLSTATE of
 * other cancels its words tell.
 *
 * @since 0.2.0
 * @category classification
 */
export const refusalMeaning = (sqlState: string, message: string): Meaning => {
  const means = meaning(sqlState)
  return means === "StatementTimeout" && message.includes("conflict with recovery") ? "SerializationFailure" : means
}

/**
 * Whether a pooler ended a connection before any server had seen what was sent last: all its server connections were in use for too long,
 * the one that it chose was gone, or it could not log in to a server.
 *
 * @since 0.1.0
 * @category classification
 */
export const isUnserved = (sqlState: string, message: string): boolean =>
  sqlState === poolerState &&
  /^(?:query_wait_timeout|invalid server parameter)|\(server_login_retry\)|^pgbouncer cannot connect/.test(message)

/**
 * Whether a statement was refused only because one before it in the transaction had failed.
 *
 * @since 0.2.0
 * @category classification
 */
export const isAborted = (sqlState: string): boolean => sqlState === "25P02"

/**
 * Whether a notice is a warning. A function may give it any SQLSTATE, and a server its name in any language.
 *
 * @internal
 */
export const isWarning = (sqlState: string, severity: string): boolean =>
  severity === "WARNING" || sqlState.startsWith("01")

/**
 * The advice for a statement that the server has cancelled, by the server's words; where they are in another language it is of both kinds.
 *
 * @internal
 */
export const cancelAdvice = (message: string): string => {
  const raise = "make the statement faster, or raise statementTimeout"
  const cancelled = "an administrator or another program cancelled it"
  if (message.includes("statement timeout")) return raise
  return message.includes("user request") ? cancelled : `${raise}; or ${cancelled}`
}

/** The codes of a certificate of which no authority is known that could have issued it. */
const unknownAuthority: ReadonlySet<string> = new Set([
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "UNABLE_TO_GET_ISSUER_CERT",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
  "CERT_UNTRUSTED"
])

/**
 * The advice for a connection without TLS, by the code of Node's error.
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
 * The advice for a lock that was not free.
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
 * The advice for a transaction that was ended for its time.
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
 * The advice for a SQLSTATE where the server gives no hint, if there is any.
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
 * Whether the server's answer means that the transaction may be run again from its start and may then succeed.
 *
 * @since 0.1.0
 * @category classification
 */
export const isReplayable = (sqlState: string): boolean => {
  const means = meaning(sqlState)
  return means === "SerializationFailure" || means === "DeadlockDetected"
}

/**
 * Whether a prepared statement has to be prepared again: it is unknown to the session, its result type has changed, or a type of its
 * parameters was dropped.
 *
 * @since 0.1.0
 * @category classification
 */
export const isStalePlan = (sqlState: string, message: string): boolean =>
  sqlState === "26000" ||
  (sqlState === "0A000" && message.includes("cached plan")) ||
  (sqlState === "XX000" && message.startsWith("cache lookup failed for type "))

/**
 * Whether a statement ended because a client asked for it, and not for the server's own limit. A server that speaks another language than
 * English says so in other words, and is not understood.
 *
 * @since 0.2.0
 * @category classification
 */
export const isCancelled = (sqlState: string, message: string): boolean =>
  meaning(sqlState) === "StatementTimeout" && message.endsWith("due to user request")

/**
 * Whether the proof of a server's role failed: a text, that says why, was read as a number.
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
  // also where it comes with words about TLS, as it does in the middle of a handshake
  ["ECONNRESET", "unreachable"],
  ["ETIMEDOUT", "unresponsive"]
])

/** The words of PgBouncer, and those of a server that refused PgBouncer, which passes them on under a SQLSTATE of its own. */
const poolerReasons: ReadonlyArray<readonly [words: RegExp, reason: ConnectReason]> = [
  [/max_client_conn|too many (clients|connections)|connection slots/, "tooManyConnections"],
  [/server_login_retry|is disabled|starting up|shutting down|recovery|not (yet )?accepting/, "startingUp"],
  [/query_wait_timeout/, "unresponsive"],
  [/^no such database|^database ".*" does not exist/, "noSuchDatabase"],
  [/authentication failed|no such user|login rejected|^role |pg_hba/, "authentication"],
  // a session was asked for, and a pooler has none to give
  [/^unsupported startup parameter/, "poolerMode"]
]

/**
 * Why a connect failed, from the code (a SQLSTATE, a Node or an OpenSSL code) and the message of the driver's error.
 *
 * @since 0.1.0
 * @category classification
 */
export const connectReason = (code: string, message: string): ConnectReason => {
  const known = connectReasons.get(code)
  if (known !== undefined) return known
  const said = code === poolerState ? poolerReasons.find(([words]) => words.test(message)) : undefined
  if (said !== undefined) return said[1]
  if (/\bSSL\b|\bTLS\b|certificate/i.test(message) || code.startsWith("ERR_SSL") || code.startsWith("ERR_TLS"))
    return "tls"
  if (/SASL|password|authentication/i.test(message)) return "authentication"
  return "unreachable"
}

/**
 * Whether the server is there and said "not yet": the only reasons for which waiting is better than failing at start-up.
 *
 * @since 0.1.0
 * @category classification
 */
export const isNotYet = (reason: ConnectReason): boolean => reason === "startingUp" || reason === "tooManyConnections"

/** The reasons that another attempt meets again, on this server or another. */
const permanent: ReadonlySet<ConnectReason> = new Set([
  "authentication",
  "noSuchDatabase",
  "tls",
  "setup",
  "poolerMode",
  "protocol"
])

/**
 * Whether another attempt to connect may go better, on this server or another: everything but what a person must mend.
 *
 * @since 0.1.0
 * @category classification
 */
export const isTransient = (reason: ConnectReason): boolean => !permanent.has(reason)

/** The codes of a file that is no different the next time; one that is missing may be about to be replaced. */
const lastingFileCodes = new Set(["EACCES", "EPERM", "ELOOP", "EISDIR"])

/**
 * Whether a file that could not be read is to be mended by a person, from the code of Node's error.
 *
 * @internal
 */
export const isLastingFile = (code: string): boolean => lastingFileCodes.has(code)

/**
 * Whether a file is not there, from the code of Node's error.
 *
 * @internal
 */
export const isMissingFile = (code: string | undefined): boolean => code === "ENOENT"
