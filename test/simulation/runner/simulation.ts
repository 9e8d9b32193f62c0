/**
 * A simulation: episodes of one seed, in several processes, until the hours are over or an invariant
 * is violated.
 */
import type { EpisodeResult } from "../work/episode.js"
import type { EpisodeOptions } from "../work/settings.js"
import { Totals } from "./totals.js"
import { Worker } from "./worker.js"

/** The virtual time that the work of one episode is planned for, in ms. */
const episodeMillis = 3_600_000

/** Returns the options of an episode. */
export const episodeOf = (seed: number, episode: number): EpisodeOptions => ({
  seed: `${seed}/${episode}`,
  millis: episodeMillis
})

/** The virtual time of an episode without quiet times, in ms. */
const denseMillis = 600_000

/** Returns the options of an episode without quiet times, in which a fault of the library is found sooner. */
export const denseEpisodeOf = (seed: number, episode: number): EpisodeOptions => ({
  seed: `${seed}/${episode}`,
  millis: denseMillis,
  isDense: true
})

/** Settings of a simulation. */
export interface SimulationSettings {
  /** The folder of the compiled simulation. */
  readonly folder: string
  readonly seed: number
  /** Returns the options of an episode. */
  readonly episodeOf: (seed: number, episode: number) => EpisodeOptions
  readonly episodes: number
  /** The limit of the real time, in ms. */
  readonly limit: number
  readonly workers: number
  /** True to run each episode twice, and to compare the traces. */
  readonly twice: boolean
  readonly onProgress?: (totals: Totals) => void
}

/** Result of a simulation. */
export interface SimulationResult {
  readonly totals: Totals
  /** The first episode that has violated an invariant. */
  readonly failure: { readonly episode: number; readonly result: EpisodeResult } | undefined
}

/** Simulation that is running. */
export class Simulation {
  readonly totals = new Totals()
  private readonly workers: ReadonlyArray<Worker>
  private next = 0
  private failure: SimulationResult["failure"]
  private isStopped = false

  constructor(private readonly settings: SimulationSettings) {
    this.workers = Array.from({ length: settings.workers }, () => new Worker(settings.folder))
  }

  async run(): Promise<SimulationResult> {
    const startedAt = performance.now()
    const isOver = () =>
      this.isStopped ||
      this.failure !== undefined ||
      this.next >= this.settings.episodes ||
      performance.now() - startedAt > this.settings.limit
    const work = async (worker: Worker) => {
      while (!isOver()) {
        const episode = this.next++
        const result = await this.runOnce(worker, this.settings.episodeOf(this.settings.seed, episode))
        if (this.isStopped) return
        this.totals.add(result)
        this.settings.onProgress?.(this.totals)
        if (result.violation !== undefined) this.failure ??= { episode, result }
      }
    }
    try {
      await Promise.all(this.workers.map(work))
    } finally {
      this.stop()
    }
    return { totals: this.totals, failure: this.failure }
  }

  /** Ends the processes. */
  stop(): void {
    this.isStopped = true
    for (const worker of this.workers) worker.stop()
  }

  private async runOnce(worker: Worker, options: EpisodeOptions): Promise<EpisodeResult> {
    const result = await worker.run(options)
    if (!this.settings.twice || result.violation !== undefined) return result
    const again = await worker.run(options)
    if (again.hash === result.hash || again.violation !== undefined) return again
    const message = `the trace of ${options.seed} is ${result.hash}, then ${again.hash}`
    return { ...again, violation: { invariant: "determinism", message, step: 0, at: 0 } }
  }
}
