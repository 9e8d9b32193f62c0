/**
 * Observations in the words of a log.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as LogLevel from "effect/LogLevel"
import * as Runtime from "effect/Runtime"
import * as Tracer from "effect/Tracer"
import { Observation } from "../../Observation.js"
import { isWarning } from "../../SqlState.js"
import { locationText } from "../errors/parts.js"

/** The level of a log message, and what happened. */
interface Line {
  readonly level: LogLevel.LogLevel
  readonly what: string
}

const debug = (what: string): Line => ({ level: LogLevel.Debug, what })
const info = (what: string): Line => ({ level: LogLevel.Info, what })
const warning = (what: string): Line => ({ level: LogLevel.Warning, what })

const ms = (millis: number): string => `${millis < 10 ? millis.toFixed(1) : Math.round(millis)} ms`

const ends = {
  committed: "committed",
  rolledBack: "rolled back",
  failed: "failed",
  unknown: "committed or not, nobody can tell,"
} as const

/** A fact without words does not compile. */
const line: (observation: Observation) => Line = Observation.$match({
  Connected: ({ processId, took }) => info(`connection ${processId} was opened in ${ms(took)}`),
  ConnectFailed: ({ message, reason }) => warning(`no connection (${reason}): ${message}`),
  Closed: ({ processId, reason }) => info(`connection ${processId} is closed (${reason})`),
  Lost: ({ message, processId }) => warning(`connection ${processId} was lost: ${message}`),
  Noticed: ({ message, processId, severity, sqlState }) => {
    const what = `connection ${processId}: ${severity}: ${message}`
    return isWarning(sqlState, severity) ? warning(what) : info(what)
  },
  CheckedOut: ({ processId, waited }) => debug(`connection ${processId} was handed out after ${ms(waited)}`),
  CheckedIn: ({ processId, used }) => debug(`connection ${processId} came back after ${ms(used)}`),
  Reset: ({ processId }) => debug(`connection ${processId} was reset`),
  // under overload these are too many to be news, and each caller has his own error
  Exhausted: ({ reason, waited }) => debug(`a caller got no connection (${reason}) after ${ms(waited)}`),
  Leaked: ({ fiber = "unknown", held, place, processId }) =>
    warning(
      `connection ${processId} is held since ${ms(held)} by fiber ${fiber}${place === undefined ? "" : ` at ${place}`}`
    ),
  Invalidated: ({ connections, mode }) => info(`${connections} connections were invalidated (${mode})`),
  CredentialsRotated: ({ generation }) => info(`other credentials are in force (generation ${generation})`),
  PassedOver: ({ reason }) =>
    reason === "unproved"
      ? warning(
          "it does not prove what it has, so the primary is read in its place: its user needs pg_read_all_stats, it has to stream from the primary, and to be reached without a transaction pooler"
        )
      : debug(`a read passed it over (${reason})`),
  ListenLost: ({ message, processId }) => warning(`the listening connection ${processId} was lost: ${message}`),
  ListenRetried: ({ attempt, message, pause }) =>
    info(`listening is tried again (${attempt}) in ${ms(pause)}: ${message}`),
  ListenRestored: ({ attempts, took }) => info(`it listens again after ${ms(took)} and ${attempts} attempts`),
  ListenOverflowed: ({ channel }) => warning(`a listener of "${channel}" is too slow: it misses messages`),
  MarkedDown: ({ message }) => warning(`the server is left out: ${message}`),
  MarkedUp: () => info("the server takes part again"),
  Retried: ({ attempt, message, what }) => info(`${what} is tried again (${attempt}): ${message}`),
  RetryExhausted: ({ attempts, endedBy, message, what }) =>
    warning(
      `${what} is not tried again after ${attempts} attempt${attempts === 1 ? "" : "s"}` +
        `${endedBy === "budget" ? ", for the retry budget is used up" : ""}: ${message}`
    ),
  TransactionEnded: ({ label, outcome, took }) =>
    debug(`transaction${label === undefined ? "" : ` "${label}"`} ${ends[outcome]} after ${ms(took)}`),
  // an error in the log already, whether there is an echo or not
  HookFailed: ({ hook, message }) => info(`an ${hook} hook failed: ${message}`)
})

/** What a program can search for. The message is in the words, and a logger may have a field of that name. */
const annotations = ({ _tag, ...facts }: Observation): Record<string, unknown> => ({
  event: _tag,
  ...Object.fromEntries(Object.entries(facts).filter(([key, value]) => key !== "message" && value !== undefined))
})

/**
 * What logs observations from a level on: with the loggers, the minimum level and the annotations of the fiber that asks for it, whoever
 * makes the observation, and at once, so that the order and the times are right.
 */
export const makeLogger = (from: LogLevel.LogLevel): Effect.Effect<(observation: Observation) => void> =>
  Effect.map(Effect.runtime<never>(), (runtime) => {
    // the span in which the database is opened ends long before most of what is logged
    const run = Runtime.runFork(Runtime.updateContext(runtime, Context.omit(Tracer.ParentSpan)))
    return (observation) => {
      const { level, what } = line(observation)
      if (LogLevel.lessThan(level, from)) return
      run(
        Effect.logWithLevel(level, `${locationText({ server: "", ...observation })}: ${what}`).pipe(
          Effect.annotateLogs(annotations(observation)),
          // a logger that throws is the program's affair; it must not reach the socket that brought the news
          Effect.catchAllCause(() => Effect.void)
        )
      )
    }
  })
