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
 * Health of a server.
 *
 * - `unknown`: no connect has succeeded or failed yet.
 * - `up`: statements use the server.
 * - `suspect`: callers wait for its answers; reads use other servers, if there are any.
 * - `down`: it cannot be reached, or does not answer; no read uses it.
 * - `trial`: one read, or the monitor, tries a server that was down.
 *
 * @see {@link ServerStatus}, which has it
 * @since 0.3.0
 * @category models
 */
export type ServerState = "unknown" | "up" | "suspect" | "down" | "trial"

/**
 * State of one of the hosts of a writer.
 *
 * @see {@link ServerStatus} for the field `hosts`
 * @since 0.3.0
 * @category models
 */
export interface HostStatus {
  /** The host: `host:port`, or the folder of a Unix socket. */
  readonly name: string
  /** True if the host is the writer. */
  readonly isWriter: boolean
  /** The reason why the host is not the writer; `undefined` if it is, or if it was not asked yet. */
  readonly reason: string | undefined
}

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
  /** The health of the server. The writer is used in every state. */
  readonly state: ServerState
  /** The reason why a reader takes no part in routing, or comes last; `undefined` if it takes part. */
  readonly reason: string | undefined
  /** The hosts among which a writer is searched; empty for other servers. */
  readonly hosts: ReadonlyArray<HostStatus>
  /** The timeline that the server was on when it was asked last; `undefined` if it was not asked. */
  readonly timeline: number | undefined
  /**
   * The time that a reader is behind the primary, by the last check of its monitor, in milliseconds;
   * infinite if it receives no log. `undefined` if it is not known, and for the writer.
   */
  readonly lagMillis: number | undefined
  /** The same lag in bytes of the log. */
  readonly lagBytes: number | undefined
  /** The average time of a round trip of the monitor, in milliseconds; `undefined` without one. */
  readonly latencyMillis: number | undefined
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
