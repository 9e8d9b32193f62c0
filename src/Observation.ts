/**
 * The events of a database, as data.
 *
 * `Db.observations` is a stream of them, to log, to count or to ignore; the option `echo` logs them.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"

/**
 * Reason for the end of a physical connection.
 *
 * - `aged`: `maxLifetime` is over.
 * - `idle`: it was idle for longer than `idleTimeout`.
 * - `broken`: the server or the network ended it.
 * - `cancelled`: a statement on it was interrupted.
 * - `dirty`: it was checked in busy, in a transaction, or could not be reset.
 * - `excess`: it was beyond `maxConnections`, or the pool has the `strategy` `"none"`.
 * - `invalid`: it did not answer when it was validated.
 * - `invalidated`: the program has called `Db.invalidate`.
 * - `oldCredentials`: it was made with credentials that have been replaced.
 * - `shutdown`: the database was closed.
 * - `vetoed`: `onConnect` or `onCheckout` failed.
 * - `writable`: the session of a reader was made writable.
 * - `wrongRole`: the server does not fit the pool any more: that of a writer is a standby or was
 *   made read-only, or a new connection of a reader did not fit its `targetSessionAttrs`.
 *
 * @see {@link Observation} for `Closed`, which carries it
 * @since 0.1.0
 * @category models
 */
export type CloseReason =
  | "aged"
  | "idle"
  | "broken"
  | "cancelled"
  | "dirty"
  | "excess"
  | "invalid"
  | "invalidated"
  | "oldCredentials"
  | "shutdown"
  | "vetoed"
  | "writable"
  | "wrongRole"

/**
 * Event of a database.
 *
 * Fields with the same name have the same meaning in all of them:
 *
 * - `database`: the name of the database.
 * - `server`: `host:port`, `a:5432,b:5432` for several hosts, the folder of a Unix socket, or the
 *   `name` of a server that is given as a `socket`.
 * - `processId`: the backend process on the server, as `pg_backend_pid()` returns it.
 * - `message`: the text of the failure or of the server, without secrets.
 * - `label`: the option `label` of the transaction or of its unit of work.
 * - `attempt`: the number of the attempt, from 1.
 * - a name that ends in `Millis`: a duration in milliseconds.
 *
 * @see `Db.observations` for the stream
 * @see {@link Observer} for a receiver without a stream
 * @since 0.1.0
 * @category models
 */
export type Observation = Data.TaggedEnum<{
  /** A physical connection was opened. */
  Connected: {
    readonly database: string
    readonly server: string
    readonly processId: number
    readonly tookMillis: number
    /** True for the first connection of its pool. */
    readonly isFirst: boolean
  }
  /** A physical connection could not be opened. */
  ConnectFailed: {
    readonly database: string
    readonly server: string
    readonly reason: string
    readonly message: string
  }
  /** A physical connection was closed. */
  Closed: {
    readonly database: string
    readonly server: string
    readonly processId: number
    readonly reason: CloseReason
  }
  /** A connection was lost: closed by the server or the network, in use or idle. */
  Lost: { readonly database: string; readonly server: string; readonly processId: number; readonly message: string }
  /** The server sent a NOTICE, WARNING, INFO, LOG or DEBUG, for a statement or at login. */
  Noticed: {
    readonly database: string
    readonly server: string
    readonly processId: number
    /** The severity, in the language of the server's messages. */
    readonly severity: string
    /** The code: `00000`, one of class 01 for a warning, or the one that a function has set. */
    readonly sqlState: string
    readonly message: string
    readonly detail: string | undefined
    readonly hint: string | undefined
  }
  /** A connection was checked out. */
  CheckedOut: {
    readonly database: string
    readonly server: string
    readonly processId: number
    readonly waitedMillis: number
    /** The option `label`, such as the route of a request. */
    readonly label: string | undefined
  }
  /** A connection was checked in. */
  CheckedIn: {
    readonly database: string
    readonly server: string
    readonly processId: number
    readonly usedMillis: number
  }
  /** A session was reset by `resetOnReturn`. */
  Reset: { readonly database: string; readonly server: string; readonly processId: number }
  /** A caller got no connection. */
  Exhausted: {
    readonly database: string
    readonly server: string
    readonly reason: "timeout" | "shed" | "single" | "outage" | "paused"
    readonly waitedMillis: number
  }
  /** A connection has been held for longer than `leakThreshold`. */
  Leaked: {
    readonly database: string
    readonly server: string
    readonly processId: number
    readonly heldMillis: number
    /** The fiber that has checked it out. */
    readonly fiber: string | undefined
    /** The location in the program, or the name of the span. */
    readonly location: string | undefined
  }
  /** The program has invalidated connections. */
  Invalidated: {
    readonly database: string
    readonly server: string
    readonly mode: "soft" | "hard"
    readonly connections: number
  }
  /** New credentials are in use: connections made with older credentials are replaced. */
  CredentialsRotated: { readonly database: string; readonly server: string; readonly generation: number }
  /**
   * Another host has become the writer. `from` is `undefined` if no writer was known before. The
   * connections to `from` are closed.
   */
  WriterChanged: {
    readonly database: string
    /** The host that was the writer. */
    readonly from: string | undefined
    /** The host that is the writer. */
    readonly to: string
    /** The timeline of the writer; each promotion begins a new one. `undefined` if it is not known. */
    readonly timeline: number | undefined
    /** The time since the former writer became doubtful. */
    readonly tookMillis: number
  }
  /**
   * The server has refused to delete old rows of `effect_db.outcome`, so the table grows. Check the
   * rights of the user; the next attempt follows within two minutes.
   */
  OutcomesNotDeleted: { readonly database: string; readonly server: string; readonly message: string }
  /**
   * The hosts of the cluster have changed: `discover` has returned other ones. A host with another
   * address is in both lists.
   */
  HostsChanged: {
    readonly database: string
    /** The hosts that are used from now on. */
    readonly added: ReadonlyArray<string>
    /** The hosts that get no further connection; the writer stays until it is lost or moves. */
    readonly removed: ReadonlyArray<string>
  }
  /** `discover` has failed, had no answer in time, or has returned no usable hosts. The known hosts stay. */
  DiscoveryFailed: { readonly database: string; readonly message: string }
  /**
   * A reader is further behind the primary than `maxLag` or `maxLagBytes`: reads are routed to others.
   * Both figures are infinite if it receives no log from the primary, or has another history.
   */
  FellBehind: {
    readonly database: string
    readonly server: string
    readonly lagMillis: number
    readonly lagBytes: number
  }
  /** A reader has caught up with the primary, and serves reads again. */
  CaughtUp: {
    readonly database: string
    readonly server: string
    readonly lagMillis: number
    readonly lagBytes: number
  }
  /**
   * A prepared transaction of a unit of work could not be ended, or is still not ended after a
   * minute (twelve times `resolveWithin`, if that is shorter). It holds its locks. Reported once
   * for each transaction, and logged as a warning also without `echo`.
   */
  PreparedLeft: {
    readonly database: string
    readonly server: string
    /** The name of the prepared transaction, as `pg_prepared_xacts` shows it. */
    readonly gid: string
    readonly ageMillis: number
    readonly message: string
  }
  /**
   * A unit of work is committed, but one of its prepared transactions did not exist at its COMMIT
   * PREPARED: a failover has lost it, so that its work is missing in this database, or another
   * program has ended it. It is not reported if the server still knows that the transaction is
   * committed. It is logged as a warning also without `echo`.
   */
  PreparedMissing: { readonly database: string; readonly server: string; readonly gid: string }
  /**
   * The prepared transactions of a database could not be listed, so that those that a process has
   * left are not ended. Reported once until they can be listed again, and logged as a warning also
   * without `echo`.
   */
  RecoveryFailed: { readonly database: string; readonly server: string; readonly message: string }
  /** A prepared transaction that a process had left was ended by the decision of its unit. */
  PreparedRecovered: {
    readonly database: string
    readonly server: string
    readonly gid: string
    readonly outcome: "committed" | "undone"
    readonly ageMillis: number
  }
  /** A server was marked down: reads are routed to others. */
  MarkedDown: { readonly database: string; readonly server: string; readonly message: string }
  /** A server was marked up, and serves reads again. */
  MarkedUp: { readonly database: string; readonly server: string }
  /**
   * A replica did not serve a read that must see certain writes: it does not have them yet
   * (`behind`), it has another history (`lost`), or it cannot prove its history (`unproved`). To
   * prove it, the user needs `pg_read_all_stats`, and the server must stream from the primary and
   * be connected without a transaction pooler.
   */
  PassedOver: {
    readonly database: string
    readonly server: string
    readonly reason: "behind" | "lost" | "unproved"
  }
  /** A checkout (`acquire`), a statement or a transaction is retried. */
  Retried: {
    readonly database: string
    readonly what: "acquire" | "statement" | "transaction"
    readonly attempt: number
    readonly message: string
  }
  /**
   * The last attempt has failed, although another one might succeed: the schedule has ended, or the
   * retry budget of the database is used up.
   */
  RetryExhausted: {
    readonly database: string
    readonly what: "acquire" | "statement" | "transaction"
    /** The number of all attempts, with the first one. */
    readonly attempts: number
    readonly endedBy: "schedule" | "budget"
    readonly message: string
  }
  /**
   * A transaction has ended; `unknown` if the answer to its COMMIT did not arrive, also if its
   * caller was interrupted meanwhile, and the outcome could not be proved.
   */
  TransactionEnded: {
    readonly database: string
    readonly server: string
    readonly outcome: "committed" | "rolledBack" | "failed" | "unknown"
    readonly label: string | undefined
    readonly tookMillis: number
  }
  /** The listening connection was lost: no notification arrives. */
  ListenLost: {
    readonly database: string
    readonly server: string
    readonly processId: number
    readonly message: string
  }
  /** After a pause there is an attempt to listen again; `attempt` is 1 for the first one of an outage. */
  ListenRetried: {
    readonly database: string
    readonly server: string
    readonly attempt: number
    readonly pauseMillis: number
    readonly message: string
  }
  /** The connection listens to every channel again, and the listeners have received a gap. */
  ListenRestored: {
    readonly database: string
    readonly server: string
    readonly attempts: number
    readonly tookMillis: number
  }
  /** The buffer of a listener is full: messages are dropped, and the listener receives a gap. */
  ListenOverflowed: { readonly database: string; readonly channel: string }
  /**
   * A hook that runs after the end of a transaction has failed; the others still run. A
   * `beforeCommit` hook is one of them if it was registered outside of a transaction, or after its
   * COMMIT: it runs at once.
   */
  HookFailed: {
    readonly database: string
    readonly hook: "beforeCommit" | "afterCommit" | "afterRollback" | "afterUnknown"
    readonly message: string
  }
}>

/**
 * Constructors and matchers of the type {@link Observation}.
 *
 * @see `Db.observations` for the stream of them
 * @example
 * ```ts
 * import { Observation } from "effect-db"
 *
 * const isLoss = Observation.Observation.$is("Lost")
 * console.log(isLoss(Observation.Observation.MarkedUp({ database: "app", server: "localhost:5432" }))) // false
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const Observation = Data.taggedEnum<Observation>()

/**
 * Receiver of observations, which must not throw.
 *
 * @see `Db.observations` for a stream instead
 * @since 0.1.0
 * @category models
 */
export interface Observer {
  /** Receives one observation. */
  readonly observe: (observation: Observation) => void
  /**
   * True if there is a subscriber. Without one, code that runs often does not make observations.
   */
  readonly active: boolean
}
