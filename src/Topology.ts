/**
 * Types of the servers of a database and of its open transactions, as `Db.status` reports them.
 *
 * @since 0.1.0
 */
import type { PoolStats } from "./Pool.js"

/**
 * Purpose of a server: the writer accepts writes, and a reader serves reads that may be older than
 * the latest write.
 *
 * @see {@link ServerStatus}, which has it
 * @since 0.1.0
 * @category models
 */
export type Role = "writer" | "reader"

/**
 * State of a server at one moment.
 *
 * @see `Database.Status`, which has the states of all servers
 * @since 0.1.0
 * @category models
 */
export interface ServerStatus {
  /**
   * The server: `host:port`, `a:5432,b:5432` for several hosts, the folder of a Unix socket, or
   * the `name` of a server that is given as a `socket`.
   */
  readonly name: string
  /** The purpose of the server. */
  readonly role: Role
  /** True while the server is used for new statements. */
  readonly up: boolean
  /** The pool of connections that may write; `undefined` for a reader. */
  readonly writes: PoolStats | undefined
  /** The pool of connections for reads. */
  readonly reads: PoolStats
}

/**
 * Open transaction that holds a connection.
 *
 * @see `Database.Status`, which has all of them
 * @since 0.1.0
 * @category models
 */
export interface OpenTransaction {
  /**
   * The server: `host:port`, `a:5432,b:5432` for several hosts, the folder of a Unix socket, or
   * the `name` of a server that is given as a `socket`.
   */
  readonly server: string
  /** The option `label` of the transaction or of its unit of work. */
  readonly label: string | undefined
  /** The time since the checkout of its connection, in milliseconds. */
  readonly ageMillis: number
}
