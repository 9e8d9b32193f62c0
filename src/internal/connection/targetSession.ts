/**
 * The check of a session against `target_session_attrs`.
 */

import type { TargetSessionAttrs } from "../../DatabaseConfig.js"
import { connectReason } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import type { ConnectFailure } from "./connectFailure.js"
import type { Connection } from "./connection.js"
import { codeOf } from "./statementFailure.js"

/** The properties of a session that decide. */
interface Kind {
  readonly isStandby: boolean
  readonly isReadOnly: boolean
}

/** Returns the reason why a session does not fit, if there is one. A reader's sessions are read-only by themselves, which says nothing of its server. */
const misfit = (target: TargetSessionAttrs, { isReadOnly, isStandby }: Kind, isReader: boolean): string | undefined => {
  switch (target) {
    case "any":
      return undefined
    case "primary":
      return isStandby ? "it is a standby" : undefined
    case "standby":
    case "prefer-standby":
      return isStandby ? undefined : "it is no standby"
    case "read-write":
      if (isStandby) return "it is a standby"
      return isReadOnly && !isReader ? "its sessions are read-only by default" : undefined
    case "read-only":
      return isStandby || isReadOnly || isReader ? undefined : "its sessions are not read-only by default"
  }
}

const question = {
  text: "SELECT pg_is_in_recovery()::text, current_setting('default_transaction_read_only')",
  values: [],
  rows: "raw",
  prepare: false,
  simple: false
} as const

/**
 * Calls back with the reason why a connection does not fit. A server reports it at login, at no cost. A pooler reports what it remembers,
 * of whichever server, so there a query is sent, which is given up after `timeout` ms.
 */
export const checkTargetSession = (
  connection: Connection,
  target: TargetSessionAttrs,
  isReader: boolean,
  timeout: number,
  done: (failure: ConnectFailure | undefined) => void
): void => {
  const judge = (kind: Kind) => {
    const reason = misfit(target, kind, isReader)
    done(reason === undefined ? undefined : { reason: "wrongRole", error: new Error(reason) })
  }
  if (target === "any") return done(undefined)
  const standby = connection.parameter("in_hot_standby")
  if (!connection.isPooled && standby !== undefined) {
    const isReadOnly = connection.parameter("default_transaction_read_only") === "on"
    return judge({ isStandby: standby === "on", isReadOnly })
  }
  let isLate = false
  const impatient = clock.timer(timeout, () => {
    isLate = true
    connection.destroy("invalid")
  })
  connection.run([], question, [], (failure, flight) => {
    clock.clear(impatient)
    if (failure === undefined) {
      const [row] = flight.result.rows as ReadonlyArray<ReadonlyArray<string>>
      return judge({ isStandby: row?.[0] === "true", isReadOnly: row?.[1] === "on" })
    }
    const { error } = failure
    if (connection.broken === "wrongRole") return done({ reason: "wrongRole", error })
    done({ reason: isLate ? "unresponsive" : connectReason(codeOf(error), error.message), error })
  })
}
