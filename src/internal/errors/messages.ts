/**
 * The messages of the errors of `DatabaseError`: what happened, on which database and server, and
 * what to do about it.
 */
import {
  type ConnectReason,
  cancelAdvice,
  limitAdvice,
  lockAdvice,
  type Outcome,
  stateAdvice,
  tlsAdvice
} from "../../SqlState.js"
import { type FailedStatement, statementLines } from "../sql/excerpt.js"
import {
  attemptsText,
  type Caused,
  causeText,
  failureText,
  hasProperty,
  type Location,
  locationText,
  type Repeated
} from "./messageParts.js"

interface Setting {
  readonly database: string
  readonly setting: string
  readonly given: string
  readonly expected: string
}

export const configInvalid = ({ database, expected, given, setting }: Setting): string =>
  `${database === "" ? "" : `database "${database}": `}setting "${setting}" is ${given}; expected ${expected}`

const connectAdvice: Readonly<Record<Exclude<ConnectReason, "tls">, string>> = {
  unreachable: "no server answered: check host, port and network, and that the server is running",
  unresponsive: "the server did not answer in time: it may be stopped or overloaded",
  authentication: "the server rejected the user or password: check the credentials and pg_hba.conf",
  tooManyConnections: "the server has no connection left: lower maxConnections or raise max_connections",
  startingUp: "the server is starting up, shutting down or recovering: try again later",
  noSuchDatabase: "the server has no database of that name: create it or correct the URL",
  wrongRole:
    "the server does not have the role that the settings ask for: check writer and readers, and mode if there is a pooler",
  poolerMode: 'the address is that of a pooler in transaction mode: set mode: "transactionPooler"',
  credentials: "there is no user or password to log in with: check the settings, `credentials` or `passwordFile`",
  setup: "`onConnect` or `onCheckout` failed on the new connection: check what it runs",
  protocol: "the answer is not PostgreSQL's protocol, or exceeds a limit: check host and port, and any proxy in between"
}

/**
 * Returns the code of an error or of its cause, which is the error of the last host if there are
 * several.
 */
const codeOf = (cause: unknown): string | undefined => {
  const inner = hasProperty(cause, "cause") ? cause.cause : undefined
  const coded = [cause, inner].find((error) => hasProperty(error, "code"))
  return hasProperty(coded, "code") && typeof coded.code === "string" ? coded.code : undefined
}

export const connectFailed = (self: Caused & { readonly reason: ConnectReason }): string => {
  const advice = self.reason === "tls" ? tlsAdvice(codeOf(self.cause)) : connectAdvice[self.reason]
  return `${locationText(self)}: cannot connect (${self.reason})${causeText(self)} - ${advice}`
}

const exhaustedAdvice = {
  timeout: "hold connections for less time, or raise maxConnections",
  shed: "the pool is overloaded: slow the callers down, or raise maxConnections or queueTarget",
  single: "the strategy assertSingle allows one connection at a time: check it in first, or use another strategy",
  outage: "the server is unavailable, and maxOutageWaiters callers wait for it: try again later, or raise the limit"
} as const

interface Exhausted extends Location {
  readonly reason: keyof typeof exhaustedAdvice
  readonly waitedMillis: number
  readonly total: number
  readonly active: number
  readonly idle: number
  readonly waiting: number
  readonly connecting?: { readonly count: number; readonly longestMillis: number } | undefined
  readonly lastConnectFailure?: string | undefined
  readonly longestCheckout?:
    | { readonly heldMillis: number; readonly fiber?: string | undefined; readonly location?: string | undefined }
    | undefined
}

export const poolExhausted = (self: Exhausted): string => {
  const { active, connecting, idle, lastConnectFailure, longestCheckout, reason, total, waiting } = self
  const connects =
    connecting === undefined
      ? ""
      : `; connects in progress: ${connecting.count}, the longest for ${Math.round(connecting.longestMillis)} ms`
  const lastConnect = lastConnectFailure === undefined ? "" : `; the last connect failed: ${lastConnectFailure}`
  const checkout =
    longestCheckout === undefined
      ? ""
      : `; the longest checkout has been held for ${Math.round(longestCheckout.heldMillis)} ms` +
        (longestCheckout.fiber === undefined ? "" : ` by fiber ${longestCheckout.fiber}`) +
        (longestCheckout.location === undefined ? "" : ` at ${longestCheckout.location}`)
  const advice =
    reason === "timeout" && (active < total || total === 0)
      ? "the server may not be answering: check if it is stopped or overloaded"
      : exhaustedAdvice[reason]
  return (
    `${locationText(self)}: no connection became free within ${Math.round(self.waitedMillis)} ms ` +
    `(total ${total}, active ${active}, idle ${idle}, waiting ${waiting})${connects}${lastConnect}${checkout} - ${advice}`
  )
}

export const poolSelfDeadlock = (self: Location & { readonly maxConnections: number }): string =>
  `${locationText(self)}: a second connection is needed while this fiber holds one, ` +
  `and all ${self.maxConnections} are in use - raise maxConnections, or do not nest with requiresNew or independent`

export const databaseClosed = (self: Location & { readonly notYet?: boolean | undefined }): string =>
  self.notYet === true
    ? `${locationText(self)} is not open yet - wait for \`open()\` before the first use`
    : `${locationText(self)} is closed - use it only while its layer is open`

const outcomeAdvice: Readonly<Record<Outcome, string>> = {
  notSent: "nothing was sent: it is safe to retry",
  undone: "no change was kept: it is safe to retry",
  inDoubt: "the outcome is unknown: check whether the write was applied before retrying"
}

export const disconnected = (self: Caused & FailedStatement & Repeated & { readonly outcome: Outcome }): string =>
  `${locationText(self)}: the connection was lost${causeText(self)}${attemptsText(self)} - ` +
  `${outcomeAdvice[self.outcome]}${statementLines(self)}`

/** Returns the message of a refused statement, with the server's hint. */
export const violation = (self: Caused & FailedStatement & { readonly hint?: string | undefined }): string =>
  `${locationText(self)}${causeText(self)}${self.hint === undefined ? "" : ` - ${self.hint}`}${statementLines(self)}`

interface Refused extends Caused, FailedStatement, Repeated {
  readonly hint?: string | undefined
  readonly sqlState?: string | undefined
}

/**
 * Returns the message of a refused statement with its SQLSTATE, and the server's hint or else the
 * advice of this library.
 */
export const queryFailed = (self: Refused): string => {
  const state = self.sqlState === undefined ? "" : ` (${self.sqlState})`
  const hint = self.hint ?? (self.sqlState === undefined ? undefined : stateAdvice(self.sqlState))
  return (
    `${locationText(self)}${causeText(self)}${state}${attemptsText(self)}` +
    `${hint === undefined ? "" : ` - ${hint}`}${statementLines(self)}`
  )
}

const collisionAdvice = {
  schedule:
    "let fewer transactions write the same rows at a time, lock the rows first, or give `retry` a longer schedule",
  budget: "too much work fails on this database: try again later, or raise `budget` of the RetryPolicy"
} as const

/** Returns the message of a transaction that collided with another one. */
export const collision = (self: Caused & FailedStatement & Repeated): string => {
  const advice =
    self.retried === undefined
      ? "run the whole transaction again, or set its option `retry`"
      : collisionAdvice[self.retried.endedBy]
  return `${locationText(self)}${causeText(self)}${attemptsText(self)} - ${advice}${statementLines(self)}`
}

type Limited = Location & FailedStatement & { readonly limit: string }

const limited =
  (adviceFor: (limit: string) => string) =>
  (self: Limited): string =>
    `${locationText(self)}: ${self.limit} - ${adviceFor(self.limit)}${statementLines(self)}`

export const statementTimeout = limited(cancelAdvice)
export const lockTimeout = limited(lockAdvice)
export const idleTransactionTimeout = limited(limitAdvice)

const readOnlyAdvice = {
  reader: "run it through the writer",
  transaction:
    'its transaction has access "read only": begin the transaction without that option, or write in another one',
  server: "the server is a standby, or it or the session is read-only: check the address of the writer, or try again"
} as const

export const readOnlyViolation = (
  self: Caused & FailedStatement & { readonly reason: keyof typeof readOnlyAdvice }
): string => `${locationText(self)}${causeText(self)} - ${readOnlyAdvice[self.reason]}${statementLines(self)}`

export const commitFailed = (self: Caused): string =>
  `${locationText(self)}: the server refused COMMIT, so the transaction was rolled back${causeText(self)}`

export const commitVetoed = (self: Caused): string =>
  `${locationText(self)}: a beforeCommit hook failed, so the transaction was rolled back${failureText(self)}`

export const rolledBackAtCommit = (self: Caused & { readonly part?: string | undefined }): string =>
  self.part === undefined
    ? `${locationText(self)}: the transaction was rolled back, because a statement in it had failed${causeText(self)}` +
      " - let the failure end the transaction, or run a statement that may fail in a nested transaction"
    : `${locationText(self)}: the whole was rolled back, because a part that had joined it (${self.part}) ` +
      `ended in rollback${failureText(self)} - let the failure of the part fail the whole, ` +
      "or run the part in UnitOfWork.nested"

export const commitOutcomeUnknown = (self: Caused): string =>
  `${locationText(self)}: the connection was lost during COMMIT${causeText(self)}` +
  " - check whether its changes are stored before retrying"

export const transactionEnded = (self: Caused & { readonly by?: "COMMIT" | "ROLLBACK" | undefined }): string =>
  self.by === undefined
    ? `${locationText(self)}: the transaction has ended${causeText(self)} - join forked fibers before its end, ` +
      "or run work that outlives it in UnitOfWork.outside (with promises: in `outside` of the runtime)"
    : `${locationText(self)}: a statement with ${self.by} ended the transaction, and the work before it was ` +
      `${self.by === "COMMIT" ? "committed" : "rolled back"}${causeText(self)} - ` +
      "let withTransaction or the unit of work end the transaction"

/** The length of the excerpt of an interrupted statement, in characters. */
const maxStatementLength = 200

interface Interrupted extends Location {
  readonly statement: string
  readonly callSite?: string | undefined
}

export const transactionInterrupted = (self: Interrupted): string => {
  const { callSite, statement } = self
  const text = statement.length > maxStatementLength ? `${statement.slice(0, maxStatementLength)}...` : statement
  return (
    `${locationText(self)}: the program interrupted a statement of the transaction` +
    `${callSite === undefined ? "" : ` at ${callSite}`}, so it was rolled back: ${text}` +
    " - run work that may be interrupted, such as by a timeout, in a nested transaction"
  )
}

export const transactionBusy = (self: Location & { readonly waitedMillis: number }): string =>
  self.waitedMillis === 0
    ? `${locationText(self)}: the transaction cannot be committed while other work in it is in progress` +
      " - wait for that work first"
    : `${locationText(self)}: a nested transaction did not end within ${self.waitedMillis} ms, and the outer one waits for it` +
      " - join forked fibers before the end, and let no nested transaction wait for its siblings"

interface NotCaughtUp {
  readonly database: string
  readonly waitedMillis: number
  readonly unproved: ReadonlyArray<string>
}

export const noReplicaCaughtUp = ({ database, unproved, waitedMillis }: NotCaughtUp): string => {
  const servers =
    unproved.length === 0
      ? ""
      : `; ${unproved.join(", ")} did not report a position: a replica must stream, without a pooler in between, ` +
        "and its user needs pg_read_all_stats"
  return (
    `database "${database}": no replica caught up with the required position within ${Math.round(waitedMillis)} ms${servers}` +
    " - wait longer, or allow reads from the primary"
  )
}

export const tokenFromLostTimeline = (self: Location & { readonly timeline: number }): string =>
  `${locationText(self)}: the token is of a lost timeline (${self.timeline}), or of another database` +
  " - check on the primary whether the writes before the token are there, and take a new token"

export const foreignClient = (self: Location): string =>
  `${locationText(self)}: another SQL client was used inside a transaction of this database` +
  " - wrap its use in Database.isolate, or use it outside of the transaction"

interface PropagationConflict extends Location {
  readonly propagation: "mandatory" | "never" | "commit" | "rollback"
}

export const propagationRefused = (self: PropagationConflict): string => {
  switch (self.propagation) {
    case "mandatory":
      return `${locationText(self)}: propagation "mandatory" needs a transaction, and there is none - call it inside of one`
    case "never":
      return `${locationText(self)}: propagation "never" allows no transaction, and there is one - call it outside`
    default:
      return (
        `${self.database === "" ? "" : `${locationText(self)}: `}${self.propagation} ends the transactions of a unit of work` +
        " - inside of withTransaction and of UnitOfWork.nested, let the effect succeed or fail instead"
      )
  }
}

interface Conflict extends Location {
  readonly option: string
  readonly outer: string
  readonly inner: string
}

export const optionsConflict = (self: Conflict): string => {
  const { inner, option, outer } = self
  const location = self.database === "" ? "" : `${locationText(self)}: `
  switch (option) {
    case "outcome":
      return (
        `${location}${inner} with its own outcome joined ${outer}, which ends it` +
        " - set outcome on the outer middleware, or remove one of the two"
      )
    case "retry":
      return (
        `${location}a part with retry joined a whole that cannot be run again` +
        ' - set retry on the whole, or use propagation "requiresNew"'
      )
    default:
      return (
        `${location}a transaction with ${option} "${inner}" cannot join one with "${outer}"` +
        ' - use the same value, or propagation "requiresNew"'
      )
  }
}

interface Partial extends Caused {
  readonly committed: ReadonlyArray<string>
  readonly failed: string
  readonly outcome: "rolledBack" | "unknown"
}

export const partialCommit = (self: Partial): string =>
  `${locationText(self)}: the unit of work may be stored in part: ${self.committed.join(", ")} committed, ` +
  `${self.failed} ${self.outcome === "unknown" ? "may have committed or not" : "was rolled back"}${causeText(self)}` +
  " - the program must repeat or undo the missing part"

interface InvalidText {
  readonly database: string
  readonly given: string
  readonly expected: string
}

export const notificationInvalid = (self: InvalidText & { readonly part: "channel" | "payload" }): string =>
  `database "${self.database}": the ${self.part === "channel" ? "channel name" : "payload"} is ${self.given}; ` +
  `expected ${self.expected}`

export const schemaInvalid = ({ database, expected, given }: InvalidText): string =>
  `database "${database}": the schema of withSchema or withTenant is ${given}; expected ${expected}`

interface Copy extends Location, FailedStatement {
  readonly table: string
  readonly line: number
  readonly column?: string | undefined
}

/**
 * Returns the message of a refused COPY. `cause` is the innermost refusal, without the statement.
 */
export const copyFailed = (self: Copy, cause: unknown): string => {
  const { column, database, line, server, table } = self
  return (
    `${locationText(self)}: COPY into ${table}, line ${line}${column === undefined ? "" : `, column ${column}`}` +
    `${causeText({ database, server, cause })} - no row was stored${statementLines(self)}`
  )
}

const listenAdvice = {
  disconnected: "notifications may have been missed: listen again, then read the tables",
  overflow:
    "it was too slow and notifications were dropped: move slow work elsewhere, listen again, then read the tables"
} as const

interface FailedListener extends Caused {
  readonly channel: string
  readonly reason: keyof typeof listenAdvice
}

export const listenFailed = (self: FailedListener): string =>
  `${locationText(self)}: the listener of channel "${self.channel}" failed${causeText(self)} - ` +
  listenAdvice[self.reason]
