import * as Effect from "effect/Effect"

/** Returns the bytes of the heap that are in use after a collection. Needs `--expose-gc`. */
export const usedHeap = Effect.sync(() => {
  // twice, because the first collection runs finalizers that release more
  globalThis.gc?.()
  globalThis.gc?.()
  return process.memoryUsage().heapUsed
})
