/**
 * Portals: the rows of a statement in batches, while other statements of the transaction run in
 * between.
 */
import * as clock from "../concurrency/clock.js"
import type { Connection, Exchange, Request } from "../connection/connection.js"
import type { StatementFailure } from "../connection/failure.js"
import { rollbackTimeout } from "../sql/timeouts.js"
import type { OnStatement } from "../statement/autocommit.js"
import type { Level } from "./level.js"
import { exchangeIn } from "./levelExchange.js"
import { withOwnSteps } from "./pendingBegin.js"

const nothing = () => {}

/**
 * Opens a portal and fetches its first rows. The returned function cancels both. If the statement
 * was sent, its level can only be undone then.
 */
export const openPortal = (
  level: Level,
  request: Request,
  size: number,
  done: (failure: StatementFailure | undefined, portal: Portal | undefined) => void,
  onSent: () => void
): (() => void) => {
  let name = ""
  return exchangeIn(
    level,
    request,
    "none",
    (failure, exchange) =>
      done(failure, exchange === undefined ? undefined : new Portal(level, name, exchange, size, request)),
    onSent,
    (connection, pending, finish) => {
      name = connection.nextPortal()
      const first = withOwnSteps(pending, level.connectionHolder.searchPathSteps(request.path))
      connection.openPortal(first, name, request, size, finish)
    }
  )
}

/** An open portal. */
export class Portal {
  constructor(
    private readonly level: Level,
    private readonly name: string,
    /** The exchange that has opened the portal, with the first rows. */
    readonly first: Exchange,
    private readonly size: number,
    private readonly request: Request
  ) {}

  /** Fetches more rows. */
  next(done: OnStatement): () => void {
    const { first, level, name, request, size } = this
    return exchangeIn(level, request, "none", done, nothing, (connection, _, finish) =>
      // the server may look up names while it fetches, so the search path is set again
      connection.fetchPortal(level.connectionHolder.searchPathSteps(request.path), name, first, size, finish)
    )
  }

  /**
   * Closes the portal before its last row. `done` is called within a second in any case, because
   * the end of the transaction closes the portal, too. `isOver` is true if the transaction is about
   * to end. Then a connection that does not answer is closed, so that the end does not wait for it
   * again.
   */
  close(isOver: boolean, done: () => void): void {
    const { level, name, request } = this
    let sentOn: Connection | undefined
    const stop = clock.later(rollbackTimeout[isOver ? "interrupted" : "default"], () => {
      if (sentOn === undefined) leave()
      else if (isOver) sentOn.destroy("broken")
      done()
    })
    const closed = () => {
      stop()
      done()
    }
    const leave = exchangeIn(level, request, "none", closed, nothing, (connection, _, finish) => {
      sentOn = connection
      connection.closePortal(name, finish)
    })
  }
}
