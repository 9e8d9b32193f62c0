/**
 * The id of a transaction, which proves the outcome of its COMMIT if the answer is lost. The id must
 * be known before COMMIT is sent.
 *
 * The server assigns the id with the first write. So the first statements are followed by a step, in
 * the same exchange, that queries the id, until it is assigned. This costs no round trip. The step is
 * left out where it could change the meaning of later commands: the first query of a transaction
 * takes its snapshot, and it must not be taken before a `LOCK TABLE` or `SET TRANSACTION` of the
 * program. It is left out as well for a plain SELECT, which cannot write. After other commands, a
 * COPY or a portal, the id is queried in an exchange of its own before COMMIT.
 */
import type { Connection, Exchange } from "../connection/connection.js"
import { decodeId, idRequest, idStepOf, type TransactionId } from "../consistency/transactionStatus.js"
import type { Step } from "../protocol/frontendMessages.js"
import { commandsIn } from "../sql/commands.js"
import type { CommitOutcomes } from "./commitOutcomes.js"
import { makeSavepoint } from "./savepoint.js"

const none: ReadonlyArray<never> = []

/** The commands that take a snapshot themselves, so that a query after them changes nothing. */
const snapshotCommand = /^\s*(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH)\b/i
const comment = /^\s*(?:--|\/\*)/
const select = /^\s*SELECT\b/i
/** The words of a SELECT that writes: it creates a table, or locks rows. */
const writeWord = /\b(?:INTO|FOR)\b/i

const takesSnapshot = (text: string): boolean =>
  snapshotCommand.test(text) || (comment.test(text) && snapshotCommand.test(commandsIn(text, 1)[0] ?? ""))

/** Checks if a text is a SELECT that calls no function by name and writes nothing. */
const isPlainSelect = (text: string): boolean => select.test(text) && !text.includes("(") && !writeWord.test(text)

/** The id of one transaction, as far as its server has reported it. */
export class IdTracker {
  id: TransactionId | undefined = undefined
  /** True if the server may have assigned an id since it was queried last. */
  private isOutdated = false
  /** True if the step is a part of the exchange in progress. */
  private isAsked = false

  constructor(private readonly outcomes: CommitOutcomes | undefined) {}

  /** Returns the step to send after a statement, if it queries the id. */
  stepAfter(connection: Connection, text: string): Step | undefined {
    const { id, outcomes } = this
    if (id !== undefined || outcomes?.isSupported !== true || isPlainSelect(text) || !takesSnapshot(text))
      return undefined
    this.isAsked = true
    return idStepOf(connection)
  }

  /** Records an exchange that may have written, with the answer to its step, if it had one. */
  onExchange(connection: Connection, { acknowledged, request, stepRow }: Exchange, text: string): void {
    if (this.id !== undefined) return
    if (stepRow !== undefined) this.record(connection, stepRow)
    else if (!isPlainSelect(text)) {
      this.isOutdated = true
      // the step itself was refused
      if (this.isAsked && connection.status === "E" && acknowledged === request.before + request.main && this.outcomes)
        this.outcomes.isSupported = false
    }
    this.isAsked = false
  }

  /** Forgets the id: another transaction begins. */
  reset(): void {
    this.id = undefined
    this.isOutdated = false
  }

  /**
   * Queries the id before COMMIT if it is not known, then calls `proceed`. The first query of a
   * database has a savepoint of its own.
   */
  beforeCommit(connection: Connection, proceed: () => void): void {
    const { id, isOutdated, outcomes } = this
    const isOff = outcomes === undefined || outcomes.isSupported === false
    if (id !== undefined || !isOutdated || isOff || connection.status !== "T") return proceed()
    const savepoint = outcomes.isSupported === undefined ? makeSavepoint() : undefined
    const before = savepoint === undefined ? none : [savepoint.set]
    const after = savepoint === undefined ? none : [savepoint.release]
    connection.run(before, idRequest, after, (failure, exchange) => {
      if (failure === undefined) {
        this.id = outcomes.onAnswer(connection, exchange.result.rows[0])
        return proceed()
      }
      if (savepoint === undefined || failure._tag !== "refused") return proceed()
      outcomes.isSupported = false
      connection.undo(savepoint.undo, proceed)
    })
  }

  private record(connection: Connection, row: ReadonlyArray<unknown>): void {
    this.id = decodeId(connection, row)
    this.isOutdated = false
  }
}
