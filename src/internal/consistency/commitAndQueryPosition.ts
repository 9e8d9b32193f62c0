/**
 * A COMMIT that queries the WAL position in the same exchange.
 */
import type { Connection } from "../connection/connection.js"
import { constantStep, type Step } from "../protocol/frontendMessages.js"
import { decodeStatus, positionQuery, type WalStatus } from "./queryPosition.js"

const none: ReadonlyArray<never> = []

/**
 * The step before COMMIT that saves `synchronous_commit` and the id of the transaction. COMMIT
 * resets `synchronous_commit` if it was SET LOCAL. A transaction without an id has nothing to
 * commit.
 */
const commitInfoStep: Step = constantStep(
  `SELECT pg_catalog.set_config('effect_db.commit', pg_catalog.concat(pg_catalog.current_setting('synchronous_commit'), ' ',
  pg_catalog.pg_current_xact_id_if_assigned()), false)`
)

/** Result of a COMMIT with a position query, with the status of the server after the COMMIT. */
export interface CommitResult {
  /** False if the server has rolled back instead. */
  readonly isCommitted: boolean
  readonly status: WalStatus | undefined
}

/** The steps that reset a session that other clients share behind a pooler. */
const resetSteps = [constantStep("RESET effect_db.commit")]

/**
 * Commits and queries the position in the same exchange. The last of `steps` is COMMIT. `callback`
 * receives a failure only if the COMMIT was not answered.
 */
export const commitAndQueryPosition = (
  connection: Connection,
  steps: ReadonlyArray<Step>,
  callback: (failure: Parameters<Parameters<Connection["steps"]>[1]>[0], result: CommitResult) => void
): void => {
  const before = [...steps.slice(0, -1), commitInfoStep, ...steps.slice(-1)]
  connection.run(before, positionQuery, connection.isPooled ? resetSteps : none, (failure, exchange) => {
    const isAnswered = exchange.acknowledged >= before.length
    const status = failure === undefined ? decodeStatus(exchange) : undefined
    // a failure after the answer to COMMIT cannot undo the COMMIT
    callback(isAnswered ? undefined : failure, { isCommitted: exchange.precedingTag !== "ROLLBACK", status })
  })
}
