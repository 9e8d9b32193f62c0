/** Messages between two threads: one asks, and is blocked until the other has answered. */
import type { MessagePort } from "node:worker_threads"
import { Schema } from "effect"
import { DatabaseError } from "effect-db"

/** Request to the thread. There is one at a time: `begin` is answered when the unit has begun, `commit` and `rollback` when it has ended. */
export type Ask =
  | { readonly what: "open" | "close" | "begin" | "commit" | "rollback" }
  | { readonly what: "call"; readonly name: string; readonly args: ReadonlyArray<unknown> }

export type Answer = { readonly value: unknown } | { readonly failure: unknown }

export class BlocksItself extends Schema.TaggedError<BlocksItself>()("BlocksItself", {}) {
  override get message(): string {
    return "the thread that answers would wait for itself: await the function there"
  }
}

const isError = (u: unknown): u is Schema.Schema<DatabaseError.DatabaseError, unknown> => Schema.isSchema(u)
const exported: ReadonlyArray<unknown> = Object.values(DatabaseError)

/** Schema of a failure in a message. Errors of databases are decoded with their class and fields, other errors with name and message only. */
export const Failure = Schema.Union(...exported.filter(isError), BlocksItself, Schema.Defect)

/** The data of the thread that answers. `bell` is shared memory, because a blocked thread can wait only for a change of shared memory. */
export interface Given {
  readonly bell: Int32Array
  readonly port: MessagePort
}

export const silent = 0
export const answered = 1
export const ended = 2
