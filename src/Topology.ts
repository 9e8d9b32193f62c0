/**
 * The servers of a database and its open transactions, as `Db.status` reports them.
 *
 * @since 0.1.0
 */
import type { PoolStats } from "./Pool.js"

/**
 * The purpose of a server: the writer takes writes, a reader serves reads that need not see the latest of them.
 *
 * @since 0.1.0
 * @category models
 */
export type Role = "writer" | "reader"

/**
 * A server's figures at one moment.
 *
 * @since 0.1.0
 * @category models
 */
export interface ServerStatus {
  readonly name: string
  readonly role: Role
  readonly up: boolean
  /** The pool of sessions that may write; of the writer only. */
  readonly writes: PoolStats | undefined
  readonly reads: PoolStats
}

/**
 * A transaction that holds a connection.
 *
 * @since 0.1.0
 * @category models
 */
export interface OpenTransaction {
  readonly server: string
  readonly label: string | undefined
  /** The time since it got its connection. */
  readonly ageMillis: number
}
