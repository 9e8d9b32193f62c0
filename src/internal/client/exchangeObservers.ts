/**
 * Observers of the exchanges of a database in a test. A database that is not observed has none of
 * this: its executor checks connections out of the pools themselves.
 */
import * as Effect from "effect/Effect"
import type { Connection, ExchangeObserver } from "../connection/connection.js"
import type { Caller } from "../pool/caller.js"
import type { PoolDependencies } from "../pool/poolDependencies.js"
import type { ConnectionSource, OnCheckout } from "../topology/connectionSource.js"

/** Observers of the exchanges of some connections. */
export class ExchangeObservers {
  readonly all: Set<ExchangeObserver>
  private unobservedCount = 0

  constructor(observers: Iterable<ExchangeObserver> = []) {
    this.all = new Set(observers)
  }

  readonly notify: ExchangeObserver = (connection, exchange, failure) => {
    if (this.unobservedCount > 0) return
    for (const observer of this.all) observer(connection, exchange, failure)
  }

  /** Adds an observer; the returned function removes it. */
  add(observer: ExchangeObserver): () => void {
    this.all.add(observer)
    return () => {
      this.all.delete(observer)
    }
  }

  /** Runs an effect whose exchanges are not observed. */
  unobserved<A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return Effect.acquireUseRelease(
      Effect.sync(() => this.unobservedCount++),
      () => self,
      () => Effect.sync(() => this.unobservedCount--)
    )
  }
}

/** Source of connections that are observed from the checkout to the checkin. */
export class ObservedSource implements ConnectionSource {
  private stop = () => {}

  constructor(
    private readonly source: ConnectionSource,
    private readonly observers: ExchangeObservers
  ) {}

  get options(): PoolDependencies {
    return this.source.options
  }

  checkout(deadline: number, holding: ReadonlyArray<Connection>, callback: OnCheckout, caller?: Caller): () => void {
    return this.source.checkout(
      deadline,
      holding,
      (failure, connection) => {
        if (connection !== undefined) this.stop = connection.observeExchanges(this.observers.notify)
        callback(failure, connection)
      },
      caller
    )
  }

  checkin(connection: Connection): void {
    this.stop()
    this.source.checkin(connection)
  }
}
