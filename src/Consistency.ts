/**
 * What a read must see: of everybody's writes, of one's own, or of those that a token tells of.
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
 * A place in the history of a database: whoever reads at least there sees all that was committed before the token was taken.
 *
 * It holds for good: a server is there or it is not, and where its history is another one, after a failover, it is refused.
 *
 * @example
 * import { Schema } from "effect"
 * import { Consistency } from "effect-db"
 *
 * // for the field of a job, say
 * export const Seen = Schema.parseJson(Schema.Array(Consistency.Token))
 *
 * @since 0.1.0
 * @category models
 */
export class Token extends Schema.Class<Token>("effect-db/Token")({
  /** The name of the database's class. */
  database: Schema.String,
  /** Which cluster of servers it is: a primary and its replicas have the same one. */
  systemId: Schema.String.pipe(Schema.pattern(/^\d{1,20}$/)),
  /** Counts the failovers of the cluster. */
  timeline: Schema.Int.pipe(Schema.between(1, 0xffff_ffff)),
  /** The position in the write-ahead log; encoded as the server writes it: `0/1B82F58`. */
  lsn: Lsn
}) {}

/**
 * - `Strong`: what the primary has committed; read there.
 * - `ReadYourWrites` (default): at least what this unit of work, and the {@link Session} that it is in, has written.
 * - `AtLeast`: at least what the token tells of, and what is seen by `ReadYourWrites`. A replica that has it not is given `maxWait` (50 ms)
 *   to get it, and one that does not answer a second; then the primary is read or, with `otherwise: "fail"`, the read fails with `NoReplicaCaughtUp` or `TokenFromLostTimeline`.
 *   A database without replicas reads its primary.
 * - `Eventual`: whatever a replica has.
 *
 * @since 0.1.0
 * @category models
 */
export type Consistency = Data.TaggedEnum<{
  Strong: {}
  ReadYourWrites: {}
  AtLeast: {
    readonly token: Token
    readonly maxWait?: Duration.DurationInput | undefined
    readonly otherwise?: "primary" | "fail" | undefined
  }
  Eventual: {}
}>

/**
 * @since 0.1.0
 * @category constructors
 */
export const { AtLeast, Eventual, ReadYourWrites, Strong } = Data.taggedEnum<Consistency>()

/**
 * The consistency in force, by the key of the database; set with `Db.withConsistency`.
 *
 * @since 0.1.0
 * @category services
 */
export class CurrentConsistency extends Context.Reference<CurrentConsistency>()("effect-db/Consistency", {
  defaultValue: (): ReadonlyMap<string, Consistency> => new Map()
}) {}

/** How long a read waits for a replica by default, in ms. */
const longestWait = 50

/** @internal How long a read waits for a replica, in ms. */
export const waitOf = (maxWait: Duration.DurationInput | undefined): number =>
  maxWait === undefined ? longestWait : Duration.toMillis(maxWait)

/** Whether one is known to tell of all that the other tells of: of one history, or of an earlier part of it. */
const isAfter = (one: Token, other: Token): boolean =>
  one.systemId === other.systemId &&
  (one.timeline > other.timeline || (one.timeline === other.timeline && one.lsn >= other.lsn))

/**
 * What a piece of work has written and its later parts are to see, wherever they run: in other units of work, after the end of a request, in
 * another process. Each COMMIT in it brings a token, and each read by `ReadYourWrites` in it sees at least what these tell of.
 *
 * What is known of a database is its newest token, or `"unknown"` where something was written and no token could be had: then the primary is
 * read, and says where it is. A reader's transaction sees what was known when it began, with its first statement. A session inside of
 * another one stands alone: the one around it, a request's too, does not hear of what is written in it.
 *
 * @since 0.1.0
 * @category sessions
 */
export class Session {
  /** How long a read in it waits for a replica that is behind before it goes to the primary, in ms; one that does not answer has a second. */
  readonly maxWait: number
  /** @internal Told when something was learned. */
  onChange: (() => void) | undefined = undefined
  private loaded: Map<string, Token | "unknown"> | undefined = undefined
  /** Counts questions, and what came between them. */
  private clock = 0
  /** When something was stored of which nobody knows where. */
  private readonly unknownSince = new Map<string, number>()
  /** How many there are, by database, who may store something at any time without a word. */
  private readonly unseen = new Map<string, number>()

  /** By {@link makeSession}. `load` gives what is known at its beginning; it is not called before somebody asks. */
  constructor(
    private readonly load: () => Iterable<readonly [database: string, Token | "unknown"]>,
    maxWait: number
  ) {
    this.maxWait = maxWait
  }

  /** What is known by now, by the name of the database. */
  get known(): ReadonlyMap<string, Token | "unknown"> {
    return this.all
  }

  /** @internal A server is asked where it is; what it says counts as of now. */
  ask(): number {
    return ++this.clock
  }

  /** @internal Something was stored; `token` is a place after it, if one could be had, which was asked for at that time. */
  note(database: string, read: ConstructorParameters<typeof Token>[0] | undefined, asked: number): void {
    // a server's own position needs no validation
    const token = read === undefined || read instanceof Token ? read : new Token(read, { disableValidation: true })
    const before = this.all.get(database)
    if (token === undefined) this.unknownSince.set(database, ++this.clock)
    else if (before === "unknown" && !this.isSeen(database, asked)) return
    else if (before instanceof Token && isAfter(before, token)) return
    this.all.set(database, token ?? "unknown")
    this.onChange?.()
  }

  /** @internal From now on somebody may store something without a word, until the returned function is called. */
  lend(database: string): () => void {
    const count = (by: number) => {
      this.unseen.set(database, (this.unseen.get(database) ?? 0) + by)
      this.note(database, undefined, this.clock)
    }
    count(1)
    return () => count(-1)
  }

  /** Whether what nobody knows of was there when somebody asked. */
  private isSeen(database: string, asked: number): boolean {
    return (this.unseen.get(database) ?? 0) === 0 && asked > (this.unknownSince.get(database) ?? 0)
  }

  private get all(): Map<string, Token | "unknown"> {
    this.loaded ??= new Map(this.load())
    return this.loaded
  }
}

/** Of tokens of one database the newest; where these are of several clusters, nobody knows which is. */
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
 * A session that begins with what these tokens tell of. `maxWait` is how long a read in it waits for a replica; 50 ms.
 *
 * @since 0.1.0
 * @category sessions
 */
export const makeSession = (
  options: { readonly tokens?: Iterable<Token> | undefined; readonly maxWait?: Duration.DurationInput | undefined } = {}
): Session => {
  const known = newest(options.tokens ?? [])
  return new Session(() => known, waitOf(options.maxWait))
}

/**
 * The session that a fiber is in, if it is in one; set with {@link withSession}.
 *
 * @since 0.1.0
 * @category services
 */
export class CurrentSession extends Context.Reference<CurrentSession>()("effect-db/Consistency/Session", {
  defaultValue: (): Session | undefined => undefined
}) {}

/**
 * Runs an effect in a session: its reads see what was written in the session before, whoever serves them.
 *
 * @example
 * import { Effect } from "effect"
 * import { Consistency, Database } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const addAndCount = Effect.gen(function*() {
 *   const writer = yield* Db.writer
 *   const reader = yield* Db.reader
 *   yield* Db.withTransaction(writer`INSERT INTO todo (title) VALUES ('milk')`)
 *   return yield* reader`SELECT count(*) FROM todo` // by a replica that has the row
 * }).pipe(Consistency.withSession(Consistency.makeSession()))
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
      return isOurs(slot) ? Context.add(inside, TransactionConnection, slot[0].inSession(session)) : inside
    })
)

/** What takes a session along where `SqlResolver` takes nothing else: what we have in the transaction slot. */
type Ours = readonly [{ readonly inSession: (session: Session) => Context.Tag.Service<typeof TransactionConnection> }]

const isOurs = (slot: unknown): slot is Ours => Array.isArray(slot) && Predicate.hasProperty(slot[0], "inSession")

const text = (database: string, token: Token | "unknown"): string =>
  token === "unknown"
    ? encodeURIComponent(database)
    : `${encodeURIComponent(database)}:${token.systemId}:${token.timeline}:${formatLsn(token.lsn)}`

const entry = Schema.decodeUnknownEither(Token)

const parse = (part: string): Either.Either<readonly [string, Token | "unknown"], ParseResult.ParseIssue> => {
  const [name = "", systemId, timeline, lsn, ...rest] = part.split(":")
  const invalid = Either.left(new ParseResult.Type(Schema.String.ast, part, "this tells of no place in a database"))
  if (name === "" || rest.length > 0) return invalid
  let database: string
  try {
    database = decodeURIComponent(name)
  } catch {
    // a stray "%" is no name that was written here
    return invalid
  }
  if (systemId === undefined) return Either.right([database, "unknown"])
  return Either.mapBoth(entry({ database, systemId, timeline: Number(timeline), lsn }), {
    onLeft: ({ issue }) => issue,
    onRight: (token) => [database, token] as const
  })
}

/**
 * A session as a short text of printable ASCII, without spaces, commas and quotes aside: for a header, a cookie, the field of a job. Whoever
 * can change it can make reads slower or older, so what comes back from outside is to be signed.
 *
 * @since 0.1.0
 * @category sessions
 */
export const encodeSession = (session: Session): string =>
  [...session.known].map(([database, token]) => text(database, token)).join(",")

/**
 * The session that such a text tells of; an empty one tells of nothing.
 *
 * @since 0.1.0
 * @category sessions
 */
export const decodeSession = (
  encoded: string,
  options: { readonly maxWait?: Duration.DurationInput | undefined } = {}
): Either.Either<Session, ParseResult.ParseError> =>
  Either.mapBoth(Either.all(encoded === "" ? [] : encoded.split(",").map(parse)), {
    onLeft: ParseResult.parseError,
    onRight: (known) => new Session(() => known, waitOf(options.maxWait))
  })
