/**
 * COPY for code that awaits: rows come from an iterable, and go to one.
 */
import { AsyncResource } from "node:async_hooks"
import type { Fragment } from "@effect/sql/Statement"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type * as Copy from "../../Copy.js"
import type { PromiseRunner } from "./promiseRunner.js"

/** The options of a COPY; `onProgress` is plain code, and is waited for. */
interface CopyOptions extends Omit<Copy.Options, "onProgress"> {
  readonly onProgress?: ((progress: Copy.Progress) => unknown) | undefined
}

/** Rows, all at once or as they come; a stream of Node's is one of these, too. */
type CopyRows = AsyncIterable<Copy.Row> | Iterable<Copy.Row>

/** The members of a client for COPY, as promises. */
export interface PromiseCopy {
  /** Stores rows in a table, all or none, and gives how many; where the rows end in a failure, nothing is stored. */
  readonly copyFrom: (
    table: string,
    columns: ReadonlyArray<string>,
    rows: CopyRows,
    options?: CopyOptions
  ) => Promise<number>
  /** Gives the rows of a query as text in the format, in blocks of whole lines; to end the loop early ends the query. */
  readonly copyTo: (query: Fragment, options?: CopyOptions) => AsyncIterable<Uint8Array>
}

/** Iterates over rows. Their iterator runs in the async context in which they were given, and so in its transaction. */
const iterate = (rows: CopyRows): AsyncIterable<Copy.Row> => {
  const here = new AsyncResource("effect-db/Copy")
  const iterator = Symbol.asyncIterator in rows ? rows[Symbol.asyncIterator]() : rows[Symbol.iterator]()
  return {
    [Symbol.asyncIterator]: () => ({
      next: () => here.runInAsyncScope(async () => iterator.next()),
      return: () =>
        here.runInAsyncScope(async () => (await iterator.return?.()) ?? { done: true as const, value: undefined })
    })
  }
}

const streamOf = (rows: CopyRows): Stream.Stream<Copy.Row, unknown> => {
  // to iterate over a text would give its characters
  if (typeof rows === "string" || rows instanceof Uint8Array) return Stream.make<[Copy.Row]>(rows)
  return Array.isArray(rows)
    ? Stream.fromIterable<Copy.Row>(rows)
    : Stream.suspend(() => Stream.fromAsyncIterable(iterate(rows), (error) => error))
}

const optionsOf = ({ onProgress, ...options }: CopyOptions): Copy.Options =>
  onProgress === undefined
    ? options
    : { ...options, onProgress: (progress) => Effect.promise(async () => onProgress(progress)) }

/** The members of a client whose effects are run by a runner. */
export const makePromiseCopy = ({ run, stream }: PromiseRunner): PromiseCopy => ({
  copyFrom: (table, columns, rows, options = {}) =>
    run((client) => client.copyFrom(table, columns, streamOf(rows), optionsOf(options))),
  copyTo: (query, options = {}) => stream((client) => client.copyTo(query, optionsOf(options)))
})
