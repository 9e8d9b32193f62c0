/**
 * Streams that are read after the end of the unit of work in which they were made.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { withoutSlot } from "../transaction/transactionSlot.js"

/** Returns a stream that runs in the context of this effect, but outside of its unit of work. */
export const detachStream = <A, E, R>(self: Stream.Stream<A, E, R>): Effect.Effect<Stream.Stream<A, E>, never, R> =>
  Effect.map(Effect.context<R>(), (context) => {
    // a context that is provided to a stream is merged with that of its reader, which may be in a
    // unit of work
    const outside = withoutSlot(context)
    const pull = Effect.mapInputContext(Stream.toPull(self), (reader: Context.Context<Scope.Scope>) =>
      Context.add(outside, Scope.Scope, Context.get(reader, Scope.Scope))
    )
    return Stream.fromPull(
      Effect.map(
        pull,
        Effect.mapInputContext(() => outside)
      )
    )
  })
