/** A signal that lives as long as its program, and is given to each call. */
import { getEventListeners } from "node:events"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { Database, DatabaseRuntime } from "effect-db"
import { describe, expect, it } from "vitest"

class Db extends Database.Service<Db>()("app") {}

// nothing is opened before the first statement, and there is none
const lazy = { writer: Redacted.make("postgres://nobody@127.0.0.1:1/none"), startup: "lazy" } as const

setFlagsFromString("--expose-gc")
const collect: () => void = runInNewContext("gc")

/** Returns the memory that each call keeps, in bytes. */
const keptBy = async (calls: number, call: () => Promise<unknown>) => {
  const many = async (n: number) => {
    for (let i = 0; i < n; i++) await call()
    // some objects are released only in the next turn of the event loop
    await new Promise((resolve) => setImmediate(resolve))
    collect()
    return process.memoryUsage().heapUsed
  }
  await many(calls)
  const before = await many(calls)
  return ((await many(calls)) - before) / calls
}

describe("a signal that is given to many calls", () => {
  it("a signal that is given to many calls keeps nothing of those that have ended", async () => {
    await using runtime = DatabaseRuntime.make({ db: Db }, Db.layer(lazy))
    await runtime.open()
    const { signal } = new AbortController()
    expect(await keptBy(5000, () => runtime.runPromise(Effect.void, { signal }))).toBeLessThan(20)
    const inside = () => runtime.unitOfWork(() => runtime.runPromise(Effect.void, { signal }), { signal })
    expect(await keptBy(3000, inside)).toBeLessThan(20)
    expect(getEventListeners(signal, "abort")).toEqual([])
  })

  it("a signal that is given to many calls ends all that are under way, with its reason, and has one listener", async () => {
    await using runtime = DatabaseRuntime.make({ db: Db }, Db.layer(lazy))
    await runtime.open()
    const controller = new AbortController()
    const { signal } = controller
    const calls = Array.from({ length: 100 }, () => runtime.runPromise(Effect.never, { signal }))
    const ended = Promise.allSettled([
      ...calls,
      runtime.unitOfWork(() => runtime.runPromise(Effect.never), { signal }),
      runtime.unitOfWork(() => runtime.runPromise(Effect.never, { signal }))
    ])
    await new Promise((resolve) => setImmediate(resolve))
    expect(getEventListeners(signal, "abort")).toHaveLength(1)
    const reason = new Error("the program ends")
    controller.abort(reason)
    expect(new Set((await ended).map((one) => one.status === "rejected" && one.reason))).toEqual(new Set([reason]))
    expect(getEventListeners(signal, "abort")).toEqual([])
    await expect(runtime.runPromise(Effect.never, { signal })).rejects.toBe(reason)
  })
})
