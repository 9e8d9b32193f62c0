/**
 * How many attempts beyond the first one database may make, all callers together: a failing server is not hammered by those who retry.
 */

import type { Budget } from "../../RetryPolicy.js"
import * as clock from "../concurrency/clock.js"

/** A bucket of tokens that fills with time, looked at only when something is tried again. */
export class RetryBudget {
  private tokens: number | undefined
  private filledAt = 0

  /** Takes one attempt, if there is one left. */
  take({ burst, perSecond }: Budget): boolean {
    const now = clock.now()
    const grown = this.tokens === undefined ? burst : this.tokens + ((now - this.filledAt) / 1000) * perSecond
    this.tokens = Math.min(burst, grown)
    this.filledAt = now
    if (this.tokens < 1) return false
    this.tokens--
    return true
  }
}
