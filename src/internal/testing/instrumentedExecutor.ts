/**
 * An executor with instruments: observers of its statements, transactions and exchanges.
 *
 * Statements and streams are observed from their call on. A COPY and the statements of a reserved
 * connection are observed when the server has answered, by their exchanges.
 */
import type { SqlError } from "@effect/sql/SqlError"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import type { Role } from "../../Topology.js"
import { ExchangeObservers } from "../client/exchangeObservers.js"
import type { Executor } from "../client/executor.js"
import { exchangesIn, ObservedExecutor } from "../client/observedExecutor.js"
import type { MakeStream } from "../client/rowStream.js"
import type { Exchange, ExchangeObserver, Request } from "../connection/connection.js"
import { CurrentSite } from "../observability/callSite.js"
import type { Transaction } from "../transaction/transaction.js"
import { callOf, ObservedRequest, StatementCall } from "./statementCall.js"

/** Observer of the work on a database. */
export interface Instrument {
  /** A statement is called. */
  readonly onCall?: (call: StatementCall) => void
  /** A statement is about to run in a transaction, or a transaction is created. */
  readonly onTransaction?: (transaction: Transaction) => void
  /** An exchange has ended, and its caller does not have the result yet. */
  readonly onExchange: ExchangeObserver
}

/** Fiber that calls a statement. */
type CallingFiber = Fiber.RuntimeFiber<unknown, unknown>

/** Executor whose work is observed by instruments. */
export class InstrumentedExecutor extends ObservedExecutor {
  /** The transaction of the statement that is being started. */
  private found: Transaction | undefined

  constructor(
    base: Executor,
    readonly instruments: ReadonlyArray<Instrument>
  ) {
    super(base, exchangesIn(base) ?? new ExchangeObservers(instruments.map(({ onExchange }) => onExchange)))
  }

  override observing(sandboxed: Executor): Executor {
    return new InstrumentedExecutor(sandboxed, this.instruments)
  }

  override run<A>(
    fiber: CallingFiber,
    kind: Role,
    plain: Request,
    read: (exchange: Exchange) => A
  ): Effect.Effect<A, SqlError> {
    const call = callOf(plain) ?? this.call(fiber, kind, plain)
    this.found = undefined
    const request = plain instanceof ObservedRequest ? plain : new ObservedRequest(plain, call)
    const running = super.run(fiber, kind, request, read)
    call.place(this.found)
    return Effect.onExit(running, (exit) => Effect.sync(() => call.end(exit)))
  }

  override streams(kind: Role): MakeStream {
    const streams = super.streams(kind)
    return (made, transformRows) =>
      Stream.unwrap(
        Effect.withFiberRuntime<Stream.Stream<object, SqlError>>((fiber) => {
          const call = this.call(fiber, kind, made)
          const stream = streams(new ObservedRequest(made, call), transformRows)
          return Effect.succeed(Stream.ensuringWith(stream, (exit) => Effect.sync(() => call.end(exit))))
        })
      )
  }

  override transactionFor(...args: Parameters<ObservedExecutor["transactionFor"]>): Transaction | undefined {
    const transaction = super.transactionFor(...args)
    this.found = transaction
    if (transaction !== undefined) this.report(transaction)
    return transaction
  }

  override begin(...args: Parameters<ObservedExecutor["begin"]>): Transaction {
    const transaction = super.begin(...args)
    this.report(transaction)
    return transaction
  }

  private call(fiber: CallingFiber, kind: Role, { site, text, values }: Request): StatementCall {
    const location = (site ?? Context.get(fiber.currentContext, CurrentSite))?.location
    const call = new StatementCall(kind, text, values.length, location)
    for (const { onCall } of this.instruments) onCall?.(call)
    return call
  }

  private report(transaction: Transaction): void {
    for (const { onTransaction } of this.instruments) onTransaction?.(transaction)
  }
}
