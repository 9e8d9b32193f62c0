/**
 * Calls of a response's functions that are kept, dropped or refused.
 */
import { Writable } from "node:stream"

/** Call of a function that sends a part of a response. Its last argument may be a callback. */
export interface Call {
  readonly send: () => void
  readonly args: ReadonlyArray<unknown>
}

/**
 * Refuses a write after the end of the body. The callback of the write gets the error of Node, but
 * there is no `error` event, which would end the process.
 */
export const refuseLate = (args: ReadonlyArray<unknown>): void => {
  const last = args.at(-1)
  if (typeof last !== "function") return
  const ended = new Writable().on("error", () => {}).end()
  ended.write("", (error) => last(error))
}

/** Calls the callback of a write that is not sent. */
export const drop = ({ args }: Call): void => {
  const last = args.at(-1)
  if (typeof last === "function") process.nextTick(last)
}

/** Returns the bytes of the body that a kept call sends. */
export const chunkOf = ({ args: [chunk, encoding] }: Call): Uint8Array => {
  if (chunk instanceof Uint8Array) return chunk
  if (typeof chunk !== "string") return Buffer.alloc(0)
  return Buffer.from(chunk, typeof encoding === "string" && Buffer.isEncoding(encoding) ? encoding : "utf8")
}
