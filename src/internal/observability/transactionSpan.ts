/**
 * The span of a transaction. It follows OpenTelemetry's conventions for databases, and has the
 * names of @effect/sql's spans. It is made only if a tracer is set.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as DefaultServices from "effect/DefaultServices"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as FiberRef from "effect/FiberRef"
import * as HashMap from "effect/HashMap"
import * as Tracer from "effect/Tracer"

type AnyFiber = Fiber.RuntimeFiber<unknown, unknown>

/** Attributes of spans. */
export type Attributes = ReadonlyArray<readonly [name: string, value: unknown]>

const silentTracer = Context.get(DefaultServices.liveServices, Tracer.Tracer)

/** Checks if a fiber has a tracer other than the default one, which records nothing. */
export const hasTracer = (fiber: AnyFiber): boolean => fiber.currentTracer !== silentTracer

interface Endpoint {
  readonly host: string
  readonly port: number
}

/** Returns the attributes that name a server, by OpenTelemetry's conventions. */
export const endpoint = ({ host, port }: Endpoint): Attributes => [
  ["server.address", host],
  ["server.port", port]
]

/** The span of a transaction, or of a savepoint. */
export class TransactionSpan {
  private hasEnded = false

  constructor(
    /** The parent of the spans of the transaction's statements. */
    readonly span: Tracer.Span,
    private readonly clock: Clock.Clock
  ) {}

  /** Records the number of the attempt, from 1. The number grows with `retry`. */
  tries(attempt: number): void {
    this.span.attribute("effect_db.transaction.attempt", attempt)
  }

  /** Records the server, and the wait for the connection in ms, when the transaction begins. */
  begins(server: Endpoint, waited: number): void {
    for (const [name, value] of endpoint(server)) this.span.attribute(name, value)
    this.event("begin", { "effect_db.connection.wait": waited })
  }

  /** Records that the command that ends the transaction or savepoint is sent. */
  ends(how: "commit" | "savepoint" | "rollback"): void {
    this.event(how)
  }

  /** Ends the span. */
  end(outcome: string, error: { readonly _tag: string } | undefined): void {
    if (this.hasEnded) return
    this.hasEnded = true
    this.span.attribute("effect_db.transaction.outcome", outcome)
    if (error !== undefined) this.span.attribute("error.type", error._tag)
    this.span.end(this.now, error === undefined ? Exit.void : Exit.fail(error))
  }

  private event(name: string, attributes?: Record<string, unknown>): void {
    if (!this.hasEnded) this.span.event(`db.transaction.${name}`, this.now, attributes)
  }

  private get now(): bigint {
    return this.clock.unsafeCurrentTimeNanos()
  }
}

/** Begins a span, if a tracer is set, tracing is enabled and the parent span allows child spans. */
export const beginSpan = (
  fiber: AnyFiber,
  attributes: Attributes,
  label: string | undefined,
  attempt: number
): TransactionSpan | undefined => {
  if (!hasTracer(fiber) || !fiber.getFiberRef(FiberRef.currentTracerEnabled)) return undefined
  const clock = Context.get(fiber.currentDefaultServices, Clock.Clock)
  const parent = fiber.currentSpan
  if (parent !== undefined && Context.get(parent.context, Tracer.DisablePropagation)) return undefined
  const around = Context.getOption(fiber.currentContext, Tracer.ParentSpan)
  const now = clock.unsafeCurrentTimeNanos()
  const span = fiber.currentTracer.span("sql.transaction", around, Context.empty(), [], now, "client")
  for (const [name, value] of HashMap.toEntries(fiber.getFiberRef(FiberRef.currentTracerSpanAnnotations))) {
    span.attribute(name, value)
  }
  for (const [name, value] of attributes) span.attribute(name, value)
  if (label !== undefined) span.attribute("effect_db.transaction.label", label)
  const transaction = new TransactionSpan(span, clock)
  transaction.tries(attempt)
  return transaction
}
