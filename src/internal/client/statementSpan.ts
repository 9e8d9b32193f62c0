/**
 * The span of a statement, for the server that has served it: which one that is, is known only when it is sent.
 *
 * The span is made by @effect/sql, which shows it to a transformer of statements and to nothing else.
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

/** The span of the statement that is run, once there is one. */
interface Holder {
  span: Tracer.Span | undefined
}

class CurrentHolder extends Context.Reference<CurrentHolder>()("effect-db/internal/CurrentHolder", {
  defaultValue: (): Holder | undefined => undefined
}) {}

/** A transformer that notes the span down, after the program's own, if it has one, has made the statement. */
const noting =
  (holder: Holder, own: Option.Option<Statement.Statement.Transformer>): Statement.Statement.Transformer =>
  (self, sql, refs, span) =>
    Effect.tap(own._tag === "Some" ? own.value(self, sql, refs, span) : Effect.succeed(self), () => {
      holder.span = span
    })

/** Runs effects of one statement so that {@link reportServer} finds its span. */
const inHolder = (fiber: Fiber.RuntimeFiber<unknown, unknown>) => {
  const holder: Holder = { span: undefined }
  const transformer = Option.some(noting(holder, fiber.getFiberRef(Statement.currentTransformer)))
  return <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    self.pipe(Effect.provideService(CurrentHolder, holder), Effect.locally(Statement.currentTransformer, transformer))
}

/** Runs a statement of @effect/sql so that its span names the server. */
export const nameServer = <A, E>(self: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.withFiberRuntime((fiber) => inHolder(fiber)(self))

/** The same for the rows of a statement as a stream. */
export const nameStreamServer = <A, E>(self: Stream.Stream<A, E>): Stream.Stream<A, E> =>
  Stream.fromPull(
    Effect.withFiberRuntime((fiber) => {
      const within = inHolder(fiber)
      return Effect.map(Stream.toPull(self), (pull) => within(pull))
    })
  )

/** The request of a statement, that tells the span of the statement which server has got it. */
export const reportServer = (fiber: Fiber.RuntimeFiber<unknown, unknown>, request: Request): Request => {
  const span = Context.get(fiber.currentContext, CurrentHolder)?.span
  if (span === undefined) return request
  return {
    ...request,
    served: (server) => {
      for (const [name, value] of endpoint(server)) span.attribute(name, value)
    }
  }
}
