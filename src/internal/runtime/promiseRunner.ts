/**
 * The runner that turns effects of a client into promises.
 */
import type * as Effect from "effect/Effect"
import type * as Stream from "effect/Stream"
import type { Client } from "../../Copy.js"

/** Runner of effects and streams that need a client. */
export interface PromiseRunner {
  readonly run: <A, E>(use: (client: Client) => Effect.Effect<A, E>) => Promise<A>
  readonly stream: <A, E>(use: (client: Client) => Stream.Stream<A, E>) => AsyncIterable<A>
}
