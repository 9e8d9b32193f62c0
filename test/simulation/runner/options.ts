/**
 * The options of `npm run simulate`.
 */
import { availableParallelism } from "node:os"
import { parseArgs } from "node:util"

export const usage = `npm run simulate -- [options]            the library on a virtual clock, a simulated network and scripted servers
npm run simulate -- --planted            proves that each fault planted in a copy of the library is found within a minute

  --seed N         the seed; the same seed gives the same episodes (default: a new one, which is printed)
  --hours N        the simulated hours (default 20)
  --seconds N      ends after so many real seconds, if the hours are not over (default: no limit)
  --workers N      the number of processes (default: the number of cores, 4 at most)
  --no-shrink      does not shrink a failing episode
  --twice          runs each episode twice, and fails if their traces differ
  --help           prints this text

replay of one episode, as a failure prints it
  --episode N      the number of the episode
  --until MS       ends the work after so many virtual milliseconds
  --faults N,N     injects only the faults of these numbers; "none" for no faults
  --calls N-N      makes only the calls from the first to the last number
  --trace          prints every line of the trace

planted faults
  --only NAME      plants only the fault of this name

exit code: 0 if all invariants hold, 1 if one is violated, 2 for invalid options`

/** Error of an option. */
export class InvalidOption extends Error {}

/** Options of a run. */
export interface RunOptions {
  readonly seed: number
  readonly hours: number
  readonly seconds: number
  readonly workers: number
  readonly shrinks: boolean
  readonly twice: boolean
  readonly isHelp: boolean
  readonly isPlanted: boolean
  readonly only: string | undefined
  readonly isTraced: boolean
  readonly episode: number | undefined
  readonly until: number | undefined
  readonly faults: ReadonlyArray<number> | undefined
  readonly calls: { readonly first: number; readonly last: number } | undefined
}

const definitions = {
  seed: { type: "string" },
  hours: { type: "string" },
  seconds: { type: "string" },
  workers: { type: "string" },
  "no-shrink": { type: "boolean", default: false },
  twice: { type: "boolean", default: false },
  episode: { type: "string" },
  until: { type: "string" },
  faults: { type: "string" },
  calls: { type: "string" },
  trace: { type: "boolean", default: false },
  planted: { type: "boolean", default: false },
  only: { type: "string" },
  help: { type: "boolean", default: false }
} as const

const numberOf = (name: string, text: string, isWhole: boolean, least: number): number => {
  const value = Number(text)
  const isValid =
    text.trim() !== "" && Number.isFinite(value) && value >= least && (!isWhole || Number.isSafeInteger(value))
  if (isValid) return value
  throw new InvalidOption(`--${name} is ${isWhole ? "a whole number" : "a number"} from ${least}, not "${text}"`)
}

const faultsOf = (text: string): ReadonlyArray<number> =>
  text === "none" ? [] : text.split(",").map((one) => numberOf("faults", one, true, 0))

const callsOf = (text: string): { readonly first: number; readonly last: number } => {
  const [, first, last] = /^(\d+)-(\d+)$/.exec(text) ?? []
  if (first === undefined || last === undefined) throw new InvalidOption(`--calls is FIRST-LAST, not "${text}"`)
  return { first: Number(first), last: Number(last) }
}

/** Reads the options, or throws `InvalidOption`. */
export const readOptions = (args: ReadonlyArray<string>): RunOptions => {
  let values: ReturnType<typeof parse>
  try {
    values = parse(args)
  } catch (cause) {
    throw new InvalidOption(cause instanceof Error ? cause.message : String(cause))
  }
  const whole = (name: "episode" | "until" | "seed" | "workers", least: number): number | undefined => {
    const text = values[name]
    return text === undefined ? undefined : numberOf(name, text, true, least)
  }
  const { calls, faults, hours, seconds } = values
  const episode = whole("episode", 0)
  const isReplay = values.until !== undefined || faults !== undefined || calls !== undefined || values.trace
  if (isReplay && episode === undefined)
    throw new InvalidOption("--until, --faults, --calls and --trace need --episode")
  if (episode !== undefined && values.seed === undefined) throw new InvalidOption("--episode needs --seed")
  if (values.only !== undefined && !values.planted) throw new InvalidOption("--only needs --planted")
  return {
    seed: whole("seed", 0) ?? Date.now() % 1_000_000_000,
    hours: hours === undefined ? 20 : numberOf("hours", hours, false, 0.1),
    seconds: seconds === undefined ? Number.POSITIVE_INFINITY : numberOf("seconds", seconds, false, 1),
    workers: whole("workers", 1) ?? Math.min(4, availableParallelism()),
    shrinks: !values["no-shrink"],
    twice: values.twice,
    isHelp: values.help,
    isPlanted: values.planted,
    only: values.only,
    isTraced: values.trace,
    episode,
    until: whole("until", 1),
    faults: faults === undefined ? undefined : faultsOf(faults),
    calls: calls === undefined ? undefined : callsOf(calls)
  }
}

const parse = (args: ReadonlyArray<string>) => parseArgs({ args: [...args], options: definitions }).values
