/**
 * How what a statement is becomes a promise.
 */
import type * as Effect from "effect/Effect"
import type * as Stream from "effect/Stream"
import type { Client } from "../../Copy.js"

/** Runs effects of a client. */
export interface PromiseRunner {
  readonly run: <A, E>(use: (client: Client) => Effect.Effect<A, E>) => Promise<A>
  readonly stream: <A, E>(use: (client: Client) => Stream.Stream<A, E>) => AsyncIterable<A>
}
