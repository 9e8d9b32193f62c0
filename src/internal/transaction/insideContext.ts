/**
 * The transaction context inside of an open transaction.
 */
import * as Effect from "effect/Effect"
import { OptionsConflict } from "../../DatabaseError.js"
import type { Role } from "../../Topology.js"
import { FifoLock } from "../concurrency/fifoLock.js"
import type { Connection } from "../connection/connection.js"
import { type Demanded, type Retry, TransactionContext } from "./context.js"
import type { Hook } from "./hook.js"
import type { JoinedPart } from "./joinedPart.js"
import { optionsConflict, raiseIsolation } from "./propagation.js"
import { type SettingsByDatabase, settingsOf, withoutDatabase } from "./settingsByDatabase.js"
import type { Origin, Transaction } from "./transaction.js"

const whenStored = (action: () => void): Hook => ({ kind: "whenStored", order: 0, run: () => Effect.sync(action) })

/** Context with one more transaction. */
export class OpenContext extends TransactionContext {
  private nestedLock: FifoLock | undefined

  constructor(
    parent: TransactionContext | undefined,
    private readonly own: Transaction
  ) {
    super(parent, own.origin.database)
  }

  override get transaction(): Transaction {
    return this.own
  }

  override get siblingLock(): FifoLock {
    this.nestedLock ??= new FifoLock()
    return this.nestedLock
  }

  override find(origin: Origin): Transaction | "none" | undefined {
    return this.serves(origin, "writer") ? this.own : super.find(origin)
  }

  override enlist(origin: Origin, kind: Role): Transaction | "none" | undefined {
    return this.serves(origin, kind) ? this.own : super.enlist(origin, kind)
  }

  private serves(origin: Origin, kind: Role): boolean {
    const { own } = this
    // a reader's level nested in a writer's transaction holds the lock of the transaction, so a
    // writer's statement runs in the nested level, too
    return own.origin === origin && (own.kind === kind || (kind === "writer" && own.base === "writer"))
  }

  override part(transaction: Transaction): JoinedPart | undefined {
    return transaction === this.own ? undefined : super.part(transaction)
  }

  override demand(settings: SettingsByDatabase, joins: boolean): Demanded {
    const { own } = this
    if (own.base !== "writer") return super.demand(settings, joins)
    const required = settingsOf(settings, own.origin.database)
    const error = optionsConflict(own, required, joins)
    if (error !== undefined) return error
    const takeAround = super.demand(withoutDatabase(settings, own.origin.database), joins)
    if (takeAround instanceof OptionsConflict) return takeAround
    return () => {
      raiseIsolation(own, required, joins)
      takeAround()
    }
  }

  override hasOpen(database: string): boolean {
    return (this.own.base === "writer" && this.own.origin.database === database) || super.hasOpen(database)
  }

  override whenStored(action: () => void): boolean {
    // a savepoint that has ended has passed its work to the transaction around it
    if (this.isOver) return this.own.outer !== undefined && super.whenStored(action)
    this.own.addHook(whenStored(action))
    return true
  }

  override get isOver(): boolean {
    return this.own.level.state !== "open"
  }

  override takeRetry(transaction: Transaction | undefined, requested: Retry): boolean {
    const { retry = false } = this.own.options
    return transaction === this.own ? retry !== false : super.takeRetry(transaction, requested)
  }

  override held(origin: Origin): ReadonlyArray<Connection> {
    const others = super.held(origin)
    return this.own.origin === origin ? [...this.own.level.held, ...others] : others
  }

  override around(origin: Origin): Transaction | undefined {
    return this.own.origin === origin ? this.own : super.around(origin)
  }
}
