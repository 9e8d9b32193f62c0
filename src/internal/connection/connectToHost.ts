/**
 * The connect to one host with given credentials.
 */
import type { SessionConfig } from "../../DatabaseConfig.js"
import type { ConnectFailure } from "./connectFailure.js"
import { Connection, type Owner } from "./connection.js"
import type { Login } from "./credentials.js"
import type { Destination } from "./destination.js"
import { startup } from "./startup.js"

/**
 * Opens a connection. `callback` is called once, unless the returned function cancels the connect
 * before.
 */
export const connectToHost = (
  server: Destination,
  session: SessionConfig,
  options: { readonly timeout: number; readonly readOnly: boolean; readonly owner: Owner; readonly credentials: Login },
  callback: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void
): (() => void) => {
  let opened: Connection | undefined
  const cancel = startup(server, session, options, (failure, loggedIn) => {
    if (loggedIn === undefined) return callback(failure, undefined)
    const { client, notices, parameters } = loggedIn
    const { credentials: login, owner, readOnly } = options
    const isForWrites = !readOnly && server.target === "read-write"
    const isPooled = session.mode === "transactionPooler"
    const role = {
      isForWrites,
      isDoubted: isForWrites && (isPooled || !parameters.has("in_hot_standby")),
      refused: owner.refusedWrites ?? { count: 0 }
    }
    // the login through a pooler does not make the session refuse writes
    const refusesWrites = readOnly && session.mode === "session"
    const connection = new Connection({ client, server, session, parameters, refusesWrites, role, login }, owner)
    opened = connection
    // the client calls back before it has cleared its own state
    queueMicrotask(() => {
      if (opened === undefined) return
      opened = undefined
      for (const notice of notices) owner.noticed?.(connection, notice)
      callback(undefined, connection)
    })
  })
  return () => {
    cancel()
    opened?.destroy("shutdown")
    opened = undefined
  }
}
