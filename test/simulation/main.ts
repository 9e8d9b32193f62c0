/**
 * `npm run simulate`: runs the real library on a virtual clock, a simulated network and scripted
 * servers, with random faults, and checks that no invariant is violated.
 */
import { fileURLToPath } from "node:url"
import { describeFailure, replayArguments } from "./runner/failure.js"
import { InvalidOption, type RunOptions, readOptions, usage } from "./runner/options.js"
import { findPlanted } from "./runner/planted.js"
import { shrink } from "./runner/shrink.js"
import { episodeOf, Simulation } from "./runner/simulation.js"
import { Worker } from "./runner/worker.js"
import type { EpisodeResult } from "./work/episode.js"
import type { EpisodeOptions } from "./work/settings.js"

const folder = fileURLToPath(new URL("./", import.meta.url))

/** The most runs of a shrinking. */
const maxShrinkRuns = 60

/** Runs an episode in a fresh process. */
const runFresh = async (options: EpisodeOptions): Promise<EpisodeResult> => {
  const worker = new Worker(folder)
  try {
    return await worker.run(options)
  } finally {
    worker.stop()
  }
}

/** Prints a failing episode, and shrinks it. */
const reportFailure = async (seed: number, episode: number, first: EpisodeResult, shrinks: boolean): Promise<void> => {
  const options = episodeOf(seed, episode)
  console.log(describeFailure(first, replayArguments(seed, episode, options)))
  if (!shrinks) return
  const again = await runFresh(options)
  const { violation } = again
  if (violation === undefined || again.hash !== first.hash) {
    console.log(
      "the episode does not fail in the same way in a process of its own: the simulation is not deterministic"
    )
    if (violation === undefined) return
  }
  console.log("shrinking ...")
  const smallest = await shrink({ options, result: { ...again, violation } }, runFresh, maxShrinkRuns, (smaller) => {
    console.log(`fails as well: ${replayArguments(seed, episode, smaller.options)}`)
  })
  console.log(describeFailure(smallest.result, replayArguments(seed, episode, smallest.options)))
}

/** Replays one episode. */
const replay = async (run: RunOptions, episode: number): Promise<boolean> => {
  const { calls, faults, seed, until } = run
  const worker = new Worker(folder, (line) => console.log(line))
  const options: EpisodeOptions = {
    ...episodeOf(seed, episode),
    until,
    faults,
    firstCall: calls?.first,
    lastCall: calls === undefined ? undefined : calls.last + 1
  }
  const result = await worker.run({ ...options, isTraced: run.isTraced })
  worker.stop()
  console.log(`trace ${result.hash}, ${result.steps} steps, ${result.calls} calls`)
  if (result.violation === undefined) return true
  console.log(describeFailure(result, replayArguments(seed, episode, options)))
  return false
}

const simulate = async (run: RunOptions): Promise<boolean> => {
  const { hours, seconds, seed, shrinks, twice, workers } = run
  console.log(`seed ${seed}, ${hours} hours, ${workers} processes`)
  let shownAt = performance.now()
  const simulation = new Simulation({
    folder,
    seed,
    episodeOf,
    episodes: Math.ceil(hours),
    limit: seconds * 1000,
    workers,
    twice,
    onProgress: (totals) => {
      if (performance.now() - shownAt < 5000) return
      shownAt = performance.now()
      console.log(totals.progress())
    }
  })
  process.once("SIGINT", () => {
    simulation.stop()
    console.log(`\ninterrupted\n${simulation.totals.report()}`)
    process.exit(130)
  })
  const { failure, totals } = await simulation.run()
  console.log(`${totals.report()}\nseed ${seed}`)
  if (failure === undefined) return true
  await reportFailure(seed, failure.episode, failure.result, shrinks)
  return false
}

const main = async (): Promise<number> => {
  try {
    const run = readOptions(process.argv.slice(2))
    if (run.isHelp) {
      console.log(usage)
      return 0
    }
    if (run.isPlanted) return (await findPlanted(folder, run)) ? 0 : 1
    return (await (run.episode === undefined ? simulate(run) : replay(run, run.episode))) ? 0 : 1
  } catch (cause) {
    if (!(cause instanceof InvalidOption)) throw cause
    console.error(`${cause.message}\n\n${usage}`)
    return 2
  }
}

process.exitCode = await main()
