/**
 * An executor of an opened database beside its own, for tests: it shares the servers, pools and
 * settings, and its exchanges are observed.
 */
import type * as Fiber from "effect/Fiber"
import type { Role } from "../../Topology.js"
import type { ConnectionSource } from "../topology/connectionSource.js"
import type { TransactionContext } from "../transaction/context.js"
import type { Transaction } from "../transaction/transaction.js"
import { ExchangeObservers, ObservedSource } from "./exchangeObservers.js"
import { Executor } from "./executor.js"

/** Executor whose connections are observed. In a sandbox, those are observed by its root. */
export class ObservedExecutor extends Executor {
  constructor(
    base: Executor,
    readonly exchanges: ExchangeObservers,
    sandbox: Transaction | undefined = base.sandbox
  ) {
    // the routing, which has the function that chooses, is that of `base`
    super(base.config, base.topology, base.observer, () => 0, sandbox, base)
  }

  override picker(
    kind: Role,
    fiber: Fiber.RuntimeFiber<unknown, unknown>,
    ambient: TransactionContext | undefined
  ): () => ConnectionSource {
    const pick = super.picker(kind, fiber, ambient)
    return kind === "writer" ? pick : () => new ObservedSource(pick(), this.exchanges)
  }

  protected override get writes(): ConnectionSource {
    return new ObservedSource(super.writes, this.exchanges)
  }
}

/** Returns the observers of the connection of a sandbox, if the executor runs in one. */
export const exchangesIn = (executor: Executor): ExchangeObservers | undefined =>
  executor.sandbox !== undefined && executor instanceof ObservedExecutor ? executor.exchanges : undefined

/**
 * Returns the observers for a sandbox of a database. A sandbox inside of another one uses the
 * connection of that one.
 */
export const exchangesOfSandbox = (executor: Executor): ExchangeObservers =>
  exchangesIn(executor) ?? new ExchangeObservers(executor instanceof ObservedExecutor ? executor.exchanges.all : [])
