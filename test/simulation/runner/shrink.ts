/**
 * Shrinks a failing episode: it ends earlier, with fewer faults and calls, and still violates the same
 * invariant.
 */
import type { EpisodeResult, Violation } from "../work/episode.js"
import type { EpisodeOptions } from "../work/settings.js"

/** Function that runs an episode in a fresh process. */
export type RunEpisode = (options: EpisodeOptions) => Promise<EpisodeResult>

/** Episode that fails, and its result. */
export interface Failing {
  readonly options: EpisodeOptions
  readonly result: EpisodeResult & { readonly violation: Violation }
}

/** Search for a smaller episode that fails. */
class Shrinking {
  /** The number of episodes that were run. */
  private runs = 0

  constructor(
    private best: Failing,
    private readonly run: RunEpisode,
    private readonly maxRuns: number,
    private readonly onSmaller: (failing: Failing) => void
  ) {}

  async shrink(): Promise<Failing> {
    await this.endEarlier()
    await this.leaveOutFaults()
    await this.leaveOutCalls()
    await this.endEarlier()
    return this.best
  }

  /** Runs a smaller episode, and keeps it if it fails in the same way. */
  private async attempt(change: Partial<EpisodeOptions>): Promise<boolean> {
    if (this.runs >= this.maxRuns) return false
    this.runs++
    const options = { ...this.best.options, ...change }
    const result = await this.run(options)
    const { violation } = result
    if (violation === undefined || violation.invariant !== this.best.result.violation.invariant) return false
    this.best = { options, result: { ...result, violation } }
    this.onSmaller(this.best)
    return true
  }

  private async endEarlier(): Promise<void> {
    const { options, result } = this.best
    const until = Math.ceil(result.violation.at / 1000) * 1000
    if (until < (options.until ?? options.millis)) await this.attempt({ until })
  }

  /** Leaves out parts of the faults: first all, then halves, at last single ones (delta debugging). */
  private async leaveOutFaults(): Promise<void> {
    let kept: ReadonlyArray<number> =
      this.best.options.faults ?? Array.from({ length: this.best.result.planned }, (_, i) => i)
    if (await this.attempt({ faults: [] })) return
    for (let size = Math.ceil(kept.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
      for (let from = 0; from < kept.length; ) {
        const rest = kept.filter((_, i) => i < from || i >= from + size)
        if (await this.attempt({ faults: rest })) kept = rest
        else from += size
      }
    }
  }

  /** Leaves out the first calls, then the last ones, by halves. */
  private async leaveOutCalls(): Promise<void> {
    let first = this.best.options.firstCall ?? 0
    for (let size = Math.ceil(this.best.result.calls / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
      if (await this.attempt({ firstCall: first + size })) first += size
    }
    let last = this.best.options.lastCall ?? first + this.best.result.calls
    for (let size = Math.ceil((last - first) / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
      if (last - size > first && (await this.attempt({ lastCall: last - size }))) last -= size
    }
  }
}

/** Shrinks a failing episode, in `maxRuns` runs at most. */
export const shrink = (
  failing: Failing,
  run: RunEpisode,
  maxRuns: number,
  onSmaller: (failing: Failing) => void
): Promise<Failing> => new Shrinking(failing, run, maxRuns, onSmaller).shrink()
