/**
 * How many attempts beyond the first one database may make, all callers together: a failing server is not hammered by those who retry.
 */

import type { Budget } from "../../RetryPolicy.js"
import * as clock from "../concurrency/clock.js"

/**
 * A bucket of tokens that fills with time, looked at only when something is tried again. What has succeeded in the end gives back what it
 * has taken: collisions of callers whose work gets done do not use the bucket up, an outage, in which nothing succeeds, does.
 */
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

  /** Gives attempts back, up to the most that there may be; of callers with another policy nothing is taken away. */
  giveBack(count: number, { burst }: Budget): void {
    if (this.tokens !== undefined) this.tokens = Math.max(this.tokens, Math.min(burst, this.tokens + count))
  }
}
