/**
 * The faults that are in effect: which connections and statements they concern.
 */
import type { FaultSocket } from "./faultSocket.js"

/** Kind of a fault: an event at a statement, or a state of all connections of a server. */
export type FaultKind =
  | { readonly _tag: "Disconnect" }
  | { readonly _tag: "LoseAnswer" }
  | { readonly _tag: "Freeze" }
  | { readonly _tag: "Delay"; readonly millis: number }
  | { readonly _tag: "Refuse"; readonly sqlState: string; readonly message: string }
  | { readonly _tag: "Unreachable" }
  | { readonly _tag: "RefuseLogin"; readonly sqlState: string; readonly message: string }

/** Fault in effect. */
export interface FaultRule {
  readonly kind: FaultKind
  /** Checks if the rule concerns a server, by its name. */
  readonly concerns: (server: string) => boolean
  /** Checks if the rule concerns a statement, by its text; `undefined` if it concerns connections. */
  readonly matches: ((text: string) => boolean) | undefined
  /** The number of matching statements that are left out before the fault. */
  skip: number
  /** The number of times that the fault is left to happen. */
  left: number
  /** Called each time that the fault happens. */
  readonly onHappened: () => void
}

/** The faults of one database, and its sockets. */
export class FaultRules {
  readonly sockets = new Set<FaultSocket>()
  private readonly rules = new Set<FaultRule>()

  add(rule: FaultRule): void {
    this.rules.add(rule)
    for (const socket of [...this.sockets]) if (rule.concerns(socket.server)) socket.onRule(rule)
  }

  /** Removes a rule; connections that it has frozen or delayed go on. */
  remove(rule: FaultRule): void {
    this.rules.delete(rule)
    for (const socket of [...this.sockets]) socket.onRemoved(rule)
  }

  /** Returns the fault of a statement that is about to be sent, if there is one. */
  atStatement(server: string, text: string): FaultRule | undefined {
    for (const rule of this.rules) {
      if (rule.matches === undefined || rule.left === 0 || !rule.concerns(server) || !rule.matches(text)) continue
      if (rule.skip > 0) {
        rule.skip--
        continue
      }
      rule.left--
      rule.onHappened()
      return rule
    }
    return undefined
  }

  /** Returns the faults of all connections of a server. */
  ofConnections(server: string): ReadonlyArray<FaultRule> {
    return [...this.rules].filter((rule) => rule.matches === undefined && rule.concerns(server))
  }
}
