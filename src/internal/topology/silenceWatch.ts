/**
 * The watch of the silence of a server. If callers wait and receive nothing, it probes the server, so
 * that a frozen server is noticed before any limit of a statement.
 */
import * as clock from "../concurrency/clock.js"
import type { HostActivity } from "../pool/connections.js"

/**
 * The parts of the detection time: the silence before a probe, the interval of checking it, the time
 * for an answer to the probe, and the same time for an answer on another socket.
 */
const silencePart = 0.3
const checkPart = 0.1
export const answerPart = 0.3

const nothing = () => {}

/** Watch of one server. */
export class SilenceWatch {
  private cancel = nothing
  private isProbing = false
  /** The progress of the connections at the last check. */
  private progress = 0
  /** The time when the last progress was seen. */
  progressAt = Number.NEGATIVE_INFINITY
  /** The time of the last answer to a probe. */
  private answeredAt = Number.NEGATIVE_INFINITY

  constructor(
    private readonly detectionTime: number,
    /** Returns the activity of the server, or `undefined` if there is no server to watch. */
    private readonly activity: () => HostActivity | undefined,
    /** Probes the server, and calls back with true if it has answered. */
    private readonly probe: (callback: (isAnswered: boolean) => void) => void
  ) {}

  start(): void {
    this.cancel = clock.later(this.detectionTime * checkPart, () => {
      const activity = this.activity()
      if (activity !== undefined && this.silenceOf(activity) >= this.detectionTime * silencePart) this.probeOnce()
      this.start()
    })
  }

  stop(): void {
    this.cancel()
  }

  /** Forgets the probe that is running, because it will not call back. */
  reset(): void {
    this.isProbing = false
  }

  private probeOnce(): void {
    if (this.isProbing) return
    this.isProbing = true
    this.probe((isAnswered) => {
      this.isProbing = false
      if (isAnswered) this.answeredAt = clock.now()
    })
  }

  /** Returns the time for which callers and the watch have received nothing that they wait for, in ms. */
  private silenceOf({ heardAt, progress, waitsSince }: HostActivity): number {
    const now = clock.now()
    // the progress is a sum over the open connections, which the close of one lowers
    if (progress > this.progress) this.progressAt = now
    this.progress = progress
    return now - Math.max(heardAt, waitsSince, this.progressAt, this.answeredAt)
  }
}
