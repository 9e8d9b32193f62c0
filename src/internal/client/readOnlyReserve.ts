/**
 * Statements on a connection that a reader has reserved. They are in no transaction of this
 * library, so each statement outside of a transaction runs in a read-only guard, and a transaction
 * of the program is made read-only after its BEGIN.
 */

import type { SessionConfig } from "../../DatabaseConfig.js"
import type { Connection, OnExchange, Request } from "../connection/connection.js"
import { constantStep } from "../protocol/frontendMessages.js"
import { commandsIn } from "../sql/commandScanner.js"
import { autocommitGuard, runGuarded } from "../statement/autocommitSteps.js"

/**
 * Matches the commands that control transactions. Outside of a transaction, the server refuses or
 * ignores all of them except BEGIN and START. COMMIT PREPARED is none of them: it stores the work of
 * another session, also in a read-only session, and the guard makes the server refuse it.
 */
const control = /^(?:BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE)\b(?! PREPARED)/

/**
 * The command tags after which a new transaction may be open. COMMIT AND CHAIN has the tag COMMIT.
 */
const begins = new Set(["BEGIN", "START", "COMMIT", "ROLLBACK"])

/**
 * The steps that make a transaction read-only. A query is among them, because after its first query
 * a transaction cannot be made writable again.
 */
const seal = [constantStep("SELECT 1"), constantStep("SET TRANSACTION READ ONLY")]

/**
 * Runs a statement that must not write, outside of a transaction or in one that the program has
 * begun by hand.
 */
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
    // if this fails, the transaction is aborted or the connection is lost
    connection.steps(seal, (failure) => done(failure, exchange))
  })
}
