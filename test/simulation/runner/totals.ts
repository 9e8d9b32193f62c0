/**
 * The figures of a simulation, over all its episodes.
 */
import type { EpisodeResult } from "../work/episode.js"

const add = (counts: Map<string, number>, more: Readonly<Record<string, number>>): void => {
  for (const [name, count] of Object.entries(more)) counts.set(name, (counts.get(name) ?? 0) + count)
}

const sorted = (counts: ReadonlyMap<string, number>): string =>
  [...counts]
    .sort(([, a], [, b]) => b - a)
    .map(([name, count]) => `${name} ${count}`)
    .join(", ")

const hour = 3_600_000

/** Figures of a simulation. */
export class Totals {
  episodes = 0
  private millis = 0
  private steps = 0
  private calls = 0
  private readonly outcomes = new Map<string, number>()
  private readonly faults = new Map<string, number>()
  private readonly startedAt = performance.now()

  add(result: EpisodeResult): void {
    this.episodes++
    this.millis += result.millis
    this.steps += result.steps
    this.calls += result.calls
    add(this.outcomes, result.outcomes)
    add(this.faults, result.faults)
  }

  /** Returns one line about the progress. */
  progress(): string {
    const hours = this.millis / hour
    const seconds = (performance.now() - this.startedAt) / 1000
    const rate = seconds > 0 ? Math.round((hours * 60) / seconds) : 0
    return `${hours.toFixed(1)} simulated hours in ${seconds.toFixed(0)} s (${rate} hours a minute), ${this.calls} calls`
  }

  /** Returns the final report. */
  report(): string {
    const byOutcome = new Map<string, number>()
    for (const [name, count] of this.outcomes) {
      const outcome = name.slice(name.indexOf(" ") + 1)
      byOutcome.set(outcome, (byOutcome.get(outcome) ?? 0) + count)
    }
    return [
      `${this.episodes} episodes, ${this.progress()}, ${this.steps} steps`,
      `calls by outcome: ${sorted(byOutcome)}`,
      `faults: ${sorted(this.faults)}`
    ].join("\n")
  }
}
