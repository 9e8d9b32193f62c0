/**
 * Prepared transactions of units of work (PREPARE TRANSACTION): their names, their list on a server,
 * and their end.
 *
 * A unit prepares all but one of its transactions that store work; the remaining one decides: the
 * marker in its COMMIT is the decision. The name of a prepared transaction has the identity of the
 * deciding database and the id of the marker, so that any process that has both databases open with
 * `twoPhase` can end the transaction.
 */
import { isUndefinedObject } from "../../SqlState.js"
import type { Connection, Failure } from "../connection/connection.js"
import { codeOf } from "../connection/statementFailure.js"
import { maintenanceQuery, type Request } from "../connection/statementRequest.js"
import { constantStep, step } from "../protocol/frontendMessages.js"
import { decodeId, idRequest, type TransactionId } from "./transactionStatus.js"

/**
 * Identity of a database, which stays the same after a failover, and the limit of prepared
 * transactions on its server.
 */
export interface DatabaseIdentity {
  /** The system identifier of the cluster and the number of the database. */
  readonly key: string
  /** `max_prepared_transactions` of the server; 0 if it refuses PREPARE TRANSACTION. */
  readonly maxPrepared: number
}

/** Decision of a unit of work about a prepared transaction. */
export type Decision = "commit" | "rollback"

/** Prepared transaction on a server. */
export interface PreparedTransaction {
  readonly gid: string
  /** The identity of the deciding database. */
  readonly decider: string
  /** The id of the marker. */
  readonly marker: string
  /** The time since the PREPARE, in ms, by the clock of the server. */
  readonly age: number
}

const prefix = "effect-db"
const form = new RegExp(`^${prefix}:(\\d{1,20}/\\d{1,10}):([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):\\d{1,4}$`)

/**
 * Returns the name of a prepared transaction. Several databases of a unit may be on one server, where
 * names must differ, so it has the number of the transaction in its unit.
 */
export const gidOf = (decider: string, marker: string, index: number): string =>
  `${prefix}:${decider}:${marker}:${index}`

const none: ReadonlyArray<never> = []

const identityRequest = maintenanceQuery(`SELECT pg_catalog.concat(s.system_identifier, '/', d.oid),
  pg_catalog.current_setting('max_prepared_transactions')
FROM pg_catalog.pg_control_system() s, pg_catalog.pg_database d
WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()`)

/** Queries the identity of the database of a connection. */
export const queryIdentity = (
  connection: Connection,
  callback: (failure: Failure | undefined, identity: DatabaseIdentity | undefined) => void
): void =>
  connection.run(none, identityRequest, none, (failure, exchange) => {
    const row = exchange.result.rows[0]
    const [key, maxPrepared]: ReadonlyArray<unknown> = Array.isArray(row) ? row : none
    callback(failure, typeof key === "string" ? { key, maxPrepared: Number(maxPrepared) } : undefined)
  })

const listRequest = maintenanceQuery(`SELECT p.gid,
  (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) p.prepared))::pg_catalog.text
FROM pg_catalog.pg_prepared_xacts p
WHERE p.database OPERATOR(pg_catalog.=) pg_catalog.current_database()
  AND p.gid OPERATOR(pg_catalog.~~) '${prefix}:%' ORDER BY p.prepared`)

/** Lists the prepared transactions of units of work, the oldest first. */
export const listPrepared = (
  connection: Connection,
  callback: (failure: Failure | undefined, all: ReadonlyArray<PreparedTransaction>) => void
): void =>
  connection.run(none, listRequest, none, (failure, exchange) => {
    if (failure !== undefined) return callback(failure, none)
    const rows: ReadonlyArray<unknown> = exchange.result.rows
    callback(
      undefined,
      rows.flatMap((row) => {
        const [gid, age]: ReadonlyArray<unknown> = Array.isArray(row) ? row : none
        const [, decider, marker] = form.exec(String(gid)) ?? []
        return decider === undefined || marker === undefined
          ? []
          : [{ gid: String(gid), decider, marker, age: 1000 * Number(age) }]
      })
    )
  })

const beforePrepare = [constantStep("SET CONSTRAINTS ALL IMMEDIATE"), constantStep("SET LOCAL ROLE NONE")]
// the end of a transaction counts as an operation of the program
const { isMaintenance: _, ...countedIdRequest }: Request = idRequest

/**
 * Prepares the transaction of a connection. The constraints are checked in the role of the program.
 * Before PREPARE TRANSACTION, the role is set back to that of the login. Only the user that has
 * prepared a transaction, or a superuser, may end it. A role by SET LOCAL is gone by then; after a
 * plain SET ROLE the server keeps the role for the session, and the transaction is ended on another
 * connection. `callback` receives a failure, or else the id of the transaction, which is
 * `undefined` if the transaction has written nothing.
 */
export const prepareTransaction = (
  connection: Connection,
  gid: string,
  callback: (failure: Failure | undefined, id: TransactionId | undefined) => void
): void =>
  connection.run(beforePrepare, countedIdRequest, [step(`PREPARE TRANSACTION '${gid}'`)], (failure, exchange) => {
    const row = exchange.result.rows[0]
    callback(failure, failure === undefined && Array.isArray(row) ? decodeId(connection, row) : undefined)
  })

/**
 * Sets the role of a connection to that of its login, so that the connection can end prepared
 * transactions of the login even if its sessions have another role by default. The connection must
 * be used for nothing else. Does nothing behind a pooler, which would keep the role for other
 * clients.
 */
export const takeRoleOfLogin = (connection: Connection, callback: () => void): void => {
  if (connection.isPooled) return callback()
  // a failure is ignored: the next command fails, too, or is refused because the role may not end
  // the transaction
  connection.steps([constantStep("SET ROLE NONE")], () => callback())
}

/**
 * Result of the end of a prepared transaction.
 *
 * - `ended`: it was prepared until now.
 * - `missing`: it does not exist: it was ended before, or a failover has lost it.
 * - `lost`: the connection was lost before the answer.
 */
export type EndResult = "ended" | "missing" | "lost" | { readonly refused: Error }

/** Ends a prepared transaction. */
export const endPrepared = (
  connection: Connection,
  gid: string,
  decision: Decision,
  callback: (result: EndResult) => void
): void =>
  connection.steps([step(`${decision === "commit" ? "COMMIT" : "ROLLBACK"} PREPARED '${gid}'`)], (failure) => {
    if (failure === undefined) return callback("ended")
    if (failure._tag !== "refused") return callback("lost")
    callback(isUndefinedObject(codeOf(failure.error)) ? "missing" : { refused: failure.error })
  })
