/**
 * What happened, as facts. No logger is chosen here: subscribe to `Db.observations` and log, count or ignore.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"

/**
 * Why a physical connection was closed.
 *
 * - `aged`: `maxLifetime` is over.
 * - `idle`: it was idle for longer than `idleTimeout`.
 * - `broken`: the server or the network ended it.
 * - `cancelled`: a statement on it was interrupted.
 * - `dirty`: it came back busy, in a transaction, or could not be reset.
 * - `excess`: it was beyond `maxConnections`, or connections are not kept.
 * - `invalid`: it did not answer when it was asked for a sign of life.
 * - `invalidated`: somebody asked for it.
 * - `oldCredentials`: it was made with credentials that have been replaced.
 * - `shutdown`: the database was closed.
 * - `vetoed`: `onConnect` or `onCheckout` failed.
 * - `writable`: a reader's session was made writable.
 * - `wrongRole`: a writer's server takes no writes: it is a standby, or was made read-only.
 *
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
 * One fact about a database. `database` is its name, `server` is `host:port`, durations are in milliseconds.
 *
 * @since 0.1.0
 * @category models
 */
export type Observation = Data.TaggedEnum<{
  /** A physical connection is open. */
  Connected: {
    readonly database: string
    readonly server: string
    readonly processId: number
    readonly tookMillis: number
    /** Whether it is the first of its pool. */
    readonly isFirst: boolean
  }
  /** A physical connection could not be opened. */
  ConnectFailed: {
    readonly database: string
    readonly server: string
    readonly reason: string
    readonly message: string
  }
  /** A physical connection is closed. */
  Closed: {
    readonly database: string
    readonly server: string
    readonly processId: number
    readonly reason: CloseReason
  }
  /** A connection in use or idle was lost: closed by the server or the network. */
  Lost: { readonly database: string; readonly server: string; readonly processId: number; readonly message: string }
  /** The server said something beside its answers, by a statement or at login: a NOTICE, WARNING, INFO, LOG or DEBUG. */
  Noticed: {
    readonly database: string
    readonly server: string
    readonly processId: number
    /** In the language of the server's messages. */
    readonly severity: string
    /** `00000`, or of class 01 for a warning, unless a function says otherwise. */
    readonly sqlState: string
    readonly message: string
    readonly detail: string | undefined
    readonly hint: string | undefined
  }
  /** A connection was handed out. */
  CheckedOut: {
    readonly database: string
    readonly server: string
    readonly processId: number
    readonly waitedMillis: number
    /** What it is for, where a unit of work says so: the route of a request, say. */
    readonly label: string | undefined
  }
  /** A connection came back. */
  CheckedIn: {
    readonly database: string
    readonly server: string
    readonly processId: number
    readonly usedMillis: number
  }
  /** What `resetOnReturn` asks for is done. */
  Reset: { readonly database: string; readonly server: string; readonly processId: number }
  /** A caller got no connection. */
  Exhausted: {
    readonly database: string
    readonly server: string
    readonly reason: "timeout" | "shed" | "single" | "outage"
    readonly waitedMillis: number
  }
  /** A connection is held for longer than `leakThreshold`. */
  Leaked: {
    readonly database: string
    readonly server: string
    readonly processId: number
    readonly heldMillis: number
    /** The fiber that asked for it. */
    readonly fiber: string | undefined
    /** Where in the program, or in which span. */
    readonly place: string | undefined
  }
  /** Connections were invalidated on request; how many. */
  Invalidated: {
    readonly database: string
    readonly server: string
    readonly mode: "soft" | "hard"
    readonly connections: number
  }
  /** Other credentials are in force: connections made with older ones are replaced. */
  CredentialsRotated: { readonly database: string; readonly server: string; readonly generation: number }
  /** A server is left out of routing, for a while. */
  MarkedDown: { readonly database: string; readonly server: string; readonly message: string }
  /** A server takes part in routing again. */
  MarkedUp: { readonly database: string; readonly server: string }
  /**
   * A replica did not serve a read that was to see certain writes: it has them not yet (`behind`), or its history is another one (`lost`), or
   * it does not prove which one it is (`unproved`): the user of its sessions needs `pg_read_all_stats`, it has to stream from the primary, and
   * to be reached without a transaction pooler.
   */
  PassedOver: {
    readonly database: string
    readonly server: string
    readonly reason: "behind" | "lost" | "unproved"
  }
  /** Something is tried again. */
  Retried: {
    readonly database: string
    readonly what: "acquire" | "statement" | "transaction"
    readonly attempt: number
    readonly message: string
  }
  /**
   * What was tried again has failed for the last time, although another attempt might go better: its schedule has ended, or the budget of the
   * database for retries is used up.
   */
  RetryExhausted: {
    readonly database: string
    readonly what: "acquire" | "statement" | "transaction"
    /** The number of all attempts, the first among them. */
    readonly attempts: number
    readonly endedBy: "schedule" | "budget"
    readonly message: string
  }
  /** A transaction has ended; `unknown` where the answer to its COMMIT did not come, also because its caller waited no longer. */
  TransactionEnded: {
    readonly database: string
    readonly server: string
    readonly outcome: "committed" | "rolledBack" | "failed" | "unknown"
    readonly label: string | undefined
    readonly tookMillis: number
  }
  /** The connection that listens was lost: nothing is heard. */
  ListenLost: {
    readonly database: string
    readonly server: string
    readonly processId: number
    readonly message: string
  }
  /** After a pause there is going to be an attempt to listen again; the first one of an outage is 1. */
  ListenRetried: {
    readonly database: string
    readonly server: string
    readonly attempt: number
    readonly pauseMillis: number
    readonly message: string
  }
  /** Every channel is listened to again, and its listeners are told of the gap. */
  ListenRestored: {
    readonly database: string
    readonly server: string
    readonly attempts: number
    readonly tookMillis: number
  }
  /** A listener is too slow: its buffer is full, and messages are dropped. It is told of the gap. */
  ListenOverflowed: { readonly database: string; readonly channel: string }
  /** A hook that runs after the end of a transaction failed; the rest still ran. */
  HookFailed: {
    readonly database: string
    readonly hook: "afterCommit" | "afterRollback" | "afterUnknown"
    readonly message: string
  }
}>

/**
 * Constructors and matchers of {@link Observation}.
 *
 * @example
 * import { Observation } from "effect-db"
 *
 * const isLoss = Observation.Observation.$is("Lost")
 * console.log(isLoss(Observation.Observation.MarkedUp({ database: "app", server: "localhost:5432" }))) // false
 *
 * @since 0.1.0
 * @category constructors
 */
export const Observation = Data.taggedEnum<Observation>()

/**
 * Where facts go. It must not throw.
 *
 * @since 0.1.0
 * @category models
 */
export interface Observer {
  readonly observe: (observation: Observation) => void
  /** Whether anybody listens: a hot path does not even make the fact when nobody does. */
  readonly active: boolean
}
