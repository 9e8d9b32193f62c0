import { QueryFailed } from "../../DatabaseError.js"
import type { Request } from "../connection/connection.js"
import { endingStatementIn } from "../transaction/endingStatement.js"
import type { Origin } from "../transaction/transaction.js"

/**
 * Returns the error of a statement that would end the transaction of a sandbox. Its COMMIT would
 * store the writes of the sandbox. Returns `undefined` for any other statement, and without a
 * sandbox.
 */
export const sandboxRefusal = (
  { database, sandbox }: Pick<Origin, "database" | "sandbox">,
  { text }: Request
): QueryFailed | undefined => {
  const command = sandbox === undefined ? undefined : endingStatementIn(text)
  if (command === undefined) return undefined
  const cause = new Error(`${command} would end the sandbox: use withTransaction, or a reserved connection`)
  return new QueryFailed({ database, server: "", cause })
}
