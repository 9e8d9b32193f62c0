/**
 * Faults of networks and servers, on demand, for tests.
 *
 * @since 0.3.0
 */
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { ConfigInvalid, DatabaseError } from "./DatabaseError.js"

/**
 * Condition for the servers that a fault concerns.
 *
 * @see {@link Statement} for a condition on statements
 * @since 0.3.0
 * @category models
 */
export interface Server {
  /**
   * The name of a server in `Db.status`, or all servers of a role.
   *
   * @default undefined (every server)
   */
  readonly server?: "writer" | "reader" | (string & {}) | undefined
}

/**
 * Condition for the statements at which a fault happens.
 *
 * The statements of the library count as well, such as BEGIN and COMMIT. The text is the one that is
 * sent: a `$1` stands for each parameter.
 *
 * @see {@link Server} for a condition on servers
 * @since 0.3.0
 * @category models
 */
export interface Statement extends Server {
  /** A part of the text, or an expression that matches it. */
  readonly statement: string | RegExp
  /**
   * The number of matching statements that are executed before the first fault.
   *
   * @default 0
   */
  readonly skip?: number | undefined
  /**
   * The number of statements at which the fault happens.
   *
   * @default 1
   */
  readonly times?: number | undefined
}

/**
 * Fault in effect. Its scope ends it.
 *
 * @see {@link Faults} for the functions that return it
 * @since 0.3.0
 * @category models
 */
export interface Injected {
  /** Waits until the fault has happened once. */
  readonly happened: Effect.Effect<void>
  /** The number of times that the fault has happened. */
  readonly count: Effect.Effect<number>
}

/**
 * Error that a server is made to report.
 *
 * @see {@link Faults} for `refuse` and `refuseLogin`
 * @since 0.3.0
 * @category models
 */
export interface Refusal {
  /** The SQLSTATE, such as `40001`. */
  readonly sqlState: string
  /** The message of the server. */
  readonly message?: string | undefined
}

/** Effect that injects a fault until the end of its scope. */
type Inject = Effect.Effect<Injected, ConfigInvalid, Scope.Scope>

/**
 * The faults of one database.
 *
 * A fault is in effect until its scope ends, or until it has happened `times` times. Faults compose:
 * if several concern one statement, the one that was injected first happens. A server that is named
 * and is none of the database fails with `ConfigInvalid`. So do a condition on statements and a refused
 * login where a connection uses TLS, in which no message can be read.
 *
 * @see `TestDatabase.layerFaults` for the layer that makes them possible
 * @since 0.3.0
 * @category models
 */
export interface Faults {
  /**
   * Closes connections, as a server that dies or a network that resets them: all that are open now, or
   * the connection of a statement before the statement reaches the server.
   */
  readonly disconnect: (where?: Server | Statement) => Inject
  /**
   * Delivers nothing more, in either direction, until the scope ends, while both sides see an open
   * connection (half-open): on all connections and new ones, or from a statement on.
   */
  readonly freeze: (where?: Server | Statement) => Inject
  /** Delays what is sent to the server: each request, or a statement and what follows it. */
  readonly delay: (by: Duration.DurationInput, where?: Server | Statement) => Inject
  /** Lets the server refuse a statement with an error. Its transaction is aborted. */
  readonly refuse: (where: Statement, error: Refusal) => Inject
  /** Lets the server execute a statement, and closes its connection before the answer arrives. */
  readonly loseAnswer: (where: Statement) => Inject
  /** Closes all connections, and refuses new ones, as if no server listened. */
  readonly unreachable: (where?: Server) => Inject
  /** Refuses the login of each new connection, by default because of a wrong password. */
  readonly refuseLogin: (where?: Server, error?: Refusal) => Inject
  /**
   * Checks out all connections of the pools. Waits for those that are in use. Fails as a checkout
   * does.
   */
  readonly exhaustPool: (where?: Server) => Effect.Effect<void, ConfigInvalid | DatabaseError, Scope.Scope>
  /**
   * Stops the replay on replicas until the scope ends, so that they show no new commits. The user of
   * the database needs the right to execute `pg_wal_replay_pause` and `pg_wal_replay_resume`.
   */
  readonly pauseReplay: (where?: Server) => Effect.Effect<void, ConfigInvalid | DatabaseError, Scope.Scope>
  /**
   * Promotes a replica to a primary, and makes the former one unreachable for this database until the
   * scope ends. The promotion remains, and after the scope there are two primaries: use a server that
   * belongs to the test alone. The user of the database needs the right to execute `pg_promote`.
   *
   * @see `EmbeddedPostgres` for `switchOver`, which moves the writer without a loss
   */
  readonly promote: (server: string) => Effect.Effect<void, ConfigInvalid | DatabaseError, Scope.Scope>
}
