/**
 * A worker that delays, in both directions, the traffic of a server. It runs beside the program
 * that is measured.
 */
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { makeProxy } from "../support/proxy.js"

/**
 * Opens a network with a delay each way, in ms; returns the server's URL through it, and a function
 * that closes it.
 */
export const delayed = (url: string, millis: number): Promise<readonly [url: string, close: () => Promise<unknown>]> =>
  new Promise((resolve, reject) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: { url, millis } })
    worker.once("error", reject)
    worker.once("message", (message: string) => resolve([message, () => worker.terminate()]))
  })

if (!isMainThread) {
  // the worker is started above, with this data
  const { millis, url } = workerData as { readonly url: string; readonly millis: number }
  Effect.gen(function* () {
    const proxy = yield* makeProxy(Redacted.make(url))
    yield* proxy.delay(millis)
    parentPort?.postMessage(Redacted.value(proxy.url))
    yield* Effect.never
  }).pipe(Effect.scoped, Effect.runFork)
}
