/**
 * The reading of a body that may be a stream without an end.
 */

/** The result of a read that waits for more than one turn of the event loop. */
const isLate = Symbol("late")

/**
 * Reads a body as a whole. Returns `undefined`, and cancels the rest, if it is longer than `maxBytes`
 * or if a part of it does not arrive within a turn of the event loop: then a stream makes it.
 */
export const readWhole = async (
  body: ReadableStream<Uint8Array> | null,
  maxBytes: number
): Promise<Uint8Array | undefined> => {
  const reader = body?.getReader()
  const parts: Array<Uint8Array> = []
  let length = 0
  while (reader !== undefined) {
    const late = new Promise<typeof isLate>((resolve) => setImmediate(resolve, isLate))
    const read = await Promise.race([reader.read(), late])
    if (read !== isLate && read.done) break
    if (read !== isLate) {
      parts.push(read.value)
      length += read.value.byteLength
    }
    if (read === isLate || length > maxBytes) {
      // the cancellation of a copy waits for that of the other one
      void reader.cancel().catch(() => {})
      return undefined
    }
  }
  return Buffer.concat(parts)
}
