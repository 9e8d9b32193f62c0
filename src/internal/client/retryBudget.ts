/**
 * The budget for retries of one database, which all callers share, so that retries do not overload a
 * failing server.
 */

import type { Budget } from "../../RetryPolicy.js"
import * as clock from "../concurrency/clock.js"

/**
 * Token bucket that fills with time. Work that succeeds in the end returns its tokens. So conflicts
 * between callers that all succeed in the end do not empty the bucket, but an outage, in which no
 * work succeeds, does.
 */
export class RetryBudget {
  private tokens: number | undefined
  private filledAt = 0

  /** Takes a token; returns false if there is none left. */
  take({ burst, perSecond }: Budget): boolean {
    const now = clock.now()
    const grown = this.tokens === undefined ? burst : this.tokens + ((now - this.filledAt) / 1000) * perSecond
    this.tokens = Math.min(burst, grown)
    this.filledAt = now
    if (this.tokens < 1) return false
    this.tokens--
    return true
  }

  /**
   * Returns tokens, up to the burst of the policy. If a policy with a larger burst has filled the
   * bucket further, no tokens are removed.
   */
  giveBack(count: number, { burst }: Budget): void {
    if (this.tokens !== undefined) this.tokens = Math.max(this.tokens, Math.min(burst, this.tokens + count))
  }
}
