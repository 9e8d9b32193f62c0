/**
 * The transaction context of work that runs outside of the transactions of one database on purpose.
 */
import type { Role } from "../../Topology.js"
import type { Options } from "../../Transaction.js"
import { type Demanded, TransactionContext } from "./context.js"
import type { Hook } from "./hook.js"
import { type SettingsByDatabase, withoutDatabase } from "./settingsByDatabase.js"
import type { Origin, Transaction } from "./transaction.js"

/** Context in which one database has no transaction, and no unit of work begins one. */
export class OutsideContext extends TransactionContext {
  constructor(
    parent: TransactionContext | undefined,
    private readonly origin: Origin
  ) {
    super(parent, origin.database)
  }

  override find(origin: Origin): Transaction | "none" | undefined {
    return origin === this.origin ? "none" : super.find(origin)
  }

  override enlist(origin: Origin, kind: Role): Transaction | "none" | undefined {
    return origin === this.origin ? "none" : super.enlist(origin, kind)
  }

  override get transaction(): Transaction | undefined {
    const around = super.transaction
    return around?.origin === this.origin ? undefined : around
  }

  override whenStored(action: () => void): boolean {
    // the action may belong to work that is stored already, or to work of the transactions around,
    // so it runs now, and again after those
    super.whenStored(action)
    return false
  }

  override open(origin: Origin, begin: (options: Options) => Transaction): Transaction | undefined {
    return origin === this.origin ? undefined : super.open(origin, begin)
  }

  override addHook(origin: Origin, hook: Hook, begin: (options: Options) => Transaction): boolean {
    return origin !== this.origin && super.addHook(origin, hook, begin)
  }

  override takesHooks(origin: Origin): boolean {
    return origin !== this.origin && super.takesHooks(origin)
  }

  override demand(settings: SettingsByDatabase, joins: boolean): Demanded {
    return super.demand(withoutDatabase(settings, this.origin.database), joins)
  }

  override hasOpen(database: string): boolean {
    return database !== this.origin.database && super.hasOpen(database)
  }
}
