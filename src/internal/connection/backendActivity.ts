/**
 * What a process of the server is doing, as the server tells in another session of the same user.
 */

import type { SessionConfig } from "../../DatabaseConfig.js"
import * as clock from "../concurrency/clock.js"
import { Exchange, ExchangeRequest } from "../protocol/exchange.js"
import * as wire from "../protocol/messages.js"
import type { Client } from "../protocol/pgDriver.js"
import type { ProvidedCredentials } from "./credentials.js"
import type { Destination } from "./destination.js"
import { startup } from "./startup.js"
import type { BackendState } from "./watchdog.js"

/** How long the login and the question may take, each, in ms. */
const longest = 5000

/** One who sends, or waits for the rest of a message, is active, and yet it is we whom he waits for. */
const question = (processId: number): string =>
  `SELECT CASE WHEN state LIKE 'idle%' OR wait_event IN ('ClientRead', 'ClientWrite') THEN 'waits'
     WHEN state = 'active' THEN 'works' END
   FROM pg_catalog.pg_stat_activity WHERE pid = ${processId}`

const isDoing = (said: unknown): said is BackendState => said === "works" || said === "waits"

const ask = (client: Client, processId: number, told: (doing: BackendState) => void): (() => void) => {
  const { stream } = client.connection
  const end = () => {
    stop()
    const destroy = clock.later(1000, () => stream.destroy())
    stream.once("close", destroy)
    client.end().catch(() => stream.destroy())
  }
  let isOver = false
  const settle = (doing: BackendState) => {
    if (isOver) return
    isOver = true
    end()
    told(doing)
  }
  const stop = clock.later(longest, () => settle("unknown"))
  const plan = new ExchangeRequest(
    () => wire.simple(question(processId)),
    (_, { results }) => {
      const said: unknown = Object.values(results[0]?.rows[0] ?? {})[0]
      // a pooler's process has a number of its own, and another server's is another process
      settle(isDoing(said) ? said : "unknown")
    }
  )
  plan.asArrays = true
  plan.simple = true
  const flight = new Exchange(client, plan, () => settle("unknown"))
  stream.unref()
  client.on("end", () => settle("unknown"))
  client.connection.on("readyForQuery", () => flight.request.onDone(flight.failure(), flight))
  if (flight.prepare() === undefined) client.query(flight)
  return () => {
    if (isOver) return
    isOver = true
    stop()
    stream.destroy()
  }
}

/** Asks; the returned function gives up. */
export const queryActivity = (
  server: Destination,
  session: SessionConfig,
  credentials: ProvidedCredentials,
  processId: number,
  told: (doing: BackendState) => void
): (() => void) => {
  let isOver = false
  let stopAsking = () => {}
  // its rows are read as they come, whatever the program makes of types
  const plain = { ...session, types: undefined }
  const stopLogin = startup(server, plain, { timeout: longest, readOnly: true, credentials }, (_, loggedIn) => {
    if (loggedIn === undefined) return told("unknown")
    const { client } = loggedIn
    // the client calls back before it has taken down its own state
    queueMicrotask(() => {
      if (isOver) client.connection.stream.destroy()
      else stopAsking = ask(client, processId, told)
    })
  })
  return () => {
    isOver = true
    stopLogin()
    stopAsking()
  }
}
