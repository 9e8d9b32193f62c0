/**
 * Whether a connection hears what another one sends.
 */

import { randomUUID } from "node:crypto"
import * as clock from "../concurrency/clock.js"
import type { ConnectFailure, Connection, Failure } from "../connection/connection.js"
import type { ListenConnection } from "./connection.js"

/** What came of it; `silent` says that the message was sent and did not come. */
type Result =
  | { readonly _tag: "heard" }
  | { readonly _tag: "silent" }
  | { readonly _tag: "unreachable"; readonly failure: ConnectFailure }
  | { readonly _tag: "failed"; readonly failure: Failure }

/** Sends a message from another connection and waits for it on this one; the returned function gives up. */
const probe = (
  line: ListenConnection,
  connect: (done: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void) => () => void,
  patience: number,
  done: (result: Result) => void
): (() => void) => {
  const channel = `effect_db_${randomUUID()}`
  let giveUp = () => {}
  let impatient: clock.Timer | undefined
  let over = false
  const stop = () => {
    over = true
    giveUp()
    clock.clear(impatient)
    line.echo = undefined
    // it is unlistened to with the channels that nobody wants any more
    line.heard.add(channel)
  }
  const settle = (result: Result) => {
    if (over) return
    stop()
    done(result)
  }
  const within = (result: Result) => {
    clock.clear(impatient)
    impatient = clock.timer(patience, () => settle(result))
  }
  const send = (sender: Connection) => {
    giveUp = () => sender.end("excess")
    const error = new Error(`no answer to NOTIFY within ${patience} ms`)
    within({ _tag: "failed", failure: { _tag: "lost", error, sent: true, acknowledged: 0 } })
    const text = `SELECT pg_notify('${channel}', '')`
    sender.run([], { text, values: [], rows: "object", prepare: false, simple: true }, [], (failure) => {
      if (failure !== undefined) return settle({ _tag: "failed", failure })
      if (!over) within({ _tag: "silent" })
    })
  }
  line.echo = { channel, heard: () => settle({ _tag: "heard" }) }
  line.command(`LISTEN "${channel}"`, (failure) => {
    if (over) return
    if (failure !== undefined) return settle({ _tag: "failed", failure })
    giveUp = connect((failure, connection) => {
      if (failure !== undefined) settle({ _tag: "unreachable", failure })
      else if (connection !== undefined) send(connection)
    })
  })
  return stop
}

/** Whether a connection hears what others send; one that leads straight to a primary does. The returned function gives up. */
export const probeDelivery = (
  line: ListenConnection,
  connect: (done: (failure: ConnectFailure | undefined, connection: Connection | undefined) => void) => () => void,
  patience: number,
  done: (result: Result) => void
): (() => void) => {
  // a standby does not listen
  if (line.connection.parameter("in_hot_standby") === "on") {
    const error = new Error("it is a standby")
    done({ _tag: "unreachable", failure: { reason: "wrongRole", error } })
    return () => {}
  }
  let isOver = false
  let stop = () => {
    isOver = true
  }
  line.command("SELECT pg_backend_pid()::text AS pid", (failure, flight) => {
    if (isOver) return
    if (failure !== undefined) return done({ _tag: "failed", failure })
    const row = flight.results[0]?.rows[0]
    if (row !== undefined && "pid" in row && row.pid === String(line.connection.processId))
      return done({ _tag: "heard" })
    stop = probe(line, connect, patience, done)
  })
  return () => stop()
}
