/**
 * The messages of errors at the end of transactions.
 */
import { type Caused, causeText, failureText, locationText } from "./messageParts.js"

export const commitFailed = (self: Caused): string =>
  `${locationText(self)}: the server refused COMMIT, so the transaction was rolled back${causeText(self)}`

export const commitVetoed = (self: Caused): string =>
  `${locationText(self)}: a beforeCommit hook failed, so the transaction was rolled back${failureText(self)}`

export const rolledBackAtCommit = (self: Caused & { readonly part?: string | undefined }): string =>
  self.part === undefined
    ? `${locationText(self)}: the transaction was rolled back, because a statement in it had failed${causeText(self)}` +
      " - let the failure end the transaction, or run a statement that may fail in a nested transaction"
    : `${locationText(self)}: the outer work was rolled back, because a part that had joined it (${self.part}) ` +
      `ended in rollback${failureText(self)} - let the failure of the part fail the outer work, ` +
      "or run the part in UnitOfWork.nested"

export const commitOutcomeUnknown = (self: Caused): string =>
  `${locationText(self)}: the connection was lost during COMMIT${causeText(self)}` +
  " - check whether the changes are stored before retrying"

interface Partial extends Caused {
  readonly committed: ReadonlyArray<string>
  readonly failed: string
  readonly outcome: "rolledBack" | "unknown"
}

export const partialCommit = (self: Partial): string =>
  `${locationText(self)}: the unit of work may be stored in part: ${self.committed.join(", ")} committed, ` +
  `${self.failed} ${self.outcome === "unknown" ? "may have committed or not" : "was rolled back"}${causeText(self)}` +
  " - the program must repeat or undo the missing part"
