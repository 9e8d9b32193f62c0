/**
 * A session that a reader has for itself. Its statements are in no transaction of ours, so what keeps it from writing goes around each one,
 * and behind each BEGIN of the program.
 */

import type { SessionConfig } from "../../DatabaseConfig.js"
import type { Connection, OnExchange, Request } from "../connection/connection.js"
import { constantStep } from "../protocol/messages.js"
import { commandsIn } from "../sql/commands.js"
import { autocommitGuard, runGuarded } from "../statement/autocommitGuard.js"

/** The commands that begin and end transactions. All but the first two are refused outside of one, or do nothing. */
const control = /^(?:BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE)\b/

/** The tags after which a transaction may be a new one: that of COMMIT AND CHAIN has none of its own. */
const begins = new Set(["BEGIN", "START", "COMMIT", "ROLLBACK"])

/** A transaction is read-only for good only after its first query. That comes first, for the rows of a last step would be the statement's. */
const seal = [constantStep("SELECT 1"), constantStep("SET TRANSACTION READ ONLY")]

/** Runs a statement so that it cannot write, in a transaction that the program has begun by hand or outside of any. */
export const runReadOnly = (
  connection: Connection,
  session: SessionConfig,
  request: Request,
  isWanted: () => boolean,
  done: OnExchange
): void => {
  const [command] = commandsIn(request.text, 1)
  if (connection.status === "I" && (command === undefined || !control.test(command))) {
    const before = autocommitGuard(connection, session, true, request)
    return before.length === 0
      ? connection.run([], request, [], done)
      : runGuarded(connection, before, request, isWanted, done)
  }
  connection.run([], request, [], (failure, exchange) => {
    if (failure !== undefined || connection.status !== "T" || !begins.has(exchange.result.command ?? "")) {
      return done(failure, exchange)
    }
    // where it fails, the transaction is aborted or its connection lost
    connection.steps(seal, (failure) => done(failure, exchange))
  })
}
