/**
 * A session that a reader has reserved. Its statements are in no transaction of this library. So
 * each statement outside of a transaction is guarded against writes, and a transaction of the
 * program is made read-only after its BEGIN.
 */

import type { SessionConfig } from "../../DatabaseConfig.js"
import type { Connection, OnExchange, Request } from "../connection/connection.js"
import { constantStep } from "../protocol/messages.js"
import { commandsIn } from "../sql/commands.js"
import { autocommitGuard, runGuarded } from "../statement/autocommitSteps.js"

/**
 * The commands that begin and end transactions. Outside of a transaction all but BEGIN and START
 * are refused, or do nothing.
 */
const control = /^(?:BEGIN|START|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE)\b/

/**
 * The tags after which the transaction may be a new one: COMMIT AND CHAIN has the tag of COMMIT.
 */
const begins = new Set(["BEGIN", "START", "COMMIT", "ROLLBACK"])

/**
 * The steps that make a transaction read-only. It cannot be made writable again after its first
 * query, so the first step is a query; as the last step its rows would be taken for those of the
 * statement.
 */
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
    // if this fails, the transaction is aborted or the connection is lost
    connection.steps(seal, (failure) => done(failure, exchange))
  })
}
