/**
 * The observers of a database.
 */
import * as Data from "effect/Data"
import * as Equal from "effect/Equal"
import type { Observation, Observer } from "../../Observation.js"

/** The observations that are logged as warnings also without `echo`. */
const alarms: ReadonlySet<Observation["_tag"]> = new Set([
  "Leaked",
  "PreparedLeft",
  "PreparedMissing",
  "RecoveryFailed"
])

/** Subscribers to the observations of one database. */
export class Observers implements Observer {
  private readonly all = new Set<(observation: Observation) => void>()
  /** The servers that were reported as unable to prove their position. */
  private readonly unproved = new Set<string>()

  /** `report` gets the observations that are reported even if there is no subscriber. */
  constructor(private readonly report: (observation: Observation) => void) {}

  get active(): boolean {
    return this.all.size > 0
  }

  observe(given: Observation): void {
    // plain observations of the core are converted, so that those with equal fields are equal
    const observation: Observation = Equal.isEqual(given) ? given : Data.struct(given)
    for (const subscriber of this.all) subscriber(observation)
    if (alarms.has(observation._tag)) this.report(observation)
    if (observation._tag === "PassedOver" && observation.reason === "unproved") this.reportOnce(observation)
  }

  private reportOnce(observation: Extract<Observation, { readonly _tag: "PassedOver" }>): void {
    if (this.unproved.has(observation.server)) return
    this.unproved.add(observation.server)
    this.report(observation)
  }

  /** Adds a subscriber; the returned function removes it. */
  add(subscriber: (observation: Observation) => void): () => void {
    this.all.add(subscriber)
    return () => {
      this.all.delete(subscriber)
    }
  }
}
