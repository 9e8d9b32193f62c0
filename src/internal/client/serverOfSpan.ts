/**
 * The server in the span of a statement. The server is known only when the statement is sent.
 *
 * The span is made by @effect/sql, which passes it to transformers of statements only.
 */
import * as Statement from "@effect/sql/Statement"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Stream from "effect/Stream"
import type * as Tracer from "effect/Tracer"
import type { Request } from "../connection/connection.js"
import { endpoint } from "../observability/transactionSpan.js"

/** Cell for the span of a running statement. */
interface SpanCell {
  span: Tracer.Span | undefined
}

class CurrentSpanCell extends Context.Reference<CurrentSpanCell>()("effect-db/internal/CurrentSpanCell", {
  defaultValue: (): SpanCell | undefined => undefined
}) {}

/**
 * Makes a transformer that records the span, after the transformer of the program, if there is one.
 */
const recordingSpan =
  (cell: SpanCell, own: Option.Option<Statement.Statement.Transformer>): Statement.Statement.Transformer =>
  (self, sql, refs, span) =>
    Effect.tap(own._tag === "Some" ? own.value(self, sql, refs, span) : Effect.succeed(self), () => {
      cell.span = span
    })

/**
 * Returns a function that runs an effect with a cell, in which {@link reportServer} finds the span
 * of the statement.
 */
const inSpanCell = (fiber: Fiber.RuntimeFiber<unknown, unknown>) => {
  const cell: SpanCell = { span: undefined }
  const transformer = Option.some(recordingSpan(cell, fiber.getFiberRef(Statement.currentTransformer)))
  return <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    self.pipe(Effect.provideService(CurrentSpanCell, cell), Effect.locally(Statement.currentTransformer, transformer))
}

/** Runs a statement of @effect/sql so that its span names the server. */
export const nameServer = <A, E>(self: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.withFiberRuntime((fiber) => inSpanCell(fiber)(self))

/** Runs the stream of a statement of @effect/sql so that its span names the server. */
export const nameStreamServer = <A, E>(self: Stream.Stream<A, E>): Stream.Stream<A, E> =>
  Stream.fromPull(
    Effect.withFiberRuntime((fiber) => {
      const within = inSpanCell(fiber)
      return Effect.map(Stream.toPull(self), (pull) => within(pull))
    })
  )

/**
 * Returns the request with a callback that adds the server to the span when the statement is sent.
 * Without a span, the request is unchanged.
 */
export const reportServer = (fiber: Fiber.RuntimeFiber<unknown, unknown>, request: Request): Request => {
  const span = Context.get(fiber.currentContext, CurrentSpanCell)?.span
  if (span === undefined) return request
  return {
    ...request,
    served: (server) => {
      for (const [name, value] of endpoint(server)) span.attribute(name, value)
    }
  }
}
