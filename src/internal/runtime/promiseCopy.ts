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

/** Makes an iterable that reads rows in the async context and the transaction of the caller. */
const iterate = (rows: CopyRows): AsyncIterable<Copy.Row> => {
  const resource = new AsyncResource("effect-db/Copy")
  const iterator = Symbol.asyncIterator in rows ? rows[Symbol.asyncIterator]() : rows[Symbol.iterator]()
  return {
    [Symbol.asyncIterator]: () => ({
      next: () => resource.runInAsyncScope(async () => iterator.next()),
      return: () =>
        resource.runInAsyncScope(async () => (await iterator.return?.()) ?? { done: true as const, value: undefined })
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
