/**
 * The messages of errors of the use of transactions, such as a statement after the end of a
 * transaction, or conflicting options.
 */
import { type Caused, causeText, type Location, locationText } from "./messageParts.js"

export const transactionEnded = (self: Caused & { readonly by?: "COMMIT" | "ROLLBACK" | undefined }): string =>
  self.by === undefined
    ? `${locationText(self)}: the transaction has ended${causeText(self)} - join forked fibers before its end, ` +
      "or run work that outlives it in UnitOfWork.outside (with promises: in `outside` of the runtime)"
    : `${locationText(self)}: a statement with ${self.by} ended the transaction, and the work before it was ` +
      `${self.by === "COMMIT" ? "committed" : "rolled back"}${causeText(self)} - ` +
      "let withTransaction or the unit of work end the transaction"

/** The length of the excerpt of an interrupted statement, in characters. */
const maxStatementLength = 200

interface Interrupted extends Location {
  readonly statement: string
  readonly callSite?: string | undefined
}

export const transactionInterrupted = (self: Interrupted): string => {
  const { callSite, statement } = self
  const text = statement.length > maxStatementLength ? `${statement.slice(0, maxStatementLength)}...` : statement
  return (
    `${locationText(self)}: the program interrupted a statement of the transaction` +
    `${callSite === undefined ? "" : ` at ${callSite}`}, so it was rolled back: ${text}` +
    " - run work that may be interrupted, such as by a timeout, in a nested transaction"
  )
}

export const transactionBusy = (self: Location & { readonly waitedMillis: number }): string =>
  self.waitedMillis === 0
    ? `${locationText(self)}: the transaction cannot be committed while other work in it is in progress` +
      " - wait for that work first"
    : `${locationText(self)}: a nested transaction did not end within ${self.waitedMillis} ms, and the outer one waits for it` +
      " - join forked fibers before the end, and let no nested transaction wait for its siblings"

export const foreignClient = (self: Location): string =>
  `${locationText(self)}: another SQL client was used inside a transaction of this database` +
  " - wrap its use in Database.isolate, or use it outside of the transaction"

interface PropagationConflict extends Location {
  readonly propagation: "mandatory" | "never" | "commit" | "rollback"
}

export const propagationRefused = (self: PropagationConflict): string => {
  switch (self.propagation) {
    case "mandatory":
      return (
        `${locationText(self)}: propagation "mandatory" needs a transaction, and there is none` +
        " - run the effect inside of a transaction"
      )
    case "never":
      return (
        `${locationText(self)}: propagation "never" allows no transaction, and there is one` +
        " - run the effect outside of the transaction"
      )
    default:
      return (
        `${self.database === "" ? "" : `${locationText(self)}: `}${self.propagation} ends the transactions of a unit of work` +
        " - inside of withTransaction and of UnitOfWork.nested, let the effect succeed or fail instead"
      )
  }
}

interface Conflict extends Location {
  readonly option: string
  readonly outer: string
  readonly inner: string
}

export const optionsConflict = (self: Conflict): string => {
  const { inner, option, outer } = self
  const location = self.database === "" ? "" : `${locationText(self)}: `
  switch (option) {
    case "outcome":
      return (
        `${location}${inner} with its own outcome joined ${outer}, which decides the outcome` +
        " - set outcome on the outer middleware, or remove one of the two"
      )
    case "idempotencyKey":
      return (
        `${location}${inner} with an idempotency key joined ${outer}, which commits it` +
        " - set idempotencyKey on the outer middleware, or remove one of the two"
      )
    case "retry":
      return (
        `${location}a part with retry joined outer work that cannot be run again` +
        ' - set retry on the outer work, or use propagation "requiresNew"'
      )
    default:
      return (
        `${location}a transaction with ${option} "${inner}" cannot join one with "${outer}"` +
        ' - use the same value, or propagation "requiresNew"'
      )
  }
}
