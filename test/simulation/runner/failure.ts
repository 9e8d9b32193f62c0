/**
 * The report of a violated invariant.
 */
import type { EpisodeResult } from "../work/episode.js"
import type { EpisodeOptions } from "../work/settings.js"

/** The number of lines of the trace that are printed. */
const shownLines = 40

/** Returns the arguments that replay an episode. */
export const replayArguments = (seed: number, episode: number, options: EpisodeOptions): string => {
  const { faults, firstCall = 0, lastCall, until } = options
  const parts = [`--seed ${seed}`, `--episode ${episode}`]
  if (until !== undefined) parts.push(`--until ${until}`)
  if (faults !== undefined) parts.push(`--faults ${faults.length === 0 ? "none" : faults.join(",")}`)
  if (firstCall > 0 || lastCall !== undefined) parts.push(`--calls ${firstCall}-${(lastCall ?? 1_000_000) - 1}`)
  return parts.join(" ")
}

/** Returns the text about a violation. */
export const describeFailure = ({ hash, trace, violation }: EpisodeResult, replay: string): string =>
  [
    "",
    `violated: ${violation?.invariant}`,
    violation?.message,
    `step ${violation?.step}, virtual time ${((violation?.at ?? 0) / 1000).toFixed(3)} s, trace ${hash}`,
    "the last part of the trace, in ms:",
    ...trace.slice(-shownLines).map((line) => `  ${line}`),
    `replay: npm run simulate -- ${replay}`
  ].join("\n")
