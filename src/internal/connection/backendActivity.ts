/**
 * The activity of a server process, queried in another session of the same user.
 */

import type { SessionConfig } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"
import { Exchange, ExchangeRequest } from "../protocol/exchange.js"
import * as messages from "../protocol/frontendMessages.js"
import type { Client } from "../protocol/pgDriver.js"
import type { ProvidedCredentials } from "./credentials.js"
import type { Destination } from "./destination.js"
import { startup } from "./startup.js"
import type { BackendState } from "./watchdog.js"

/** The timeout of the login and, separately, of the query, in ms. */
const stepTimeout = 5000

/**
 * Returns the text of the activity query. The state of a process is `active` even while it waits
 * for the client to send or read a message, so the wait event decides first.
 */
const activityQuery = (processId: number): string =>
  `SELECT CASE WHEN state LIKE 'idle%' OR wait_event IN ('ClientRead', 'ClientWrite') THEN 'waiting'
     WHEN state = 'active' THEN 'working' END
   FROM pg_catalog.pg_stat_activity WHERE pid = ${processId}`

const isState = (value: unknown): value is BackendState => value === "working" || value === "waiting"

const runQuery = (client: Client, processId: number, callback: (state: BackendState) => void): (() => void) => {
  const { stream } = client.connection
  const end = () => {
    cancelTimeout()
    const cancelDestroy = clock.later(1000, () => stream.destroy())
    stream.once("close", cancelDestroy)
    client.end().catch(() => stream.destroy())
  }
  let isOver = false
  const settle = (state: BackendState) => {
    if (isOver) return
    isOver = true
    end()
    callback(state)
  }
  const cancelTimeout = clock.later(stepTimeout, () => settle("unknown"))
  const request = new ExchangeRequest(
    () => messages.encodeSimple(activityQuery(processId)),
    (_, { results }) => {
      const state: unknown = Object.values(results[0]?.rows[0] ?? {})[0]
      // there is no row if a pooler has reported a process number of its own, or if this session is
      // on another server
      settle(isState(state) ? state : "unknown")
    }
  )
  request.asArrays = true
  request.isSimple = true
  const exchange = new Exchange(client, request, () => settle("unknown"))
  stream.unref()
  client.on("end", () => settle("unknown"))
  client.connection.on("readyForQuery", () => exchange.request.onDone(exchange.failure(), exchange))
  if (exchange.prepare() === undefined) client.query(exchange)
  return () => {
    if (isOver) return
    isOver = true
    cancelTimeout()
    stream.destroy()
  }
}

/** Queries the activity of a server process; the returned function cancels. */
export const queryActivity = (
  server: Destination,
  session: SessionConfig,
  credentials: ProvidedCredentials,
  processId: number,
  callback: (state: BackendState) => void
): (() => void) => {
  let isOver = false
  let cancelQuery = () => {}
  // the type parsers of the program must not change the row
  const plain = { ...session, types: undefined }
  const cancelLogin = startup(server, plain, { timeout: stepTimeout, readOnly: true, credentials }, (_, loggedIn) => {
    if (loggedIn === undefined) return callback("unknown")
    const { client } = loggedIn
    // the client calls back before it has cleared its own state
    queueMicrotask(() => {
      if (isOver) client.connection.stream.destroy()
      else cancelQuery = runQuery(client, processId, callback)
    })
  })
  return () => {
    isOver = true
    cancelLogin()
    cancelQuery()
  }
}
