/**
 * Observations as messages of a log.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as LogLevel from "effect/LogLevel"
import * as Runtime from "effect/Runtime"
import * as Tracer from "effect/Tracer"
import { Observation } from "../../Observation.js"
import { isWarning } from "../../SqlState.js"
import { locationText } from "../errors/messageParts.js"

/** Message of a log, with its log level. */
interface LogMessage {
  readonly logLevel: LogLevel.LogLevel
  readonly text: string
}

const debug = (text: string): LogMessage => ({ logLevel: LogLevel.Debug, text })
const info = (text: string): LogMessage => ({ logLevel: LogLevel.Info, text })
const warning = (text: string): LogMessage => ({ logLevel: LogLevel.Warning, text })

const ms = (millis: number): string => `${millis < 10 ? millis.toFixed(1) : Math.round(millis)} ms`

const outcomes = {
  committed: "committed",
  rolledBack: "rolled back",
  failed: "failed",
  unknown: "ended with unknown outcome"
} as const

const plural = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? "" : "s"}`

const nameOfWork = (what: "acquire" | "statement" | "transaction"): string => (what === "acquire" ? "checkout" : what)

/**
 * Returns the message of an observation. The code does not compile if a kind of observation has no
 * message.
 */
const messageOf: (observation: Observation) => LogMessage = Observation.$match({
  Connected: ({ processId, tookMillis }) => info(`connection ${processId} was opened in ${ms(tookMillis)}`),
  ConnectFailed: ({ message, reason }) => warning(`connect failed (${reason}): ${message}`),
  Closed: ({ processId, reason }) => info(`connection ${processId} was closed (${reason})`),
  Lost: ({ message, processId }) => warning(`connection ${processId} was lost: ${message}`),
  Noticed: ({ message, processId, severity, sqlState }) => {
    const text = `connection ${processId}: ${severity}: ${message}`
    return isWarning(sqlState, severity) ? warning(text) : info(text)
  },
  CheckedOut: ({ processId, waitedMillis }) =>
    debug(`connection ${processId} was checked out after ${ms(waitedMillis)}`),
  CheckedIn: ({ processId, usedMillis }) => debug(`connection ${processId} was checked in after ${ms(usedMillis)}`),
  Reset: ({ processId }) => debug(`connection ${processId} was reset`),
  // not a warning: there are many of these during an overload, and each caller gets an error
  Exhausted: ({ reason, waitedMillis }) => debug(`a caller got no connection (${reason}) within ${ms(waitedMillis)}`),
  Leaked: ({ fiber = "unknown", heldMillis, location, processId }) =>
    warning(
      `connection ${processId} has been held for ${ms(heldMillis)} by fiber ${fiber}` +
        (location === undefined ? "" : ` at ${location}`)
    ),
  Invalidated: ({ connections, mode }) => info(`${plural(connections, "connection")} invalidated (${mode})`),
  CredentialsRotated: ({ generation }) => info(`new credentials are in use (generation ${generation})`),
  PassedOver: ({ reason }) =>
    reason === "unproved"
      ? warning(
          "the server cannot prove its position, so reads that must see certain writes pass it over: it must stream from the primary, this program must connect to it without a transaction pooler, and its user needs pg_read_all_stats"
        )
      : debug(`a read passed over the server (${reason})`),
  ListenLost: ({ message, processId }) => warning(`the listening connection ${processId} was lost: ${message}`),
  ListenRetried: ({ attempt, message, pauseMillis }) =>
    info(`attempt ${attempt} to listen again starts in ${ms(pauseMillis)}: ${message}`),
  ListenRestored: ({ attempts, tookMillis }) =>
    info(`listening again after ${ms(tookMillis)} and ${plural(attempts, "attempt")}`),
  ListenOverflowed: ({ channel }) => warning(`the buffer of a listener of "${channel}" is full: messages are dropped`),
  WriterChanged: ({ from, timeline, to, tookMillis }) =>
    warning(
      `${to} is the writer${timeline === undefined ? "" : ` on timeline ${timeline}`}${from === undefined ? "" : `, in place of ${from}, after ${ms(tookMillis)}`}`
    ),
  OutcomesNotDeleted: ({ message }) => warning(`old rows of effect_db.outcome could not be deleted: ${message}`),
  PreparedLeft: ({ gid, message }) => warning(`the prepared transaction ${gid} is not ended: ${message}`),
  PreparedMissing: ({ gid }) =>
    warning(
      `the unit of work is committed, but its prepared transaction ${gid} does not exist on this server: if a failover has lost the transaction, its work is missing in this database`
    ),
  RecoveryFailed: ({ message }) =>
    warning(`the prepared transactions could not be listed, and are not ended: ${message}`),
  PreparedRecovered: ({ gid, outcome }) => info(`the prepared transaction ${gid} was found and ended (${outcome})`),
  HostsChanged: ({ added, removed }) =>
    info(
      `the hosts of the cluster have changed: ${[...added.map((host) => `added ${host}`), ...removed.map((host) => `removed ${host}`)].join(", ")}`
    ),
  DiscoveryFailed: ({ message }) => warning(`the hosts could not be discovered, so the known ones stay: ${message}`),
  FellBehind: ({ lagBytes, lagMillis }) =>
    warning(
      Number.isFinite(lagBytes)
        ? `the server is ${ms(lagMillis)} and ${plural(lagBytes, "byte")} behind the primary, so reads use others`
        : "the server does not replay the log of the primary, so reads use others"
    ),
  CaughtUp: () => info("the server has caught up with the primary"),
  MarkedDown: ({ message }) => warning(`the server is marked down: ${message}`),
  MarkedUp: () => info("the server is marked up"),
  Retried: ({ attempt, message, what }) => info(`${nameOfWork(what)} is retried after attempt ${attempt}: ${message}`),
  RetryExhausted: ({ attempts, endedBy, message, what }) =>
    warning(
      `${nameOfWork(what)} is not retried after ${plural(attempts, "attempt")}` +
        `${endedBy === "budget" ? ", because the retry budget is used up" : ""}: ${message}`
    ),
  TransactionEnded: ({ label, outcome, tookMillis }) =>
    debug(`transaction${label === undefined ? "" : ` "${label}"`} ${outcomes[outcome]} after ${ms(tookMillis)}`),
  // not a warning: a failed hook is logged as an error already, with or without `echo`
  HookFailed: ({ hook, message }) => info(`a hook failed (${hook}): ${message}`)
})

/**
 * Returns the fields of an observation as annotations, without `message`. The text of the log has
 * the message already, and a logger may have a field of that name.
 */
const annotations = ({ _tag, ...facts }: Observation): Record<string, unknown> => ({
  event: _tag,
  ...Object.fromEntries(Object.entries(facts).filter(([key, value]) => key !== "message" && value !== undefined))
})

/**
 * Makes a function that logs observations of a log level or above. It uses the loggers, the minimum
 * log level and the annotations of the fiber that runs this effect. It logs during the call, so
 * that the order and the times of the messages are right.
 */
export const makeLogger = (lowest: LogLevel.LogLevel): Effect.Effect<(observation: Observation) => void> =>
  Effect.map(Effect.runtime<never>(), (runtime) => {
    // without the span in which the database is opened, which ends before most messages are logged
    const run = Runtime.runFork(Runtime.updateContext(runtime, Context.omit(Tracer.ParentSpan)))
    return (observation) => {
      const { logLevel, text } = messageOf(observation)
      if (LogLevel.lessThan(logLevel, lowest)) return
      run(
        Effect.logWithLevel(logLevel, `${locationText({ server: "", ...observation })}: ${text}`).pipe(
          Effect.annotateLogs(annotations(observation)),
          // the code of a socket may have made the observation, and must not get the exception of a
          // logger
          Effect.catchAllCause(() => Effect.void)
        )
      )
    }
  })
