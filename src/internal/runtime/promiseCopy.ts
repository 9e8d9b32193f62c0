/**
 * COPY for code with promises, with iterables of rows.
 */
import { AsyncResource } from "node:async_hooks"
import type { Fragment } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type * as Copy from "../../Copy.js"
import type { PromiseRunner } from "./promiseRunner.js"

/** Options of a COPY. `onProgress` is plain code, and its result is awaited. */
type CopyOptions = Omit<Copy.Options, "onProgress"> & {
  readonly onProgress?: ((progress: Copy.Progress) => unknown) | undefined
}

/** Rows as an iterable or an async iterable, such as a stream of Node. */
type CopyRows = AsyncIterable<Copy.Row> | Iterable<Copy.Row>

const ended = { done: true as const, value: undefined }

/** Destroys a stream of Node, whose pending read then ends. */
const destroy = (rows: CopyRows): void => {
  if ("destroy" in rows && typeof rows.destroy === "function") rows.destroy()
}

/**
 * Makes an iterable that reads rows in the async context and the transaction of the caller. An async
 * generator runs `return` only after its pending `next`, which may never end. Then the end is not
 * awaited, so that an aborted COPY does not wait for its rows.
 */
const iterate = (rows: CopyRows): AsyncIterable<Copy.Row> => {
  const resource = new AsyncResource("effect-db/Copy")
  const iterator = Symbol.asyncIterator in rows ? rows[Symbol.asyncIterator]() : rows[Symbol.iterator]()
  let isPending = false
  const next = async () => {
    isPending = true
    try {
      return await iterator.next()
    } finally {
      isPending = false
    }
  }
  const end = async () => {
    const isWaiting = isPending
    const returned = Promise.resolve(iterator.return?.())
    if (!isWaiting) return (await returned) ?? ended
    // the failure of a generator that nothing waits for
    returned.catch(() => {})
    destroy(rows)
    return ended
  }
  return {
    [Symbol.asyncIterator]: () => ({
      next: () => resource.runInAsyncScope(next),
      return: () => resource.runInAsyncScope(end)
    })
  }
}

const streamOf = (rows: CopyRows): Stream.Stream<Copy.Row, unknown> => {
  // an iteration over a text or a buffer would return its characters or bytes
  if (typeof rows === "string" || rows instanceof Uint8Array) return Stream.make<[Copy.Row]>(rows)
  return Array.isArray(rows)
    ? Stream.fromIterable<Copy.Row>(rows)
    : Stream.suspend(() => Stream.fromAsyncIterable(iterate(rows), (error) => error))
}

const optionsOf = ({ onProgress, ...options }: CopyOptions): Copy.Options =>
  onProgress === undefined
    ? options
    : { ...options, onProgress: (progress) => Effect.promise(async () => onProgress(progress)) }

/** Makes the members of a client for COPY. They run the effects of the client with a runner. */
export const makePromiseCopy = ({ run, stream }: PromiseRunner) => ({
  copyFrom: (table: string, columns: ReadonlyArray<string>, rows: CopyRows, options: CopyOptions = {}) =>
    run((client) => client.copyFrom(table, columns, streamOf(rows), optionsOf(options))),
  copyTo: (query: Fragment, options: CopyOptions = {}): AsyncIterable<Uint8Array> =>
    stream((client) => client.copyTo(query, optionsOf(options)))
})
