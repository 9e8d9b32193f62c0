/**
 * Consistency of reads: the writes that a read must see. A read may require the writes of all
 * clients, those of the program itself, those that a token proves, or none.
 *
 * The default is `ReadYourWrites`, within a unit of work. A causal session extends it to several
 * units, requests and processes: {@link makeSession}, {@link withSession}, {@link encodeSession}.
 *
 * @since 0.1.0
 */
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import { dual } from "effect/Function"
import * as ParseResult from "effect/ParseResult"
import * as Predicate from "effect/Predicate"
import * as Schema from "effect/Schema"
import { formatLsn, isLsn, parseLsn } from "./internal/sql/lsn.js"

const Lsn = Schema.transform(
  Schema.String.pipe(Schema.filter(isLsn)),
  Schema.BigIntFromSelf.pipe(Schema.betweenBigInt(0n, 2n ** 64n - 1n)),
  {
    strict: true,
    decode: parseLsn,
    encode: formatLsn
  }
)

/**
 * A position in the history of a database: a server that has reached it has everything that was
 * committed before the token was taken.
 *
 * A token does not expire. If the history of the database has branched off before the token, for
 * example by a failover, no replica reaches it: a read that requires the token goes to the primary,
 * or fails with `TokenFromLostTimeline`.
 *
 * @see {@link Consistency} for `AtLeast`, which requires one
 * @see {@link makeSession} to begin a session with tokens
 * @example
 * ```ts
 * import { Schema } from "effect"
 * import { Consistency } from "effect-db"
 *
 * // for the field of a job, for example
 * export const Seen = Schema.parseJson(Schema.Array(Consistency.Token))
 * ```
 *
 * @since 0.1.0
 * @category models
 */
export class Token extends Schema.Class<Token>("effect-db/Token")({
  /** The name of the database's class. */
  database: Schema.String,
  /** The system identifier of the cluster, which a primary and its replicas share. */
  systemId: Schema.String.pipe(Schema.pattern(/^\d{1,20}$/)),
  /** The timeline, which increases with each failover of the cluster. */
  timeline: Schema.Int.pipe(Schema.between(1, 0xffff_ffff)),
  /** The position in the write-ahead log; encoded as the server writes it: `0/1B82F58`. */
  lsn: Lsn
}) {}

/**
 * The consistency of a read.
 *
 * - `Strong`: everything that the primary has committed; the read goes to the primary.
 * - `ReadYourWrites`, the default: at least the writes of the unit of work and of the
 *   {@link Session} around it.
 * - `AtLeast`: at least everything that the token proves, and the writes of `ReadYourWrites`. A
 *   replica that is behind gets `maxWait` to catch up, 50 ms by default. A replica that does not
 *   answer is given up after one second, or after `maxWait` if that is longer. Then the primary is
 *   read or, with `otherwise: "fail"`, the read fails with `NoReplicaCaughtUp` or
 *   `TokenFromLostTimeline`. A database without replicas reads its primary. `maxWait` accepts what
 *   Effect's `Duration` accepts, a plain number in milliseconds.
 * - `Bounded`: everything that was committed longer than `lag` ago, and the writes of
 *   `ReadYourWrites`. The primary's position of that time is what a replica must have reached, as
 *   with `AtLeast`, so no clocks are compared. If the monitor has asked the primary within `lag`, its
 *   answer is used; otherwise the primary is asked, once for all reads that wait for the answer. A
 *   commit with `synchronous_commit` off counts when its log is on the disk of the primary.
 * - `Eventual`: the data of any replica that is not left out because of `maxLag`.
 *
 * @see `Db.withConsistency`, which sets it for an effect
 * @since 0.1.0
 * @category models
 */
export type Consistency = Data.TaggedEnum<{
  Strong: {}
  ReadYourWrites: {}
  AtLeast: {
    /** The position that the read requires. */
    readonly token: Token
    /**
     * The time that a replica that is behind has to catch up.
     *
     * @default "50 millis"
     */
    readonly maxWait?: Duration.DurationInput | undefined
    /**
     * The fallback if no replica has caught up: the read goes to the primary, or fails.
     *
     * @default "primary"
     */
    readonly otherwise?: "primary" | "fail" | undefined
  }
  Bounded: {
    /** The longest time that the data may be behind the primary, from 0. */
    readonly lag: Duration.DurationInput
    /**
     * The time that a replica that is behind has to catch up.
     *
     * @default "50 millis"
     */
    readonly maxWait?: Duration.DurationInput | undefined
    /**
     * The fallback if no replica has caught up: the read goes to the primary, or fails.
     *
     * @default "primary"
     */
    readonly otherwise?: "primary" | "fail" | undefined
  }
  Eventual: {}
}>

/**
 * Creates the values of {@link Consistency}.
 *
 * @see {@link Consistency} for their meaning
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Consistency, Database } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const count = Effect.flatMap(Db.reader, (sql) => sql`SELECT count(*) FROM todo`)
 * export const exactCount = Db.withConsistency(count, Consistency.Strong())
 * ```
 *
 * @since 0.1.0
 * @category constructors
 */
export const { AtLeast, Bounded, Eventual, ReadYourWrites, Strong } = Data.taggedEnum<Consistency>()

/**
 * The consistency in force, by the name of the database.
 *
 * `Db.withConsistency` sets it.
 *
 * @see {@link Consistency}
 * @since 0.1.0
 * @category services
 */
export class CurrentConsistency extends Context.Reference<CurrentConsistency>()("effect-db/Consistency", {
  defaultValue: (): ReadonlyMap<string, Consistency> => new Map()
}) {}

const defaultMaxWaitMillis = 50

/** @internal Converts the longest wait of a read for a replica to ms; the default is 50 ms. */
export const waitOf = (maxWait: Duration.DurationInput | undefined): number =>
  maxWait === undefined ? defaultMaxWaitMillis : Duration.toMillis(maxWait)

/**
 * Checks if a token proves all writes that another one proves: both are of one cluster, and the
 * token is at the same position or later. A higher timeline counts as later.
 */
const isAfter = (one: Token, other: Token): boolean =>
  one.systemId === other.systemId &&
  (one.timeline > other.timeline || (one.timeline === other.timeline && one.lsn >= other.lsn))

/**
 * A causal session, which records the writes that later reads of the same client must see: in other
 * units of work, after the end of a request, or in another process.
 *
 * Each COMMIT in the session adds a token, and each read by `ReadYourWrites` in it sees at least the
 * writes that the tokens prove. The session stores the newest token of each database, or `"unknown"`
 * after a write whose position could not be determined. Reads then go to the primary, which reports
 * its position. A transaction of a reader sees the writes that were known at its first statement.
 * A session inside of another session is independent: the outer session, such as that of a request,
 * does not get its writes.
 *
 * @see {@link makeSession} and {@link decodeSession} create it
 * @see {@link withSession} runs an effect in it
 * @since 0.1.0
 * @category sessions
 */
export class Session {
  /**
   * The longest wait of a read for a replica that is behind, in ms; after it the read goes to the
   * primary. A replica that does not answer is given up after one second, or after this time if it
   * is longer.
   */
  readonly maxWaitMillis: number
  /** @internal Called after a change. */
  onChange: (() => void) | undefined = undefined
  private loaded: Map<string, Token | "unknown"> | undefined = undefined
  /** Logical clock: the number of position queries and of writes at an unknown position. */
  private clock = 0
  /** The logical time of the last write at an unknown position, by database. */
  private readonly unknownSince = new Map<string, number>()
  /** The number of open periods in which writes are not reported, by database. */
  private readonly unreported = new Map<string, number>()

  /**
   * Creates a session; programs use {@link makeSession}. `load` returns the first tokens, and is
   * called once, when they are needed.
   */
  constructor(
    private readonly load: () => Iterable<readonly [database: string, Token | "unknown"]>,
    maxWaitMillis: number
  ) {
    this.maxWaitMillis = maxWaitMillis
  }

  /** The newest token of each database, by its name. */
  get known(): ReadonlyMap<string, Token | "unknown"> {
    return this.all
  }

  /** @internal Advances the logical clock for a position query, and returns the query's time. */
  beginQuery(): number {
    return ++this.clock
  }

  /**
   * @internal Records a position that the database has reached, or, without `read`, a write at an
   * unknown position. `queriedAt` is the logical time of the position query. A position is ignored
   * if a newer one is known, or if a write at an unknown position may be later.
   */
  record(database: string, read: ConstructorParameters<typeof Token>[0] | undefined, queriedAt: number): void {
    // a server's own position needs no validation
    const token = read === undefined || read instanceof Token ? read : new Token(read, { disableValidation: true })
    const before = this.all.get(database)
    if (token === undefined) this.unknownSince.set(database, ++this.clock)
    else if (before === "unknown" && !this.isCovered(database, queriedAt)) return
    else if (before instanceof Token && isAfter(before, token)) return
    this.all.set(database, token ?? "unknown")
    this.onChange?.()
  }

  /** @internal Begins a period in which writes are not reported; the returned function ends it. */
  beginUnreported(database: string): () => void {
    const count = (by: number) => {
      this.unreported.set(database, (this.unreported.get(database) ?? 0) + by)
      this.record(database, undefined, this.clock)
    }
    count(1)
    return () => count(-1)
  }

  /** Checks if a position queried at that time is after all writes at an unknown position. */
  private isCovered(database: string, queriedAt: number): boolean {
    return (this.unreported.get(database) ?? 0) === 0 && queriedAt > (this.unknownSince.get(database) ?? 0)
  }

  private get all(): Map<string, Token | "unknown"> {
    this.loaded ??= new Map(this.load())
    return this.loaded
  }
}

/** Returns the newest token of each database; `"unknown"` if its tokens are of several clusters. */
const newest = (tokens: Iterable<Token>): ReadonlyMap<string, Token | "unknown"> => {
  const all = new Map<string, Token | "unknown">()
  for (const token of tokens) {
    const before = all.get(token.database)
    if (before === undefined) all.set(token.database, token)
    else if (before === "unknown" || before.systemId !== token.systemId) all.set(token.database, "unknown")
    else if (isAfter(token, before)) all.set(token.database, token)
  }
  return all
}

/**
 * Options of a session.
 *
 * @see {@link makeSession} and {@link decodeSession}, which take them
 * @since 0.2.0
 * @category options
 */
export interface SessionOptions {
  /**
   * The longest wait of a read for a replica that is behind; after it the read goes to the primary.
   * A plain number is in milliseconds.
   *
   * @default "50 millis"
   */
  readonly maxWait?: Duration.DurationInput | undefined
}

/**
 * Creates a causal session with the newest of the given tokens of each database.
 *
 * If the tokens of one database are of several clusters, they cannot be compared, so its reads go to
 * the primary.
 *
 * @see {@link decodeSession} for a session from outside
 * @see {@link withSession} to run an effect in it
 * @example
 * ```ts
 * import { Consistency } from "effect-db"
 *
 * export const continueFrom = (tokens: ReadonlyArray<Consistency.Token>) =>
 *   Consistency.makeSession({ tokens, maxWait: "200 millis" })
 * ```
 *
 * @since 0.1.0
 * @category sessions
 */
export const makeSession = (
  options: SessionOptions & { readonly tokens?: Iterable<Token> | undefined } = {}
): Session => {
  const known = newest(options.tokens ?? [])
  return new Session(() => known, waitOf(options.maxWait))
}

/**
 * The causal session of a fiber, if it is in one.
 *
 * @see {@link withSession}, which sets it
 * @since 0.1.0
 * @category services
 */
export class CurrentSession extends Context.Reference<CurrentSession>()("effect-db/Consistency/Session", {
  defaultValue: (): Session | undefined => undefined
}) {}

/**
 * Runs an effect in a causal session: its reads see the earlier writes of the session, on any
 * server.
 *
 * @see `RequestTransaction.readYourWrites`, which keeps a session for each client of a server
 * @see {@link Consistency} for the consistency of a read without a session
 * @example
 * ```ts
 * import { Effect } from "effect"
 * import { Consistency, Database } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const addAndCount = Effect.gen(function*() {
 *   const writer = yield* Db.writer
 *   const reader = yield* Db.reader
 *   yield* Db.withTransaction(writer`INSERT INTO todo (title) VALUES ('milk')`)
 *   return yield* reader`SELECT count(*) FROM todo` // on a replica that has the row
 * }).pipe(Consistency.withSession(Consistency.makeSession()))
 * ```
 *
 * @since 0.1.0
 * @category sessions
 */
export const withSession: {
  (session: Session): <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  <A, E, R>(self: Effect.Effect<A, E, R>, session: Session): Effect.Effect<A, E, R>
} = dual(
  2,
  <A, E, R>(self: Effect.Effect<A, E, R>, session: Session): Effect.Effect<A, E, R> =>
    Effect.mapInputContext(self, (context: Context.Context<R>) => {
      const inside = Context.add(context, CurrentSession, session)
      const slot: unknown = inside.unsafeMap.get(TransactionConnection.key)
      return isOwnSlot(slot) ? Context.add(inside, TransactionConnection, slot[0].inSession(session)) : inside
    })
)

/**
 * Transaction slot of this library. It carries the session, too, because `SqlResolver` passes on no
 * other part of a context.
 */
type OwnSlot = readonly [
  { readonly inSession: (session: Session) => Context.Tag.Service<typeof TransactionConnection> }
]

const isOwnSlot = (slot: unknown): slot is OwnSlot => Array.isArray(slot) && Predicate.hasProperty(slot[0], "inSession")

const encodeToken = (database: string, token: Token | "unknown"): string =>
  token === "unknown"
    ? encodeURIComponent(database)
    : `${encodeURIComponent(database)}:${token.systemId}:${token.timeline}:${formatLsn(token.lsn)}`

const decodeFields = Schema.decodeUnknownEither(Token)

const decodeToken = (part: string): Either.Either<readonly [string, Token | "unknown"], ParseResult.ParseIssue> => {
  const [name = "", systemId, timeline, lsn, ...rest] = part.split(":")
  const invalid = Either.left(new ParseResult.Type(Schema.String.ast, part, "expected a database with its position"))
  if (name === "" || rest.length > 0) return invalid
  let database: string
  try {
    database = decodeURIComponent(name)
  } catch {
    // encodeSession writes no stray "%"
    return invalid
  }
  if (systemId === undefined) return Either.right([database, "unknown"])
  return Either.mapBoth(decodeFields({ database, systemId, timeline: Number(timeline), lsn }), {
    onLeft: ({ issue }) => issue,
    onRight: (token) => [database, token] as const
  })
}

/**
 * Encodes a session as a short text, for a header, a cookie or the field of a job.
 *
 * The text is printable ASCII without spaces and quotes; commas separate the databases. A client
 * that changes the text can make reads slower, or make them see older data, so sign a text that
 * clients return.
 *
 * @see {@link decodeSession}
 * @example
 * ```ts
 * import { Consistency } from "effect-db"
 *
 * export const job = (session: Consistency.Session) => ({ seen: Consistency.encodeSession(session) })
 * ```
 *
 * @since 0.1.0
 * @category sessions
 */
export const encodeSession = (session: Session): string =>
  [...session.known].map(([database, token]) => encodeToken(database, token)).join(",")

/**
 * Decodes a session from the text of {@link encodeSession}.
 *
 * The result is a `ParseError` on the left if the text does not have that form. An empty text means
 * a session without tokens.
 *
 * @see {@link encodeSession} for the text
 * @see {@link makeSession} for a session from tokens
 * @example
 * ```ts
 * import { Either } from "effect"
 * import { Consistency } from "effect-db"
 *
 * export const sessionOf = (job: { readonly seen: string }) =>
 *   Either.getOrElse(Consistency.decodeSession(job.seen), () => Consistency.makeSession())
 * ```
 *
 * @since 0.1.0
 * @category sessions
 */
export const decodeSession = (
  encoded: string,
  options: SessionOptions = {}
): Either.Either<Session, ParseResult.ParseError> =>
  Either.mapBoth(Either.all(encoded === "" ? [] : encoded.split(",").map(decodeToken)), {
    onLeft: ParseResult.parseError,
    onRight: (known) => new Session(() => known, waitOf(options.maxWait))
  })
