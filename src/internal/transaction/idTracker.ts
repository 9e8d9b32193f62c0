/**
 * The id of a transaction, which proves the outcome of its COMMIT if the answer is lost. The id must
 * be known before COMMIT is sent.
 *
 * The server assigns the id with the first write. So the first statements are followed by a step,
 * in the same exchange, that queries the id, until it is assigned. This costs no round trip. The
 * step is left out where it could change the meaning of later commands: the first query of a
 * transaction takes its snapshot, and the snapshot must not be taken before a `LOCK TABLE` or `SET
 * TRANSACTION` of the program. The step is left out as well for a plain SELECT, which hardly ever
 * writes. After other commands, a COPY or a portal, the id is queried in an exchange of its own
 * before COMMIT.
 */
import type { Connection, Exchange, Failure } from "../connection/connection.js"
import { decodeId, idRequest, idStepOf, type TransactionId } from "../outcome/transactionStatus.js"
import type { Step } from "../protocol/frontendMessages.js"
import { commandsIn } from "../sql/commandScanner.js"
import { type CommitOutcomes, isUnsupported } from "./outcomesByStatus.js"
import { makeSavepoint } from "./savepoint.js"

/** The commands that take a snapshot themselves, so that a query after them changes nothing. */
const snapshotCommand = /^\s*(?:SELECT|INSERT|UPDATE|DELETE|MERGE|WITH)\b/i
const comment = /^\s*(?:--|\/\*)/
const select = /^\s*SELECT\b/i
/** The words of a SELECT that writes: it creates a table, or locks rows. */
const writeWord = /\b(?:INTO|FOR)\b/i

const takesSnapshot = (text: string): boolean =>
  snapshotCommand.test(text) || (comment.test(text) && snapshotCommand.test(commandsIn(text, 1)[0] ?? ""))

/** Checks if a text is a SELECT that calls no function by name and writes nothing. */
const isPlainSelect = (text: string): boolean =>
  select.test(text) && !text.includes("(") && !text.includes(";") && !writeWord.test(text)

/** The commands that assign no id. */
const withoutId = /^\s*(?:SET|RESET|SHOW|SAVEPOINT|RELEASE|ROLLBACK|DECLARE|FETCH|MOVE|CLOSE|LISTEN|UNLISTEN)\b[^;]*$/i

/** The id of one transaction, as far as its server has reported it. */
export class IdTracker {
  id: TransactionId | undefined = undefined
  /** True if the server may have assigned an id since it was queried last. */
  private isOutdated = false
  /** True if the exchange in progress has the step that queries the id. */
  private isAsked = false

  constructor(private readonly outcomes: CommitOutcomes | undefined) {}

  /** Returns the step that queries the id after a statement, unless the step is left out. */
  stepAfter(connection: Connection, text: string): Step | undefined {
    const { id, outcomes } = this
    if (id !== undefined || outcomes?.isSupported !== true || isPlainSelect(text) || !takesSnapshot(text))
      return undefined
    this.isAsked = true
    return idStepOf(connection)
  }

  /**
   * Records an exchange that may have written, with the answer to the query of the id, if it had
   * one.
   */
  onExchange(connection: Connection, exchange: Exchange, failure: Failure | undefined, text: string): void {
    const { outcomes } = this
    if (outcomes === undefined || this.id !== undefined) return
    const { acknowledged, request, stepRow } = exchange
    if (stepRow !== undefined) this.record(connection, stepRow)
    else if (this.isAsked) {
      this.isOutdated = true
      // the step itself was refused
      if (failure !== undefined && acknowledged === request.before + request.main) {
        if (isUnsupported(failure)) outcomes.isSupported = false
        // the program has deallocated all statements
        else connection.hasProofStatement = false
      }
    } else if (!isPlainSelect(text) && !withoutId.test(text)) this.isOutdated = true
    this.isAsked = false
  }

  /** Forgets the id: another transaction begins. */
  reset(): void {
    this.id = undefined
    this.isOutdated = false
  }

  /**
   * Queries the id before COMMIT if it is not known, then calls `proceed`. The query has a savepoint
   * of its own, in the same exchange, so that its failure does not undo the transaction.
   */
  beforeCommit(connection: Connection, proceed: () => void): void {
    const { id, isOutdated, outcomes } = this
    const isOff = outcomes === undefined || outcomes.isSupported === false
    if (id !== undefined || !isOutdated || isOff || connection.status !== "T") return proceed()
    const savepoint = makeSavepoint()
    connection.run([savepoint.set], idRequest, [savepoint.release], (failure, exchange) => {
      if (failure === undefined) {
        this.id = outcomes.onAnswer(connection, exchange.result.rows[0])
        return proceed()
      }
      if (failure._tag !== "refused") return proceed()
      if (isUnsupported(failure)) outcomes.isSupported = false
      connection.undo(savepoint.undo, proceed)
    })
  }

  private record(connection: Connection, row: ReadonlyArray<unknown>): void {
    this.id = decodeId(connection, row)
    this.isOutdated = false
  }
}
