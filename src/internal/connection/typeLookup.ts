/**
 * The lookup of the names of types that the rows of an exchange have, before the rows are decoded.
 */
import { type Exchange, ExchangeRequest, type Failure } from "../protocol/exchange.js"
import * as messages from "../protocol/messages.js"
import { lookupSql, type TypeNames } from "../protocol/parsersByName.js"

const none: ReadonlyArray<never> = []

/**
 * Builds the failure of a statement that the server has executed, if its rows cannot be read. It
 * must not be reported as refused, undone or not sent.
 */
const unreadable = ({ _tag, error }: Failure, { acknowledged, request: { statement } }: Exchange): Failure => {
  const why = "the statement was done, but its rows cannot be read, for the names of their types could not be looked up"
  // without the code of the cause, which would have another meaning here
  const unread = new Error(`${why}: ${error.message}`, { cause: error })
  return _tag === "lost"
    ? { _tag, error: unread, sent: true, acknowledged, statement }
    : { _tag: "unsendable", error: unread, acknowledged, statement }
}

/**
 * Builds the request of a lookup for the rows of `exchange`. `isStored` is true if its statement
 * remains stored even if the lookup fails. `callback` receives the failure of the statement.
 */
export const typeLookup = (
  oids: ReadonlyArray<number>,
  types: TypeNames,
  exchange: Exchange,
  isStored: boolean,
  callback: (failure: Failure | undefined) => void
): ExchangeRequest => {
  const bytes = () =>
    messages.exchange(
      none,
      { text: lookupSql, values: [oids], name: "", parse: true, describe: false, close: () => none },
      none
    )
  const request = new ExchangeRequest(bytes, (failure, { result }) => {
    if (failure !== undefined) {
      return callback(isStored ? unreadable(failure, exchange) : { ...failure, acknowledged: exchange.acknowledged })
    }
    // rows of a raw exchange are as the server has written them
    types.addLookup(oids, result.rows as Array<ReadonlyArray<string | null>>)
    exchange.decodePending()
    callback(exchange.failure())
  })
  request.isRaw = true
  request.isMaintenance = true
  return request
}
