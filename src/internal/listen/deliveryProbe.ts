/**
 * The probe that proves that a listening connection receives messages of other connections.
 */

import { randomUUID } from "node:crypto"
import * as clock from "../concurrency/clock.js"
import type { ConnectFailure, Connection, Failure } from "../connection/connection.js"
import type { ListenConnection } from "./connection.js"

/** Result of a probe; `undelivered` means that the message was sent and did not arrive. */
type ProbeResult =
  | { readonly _tag: "delivered" }
  | { readonly _tag: "undelivered" }
  | { readonly _tag: "unreachable"; readonly failure: ConnectFailure }
  | { readonly _tag: "failed"; readonly failure: Failure }

/** Function that makes another connection and calls back; the returned function cancels. */
export type ConnectAnother = (
  callback: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void
) => () => void

/**
 * Sends a message from another connection and waits until `listening` receives it. The returned
 * function cancels.
 */
const probeByNotify = (
  listening: ListenConnection,
  connect: ConnectAnother,
  timeout: number,
  callback: (result: ProbeResult) => void
): (() => void) => {
  const channel = `effect_db_${randomUUID()}`
  let stopSender = () => {}
  let timer: clock.Timer | undefined
  let isDone = false
  const stop = () => {
    isDone = true
    stopSender()
    clock.clear(timer)
    listening.probe = undefined
    // `nextCommand` runs UNLISTEN for the channels of this set that have no listeners
    listening.channels.add(channel)
  }
  const complete = (result: ProbeResult) => {
    if (isDone) return
    stop()
    callback(result)
  }
  const completeAfterTimeout = (result: ProbeResult) => {
    clock.clear(timer)
    timer = clock.timer(timeout, () => complete(result))
  }
  const send = (sender: Connection) => {
    stopSender = () => sender.end("excess")
    const error = new Error(`no answer to NOTIFY within ${timeout} ms`)
    completeAfterTimeout({ _tag: "failed", failure: { _tag: "lost", error, sent: true, acknowledged: 0 } })
    const text = `SELECT pg_notify('${channel}', '')`
    sender.run([], { text, values: [], rows: "object", prepare: false, simple: true }, [], (failure) => {
      if (failure !== undefined) return complete({ _tag: "failed", failure })
      if (!isDone) completeAfterTimeout({ _tag: "undelivered" })
    })
  }
  listening.probe = { channel, onMessage: () => complete({ _tag: "delivered" }) }
  listening.command(`LISTEN "${channel}"`, (failure) => {
    if (isDone) return
    if (failure !== undefined) return complete({ _tag: "failed", failure })
    stopSender = connect((failure, connection) => {
      if (failure !== undefined) complete({ _tag: "unreachable", failure })
      else if (connection !== undefined) send(connection)
    })
  })
  return stop
}

/**
 * Checks that a connection receives messages of other connections. A standby is `unreachable`. No
 * message is sent if the session has the process id that the login has reported, because then there
 * is no pooler in between. The returned function cancels.
 */
export const probeDelivery = (
  listening: ListenConnection,
  connect: ConnectAnother,
  timeout: number,
  callback: (result: ProbeResult) => void
): (() => void) => {
  // PostgreSQL rejects LISTEN during recovery
  if (listening.connection.parameter("in_hot_standby") === "on") {
    const error = new Error("it is a standby")
    callback({ _tag: "unreachable", failure: { reason: "wrongRole", error } })
    return () => {}
  }
  let isCancelled = false
  let stop = () => {
    isCancelled = true
  }
  listening.command("SELECT pg_backend_pid()::text AS pid", (failure, exchange) => {
    if (isCancelled) return
    if (failure !== undefined) return callback({ _tag: "failed", failure })
    const row = exchange.results[0]?.rows[0]
    if (row !== undefined && "pid" in row && row.pid === String(listening.connection.processId))
      return callback({ _tag: "delivered" })
    stop = probeByNotify(listening, connect, timeout, callback)
  })
  return () => stop()
}
