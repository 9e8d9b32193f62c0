/**
 * Statements of a program that end the transaction around them. The server reports each command by
 * its tag. For the tag `ROLLBACK` the text is read as well, because `ROLLBACK TO SAVEPOINT`, which
 * ends no transaction, has the same tag.
 */
import type { Exchange } from "../protocol/exchange.js"
import { commandsIn } from "../sql/commandScanner.js"

/** The command that has ended a transaction. */
export type EndingStatement = "COMMIT" | "ROLLBACK"

const commits = /^(?:COMMIT|END|PREPARE TRANSACTION)\b/
const savepointRollback = /^ROLLBACK(?: WORK| TRANSACTION)? TO\b/

/**
 * Returns the command by which a statement has ended the transaction, if it has. The statement may
 * have begun another transaction at once.
 */
export const endingStatementOf = ({ result, results }: Exchange, text: string): EndingStatement | undefined => {
  let rollbacks = 0
  for (const { command } of results.length === 0 ? [result] : results) {
    if (command === "COMMIT") return "COMMIT"
    if (command === "ROLLBACK") rollbacks++
  }
  if (rollbacks === 0) return undefined
  const savepoints = commandsIn(text).filter((command) => savepointRollback.test(command))
  return rollbacks > savepoints.length ? "ROLLBACK" : undefined
}

/**
 * Checks by the text of a statement whether it may commit its transaction, if the answer was lost.
 */
export const mayCommit = (text: string): boolean => commandsIn(text).some((command) => commits.test(command))

const ends = /^(?:COMMIT|END|ROLLBACK|ABORT|PREPARE TRANSACTION)\b/

/**
 * Returns the first command of a text that would end the transaction around it, if there is one.
 */
export const endingStatementIn = (text: string): string | undefined => {
  // the END of a function body without quotes looks like a command
  let bodies = text.match(/\bBEGIN\s+ATOMIC\b/gi)?.length ?? 0
  return commandsIn(text).find(
    (command) => ends.test(command) && !savepointRollback.test(command) && !(command === "END" && bodies-- > 0)
  )
}
