/**
 * When more connections are opened for those who wait: one at once, then, as long as somebody waits, twice as many every few
 * milliseconds. Nothing is opened while the queue is likely to be served before a new connection would be there.
 *
 * So a spike of short statements does not fill a pool, a slow connect does not hold up the others, and a pool whose connections are
 * all in long use is full within a moment.
 */

/** After how long it looks again, in ms. */
const pause = 10

export class Growth {
  private timer: NodeJS.Timeout | undefined
  private step = 1
  private served = 0
  /** How long a connect takes, in ms. */
  private connectTime = 0

  constructor(
    /** How many wait, and for how many of them a connection may be opened. */
    private readonly demand: () => { readonly waiting: number; readonly wanted: number },
    private readonly open: () => void,
    /** Nobody gives a connection back, so everybody needs a new one. */
    private readonly isEager: boolean
  ) {}

  /** Somebody waits. */
  ask(): void {
    if (this.timer !== undefined || this.demand().wanted <= 0) return
    this.step = 1
    this.served = 0
    this.lookAgain()
    if (this.isEager) while (this.demand().wanted > 0) this.open()
    else this.open()
  }

  /** Somebody who waited was served. */
  serve(): void {
    this.served++
  }

  connected(took: number): void {
    this.connectTime = this.connectTime === 0 ? took : 0.8 * this.connectTime + 0.2 * took
  }

  stop(): void {
    clearTimeout(this.timer)
    this.timer = undefined
  }

  private lookAgain(): void {
    this.timer = setTimeout(() => {
      this.timer = undefined
      const { waiting, wanted } = this.demand()
      if (wanted <= 0) return
      const drained = this.served === 0 ? Number.POSITIVE_INFINITY : (waiting / this.served) * pause
      this.served = 0
      this.lookAgain()
      if (drained <= this.connectTime) return
      this.step *= 2
      for (let i = 0; i < Math.min(this.step, wanted); i++) this.open()
    }, pause)
  }
}
