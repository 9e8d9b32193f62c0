/**
 * The lookup of the names of the types of columns, before the rows of an exchange are decoded.
 */
import { type Exchange, ExchangeRequest, type Failure } from "../protocol/exchange.js"
import * as messages from "../protocol/frontendMessages.js"
import { lookupSql, type TypeNames } from "../protocol/parsersByName.js"

const none: ReadonlyArray<never> = []

/**
 * Builds the failure of a statement that the server has executed, but whose rows cannot be read.
 * The failure must not count as refused, undone or not sent.
 */
const unreadable = ({ _tag, error }: Failure, { acknowledged, request: { statement } }: Exchange): Failure => {
  const reason =
    "the statement has run, but its rows cannot be read, because the names of their types could not be looked up"
  // without the code of the cause, which would be taken for a code of the statement
  const unread = new Error(`${reason}: ${error.message}`, { cause: error })
  return _tag === "lost"
    ? { _tag, error: unread, sent: true, acknowledged, statement }
    : { _tag: "unsendable", error: unread, acknowledged, statement }
}

/**
 * Builds the request of a lookup for the rows of `exchange`. `isStored` is true if the effects of
 * its statement remain stored even if the lookup fails. `callback` receives the failure of the
 * statement, if there is one.
 */
export const typeLookupRequest = (
  oids: ReadonlyArray<number>,
  types: TypeNames,
  exchange: Exchange,
  isStored: boolean,
  callback: (failure: Failure | undefined) => void
): ExchangeRequest => {
  const bytes = () =>
    messages.encodeExchange(
      none,
      { text: lookupSql, values: [oids], name: "", needsParse: true, needsDescribe: false, drainToClose: () => none },
      none
    )
  const request = new ExchangeRequest(bytes, (failure, { result }) => {
    if (failure !== undefined) {
      return callback(isStored ? unreadable(failure, exchange) : { ...failure, acknowledged: exchange.acknowledged })
    }
    // the rows of a raw exchange are arrays of texts
    types.addLookup(oids, result.rows as Array<ReadonlyArray<string | null>>)
    exchange.decodePending()
    callback(exchange.failure())
  })
  request.isRaw = true
  request.isMaintenance = true
  return request
}
