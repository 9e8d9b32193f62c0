import { Schema } from "effect"
import { expected, strict } from "./input.js"

/** The time that the figures cover, in seconds. */
const span = 120

/** The time without a stored write from which on it is a pause, in milliseconds. The load writes more often. */
const shortestPause = 500

const Second = Schema.Struct({
  at: Schema.Number.annotations({ description: "The second, since 1970" }),
  reads: Schema.Number,
  writes: Schema.Number,
  failed: Schema.Number,
  medianMillis: Schema.NullOr(Schema.Number).annotations({ description: "Of the requests that succeeded" }),
  p95Millis: Schema.NullOr(Schema.Number)
}).annotations({ identifier: "LoadSecond" })

export const Load = Schema.Struct({
  rate: Schema.Number.annotations({ description: "The requests that are sent in a second; 0 if there is no load" }),
  now: Schema.Number.annotations({ description: "The time of the figures, in milliseconds since 1970" }),
  answered: Schema.Number,
  failed: Schema.Number,
  lost: Schema.Number.annotations({ description: "Acknowledged writes that a promotion has lost" }),
  served: Schema.Array(Schema.Struct({ address: Schema.String, reads: Schema.Number, writes: Schema.Number })),
  pause: Schema.NullOr(
    Schema.Struct({ since: Schema.Number, millis: Schema.Number, failed: Schema.Number, isOver: Schema.Boolean })
  ).annotations({
    description: `The time without a stored write, if it has lasted for ${shortestPause} ms: the one in progress, or the last long one that is over`
  }),
  seconds: Schema.Array(Second).annotations({ description: "The last two minutes, without the second in progress" })
}).annotations({ identifier: "Load" })

export const NewRate = Schema.Struct({
  rate: Schema.Number.annotations(expected("a whole number from 0 to 100")).pipe(
    Schema.filter((n) =>
      Number.isInteger(n) && n >= 0 && n <= 100 ? undefined : "expected a whole number from 0 to 100"
    )
  )
}).annotations({
  identifier: "NewRate",
  ...strict,
  message: () => 'expected JSON (content-type: application/json) such as {"rate":50}'
})

export type Load = typeof Load.Type

export type Kind = "reads" | "writes"

interface Bucket {
  readonly reads: number
  readonly writes: number
  readonly failed: number
  readonly millis: ReadonlyArray<number>
}

const empty: Bucket = { reads: 0, writes: 0, failed: 0, millis: [] }

const percentile = (sorted: ReadonlyArray<number>, share: number): number | null =>
  sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? null

const secondOf = (millis: number): number => Math.floor(millis / 1000)

/** Figures of a load, by the second. The times that its methods take are in milliseconds since 1970. */
export class Figures {
  private readonly buckets = new Map<number, Bucket>()
  private readonly servers = new Map<string, { readonly reads: number; readonly writes: number }>()
  private answered = 0
  private failed = 0
  private lost = 0
  private last: number
  private lastWrite: number
  private failedSince = 0
  private pause: Load["pause"] = null

  constructor(private readonly start: number) {
    this.last = start
    this.lastWrite = start
  }

  /** Records a request that succeeded. */
  succeed(kind: Kind, server: string, millis: number, now: number): void {
    const { millis: all, ...bucket } = this.bucket(now)
    this.buckets.set(secondOf(now), { ...bucket, [kind]: bucket[kind] + 1, millis: [...all, millis] })
    const served = this.servers.get(server) ?? { reads: 0, writes: 0 }
    this.servers.set(server, { ...served, [kind]: served[kind] + 1 })
    this.answered++
    if (kind === "writes") this.onWrite(now)
  }

  /** Records a request that failed. */
  fail(now: number): void {
    const bucket = this.bucket(now)
    this.buckets.set(secondOf(now), { ...bucket, failed: bucket.failed + 1 })
    this.failed++
    this.failedSince++
  }

  /** Records that a write was acknowledged, and is not stored any more. */
  lose(): void {
    this.lost++
  }

  /** Returns the figures at a time; a `rate` of 0 means that the load has ended. */
  at(now: number, rate: number): Load {
    const end = rate > 0 ? secondOf(now) : Math.min(secondOf(now), secondOf(this.last) + 1)
    const begin = Math.max(secondOf(this.start) + 1, secondOf(now) - span)
    const { answered, failed, lost } = this
    return {
      rate,
      now,
      answered,
      failed,
      lost,
      served: [...this.servers].map(([address, counts]) => ({ address, ...counts })),
      pause: rate > 0 ? (this.pauseUntil(now, false) ?? this.pause) : this.pause,
      seconds: Array.from({ length: Math.max(0, end - begin) }, (_, i) => this.second(begin + i))
    }
  }

  private bucket(now: number): Bucket {
    this.last = now
    const second = secondOf(now)
    const found = this.buckets.get(second)
    if (found !== undefined) return found
    for (const old of this.buckets.keys()) if (old < second - span) this.buckets.delete(old)
    return empty
  }

  private second(at: number): typeof Second.Type {
    const { millis, ...counts } = this.buckets.get(at) ?? empty
    const sorted = millis.toSorted((a, b) => a - b)
    return { at, ...counts, medianMillis: percentile(sorted, 0.5), p95Millis: percentile(sorted, 0.95) }
  }

  private onWrite(now: number): void {
    const pause = this.pauseUntil(now, true)
    // a short pause after a long one is no news
    const isLonger = (pause?.millis ?? 0) >= (this.pause?.millis ?? 0)
    if (pause !== null && (isLonger || now - (this.pause?.since ?? 0) > span * 1000)) this.pause = pause
    this.lastWrite = now
    this.failedSince = 0
  }

  private pauseUntil(now: number, isOver: boolean): Load["pause"] {
    const millis = now - this.lastWrite
    return millis < shortestPause ? null : { since: this.lastWrite, millis, failed: this.failedSince, isOver }
  }
}
