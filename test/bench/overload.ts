/**
 * Overload: requests arrive at a fixed rate, whether earlier ones are answered or not, several
 * times faster than they can be served.
 *
 * It prints the peak rate of served requests at a matching load; the rate of served requests under
 * overload (goodput) and their waits; the number of rejected requests; and the time in which the
 * pool recovers once the load is half of its capacity.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { Database } from "effect-db"

class Db extends Database.Service<Db>()("bench") {}

const connections = 10
const queueTarget = 50
/** The duration of a request on the server, in seconds. */
const work = 0.01

/** The events of one interval. */
class Tally {
  served = 0
  readonly waits: Array<number> = []
  readonly refused = new Map<string, number>()

  refuse(why: string): void {
    this.refused.set(why, (this.refused.get(why) ?? 0) + 1)
  }

  wait(part: number): number {
    const sorted = this.waits.sort((a, b) => a - b)
    return sorted[Math.floor(sorted.length * part)] ?? 0
  }

  get rejected(): number {
    return [...this.refused.values()].reduce((sum, n) => sum + n, 0)
  }
}

const program = (seconds: number, factor: number) =>
  Effect.gen(function* () {
    const sql = yield* Db.writer
    let tally = new Tally()
    yield* Effect.forkScoped(
      Stream.runForEach(Db.observations, (fact) =>
        Effect.sync(() => {
          if (fact._tag === "CheckedOut") tally.waits.push(fact.waitedMillis)
        })
      )
    )
    const request = Effect.matchEffect(sql`SELECT pg_sleep(${work})`, {
      onSuccess: () => Effect.sync(() => tally.served++),
      onFailure: ({ cause }) =>
        Effect.sync(() =>
          tally.refuse(
            cause instanceof Error && "_tag" in cause
              ? `${cause._tag} ${"reason" in cause ? cause.reason : ""}`
              : String(cause)
          )
        )
    })

    /**
     * Measures the capacity, with as many requests at a time as there are connections, so that none
     * waits.
     */
    const capacity = Effect.gen(function* () {
      tally = new Tally()
      const start = performance.now()
      const once = Effect.whileLoop({
        while: () => performance.now() < start + 5000,
        body: () => request,
        step: () => {}
      })
      yield* Effect.all(
        Array.from({ length: connections }, () => once),
        { concurrency: "unbounded" }
      )
      return tally.served / ((performance.now() - start) / 1000)
    })

    /**
     * Sends requests at a fixed rate, for a time; `each` is called every 100 ms with the events of
     * that interval.
     */
    const load = (perSecond: number, millis: number, each: (part: Tally, at: number) => void) =>
      Effect.async<void>((resume) => {
        const start = performance.now()
        let sent = 0
        let parts = 0
        tally = new Tally()
        const timer = setInterval(() => {
          const age = performance.now() - start
          for (; sent < (Math.min(age, millis) / 1000) * perSecond; sent++) Effect.runFork(request)
          if (age < (parts + 1) * 100) return
          parts++
          const part = tally
          tally = new Tally()
          each(part, age)
          if (age < millis) return
          clearInterval(timer)
          resume(Effect.void)
        }, 1)
      })

    const peak = yield* capacity
    console.log(`peak: ${Math.round(peak)} per second (${connections} connections, ${work * 1000} ms of work each)`)

    const all = new Tally()
    let slowest = Number.POSITIVE_INFINITY
    let second = new Tally()
    yield* load(peak * factor, seconds * 1000, (part, at) => {
      for (const into of [all, second]) {
        into.served += part.served
        for (const wait of part.waits) into.waits.push(wait)
        for (const [why, n] of part.refused) into.refused.set(why, (into.refused.get(why) ?? 0) + n)
      }
      if (Math.floor(at / 1000) === Math.floor((at - 100) / 1000)) return
      slowest = Math.min(slowest, second.served)
      if (process.stderr.isTTY)
        process.stderr.write(`${Math.floor(at / 1000)} of ${seconds} s: ${second.served} served\r`)
      second = new Tally()
    })
    const goodput = all.served / seconds
    console.log(`overload: ${factor} times the peak for ${seconds} s`)
    console.log(`  goodput: ${Math.round(goodput)} per second, ${((100 * goodput) / peak).toFixed(1)} % of the peak`)
    console.log(
      `  waits of the served requests: median ${all.wait(0.5).toFixed(1)} ms, p95 ${all.wait(0.95).toFixed(1)} ms, p99 ${all.wait(0.99).toFixed(1)} ms (queueTarget ${queueTarget} ms)`
    )
    for (const [why, n] of all.refused) console.log(`  ${why}: ${n}`)

    let wellSince: number | undefined
    yield* load(peak / 2, 5000, (part, at) => {
      const isWell = part.rejected === 0 && part.wait(0.95) < queueTarget
      if (!isWell) wellSince = undefined
      else wellSince ??= at
    })
    console.log(
      wellSince === undefined
        ? "recovery: none within 5 s"
        : `recovery: no request rejected and p95 under the target from ${Math.round(wellSince)} ms on, at half the peak`
    )
  }).pipe(Effect.scoped)

export const overload = (
  url: string,
  { factor, seconds }: { readonly factor: number; readonly seconds: number }
): Promise<void> =>
  Effect.runPromise(
    Effect.provide(
      program(seconds, factor),
      Db.layer({ writer: Redacted.make(url), maxConnections: connections, queueTarget })
    )
  )
