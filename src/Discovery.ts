/**
 * Ready sources of the hosts of a cluster, for the option `discover`: a static list, DNS, and the
 * REST API of Patroni.
 *
 * Each is an effect that returns the hosts of this moment. A failure keeps the hosts that are known,
 * and is reported as `Observation.DiscoveryFailed`.
 *
 * @since 0.3.0
 */
import * as Dns from "node:dns"
import * as Net from "node:net"
import * as FetchHttpClient from "@effect/platform/FetchHttpClient"
import * as HttpClient from "@effect/platform/HttpClient"
import type * as HttpClientError from "@effect/platform/HttpClientError"
import * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import type * as HttpClientResponse from "@effect/platform/HttpClientResponse"
import * as Chunk from "effect/Chunk"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { thrownMessage } from "./internal/protocol/thrownValue.js"
import type { DiscoveredHost } from "./ServerConfig.js"

/**
 * Failure of a source of hosts.
 *
 * - `timeout`: there was no answer in time.
 * - `unreachable`: the source could not be asked.
 * - `invalidAnswer`: the answer is not the expected one, too large, or has a host without a valid name.
 * - `noHosts`: the answer is valid, and has no host.
 *
 * @see {@link dns}, {@link srv} and {@link patroni}, which fail with it
 * @since 0.3.0
 * @category errors
 */
export class DiscoveryError extends Schema.TaggedError<DiscoveryError>("effect-db/DiscoveryError")("DiscoveryError", {
  /** The source: a name of DNS, or the origin of a URL. */
  source: Schema.String,
  reason: Schema.Literal("timeout", "unreachable", "invalidAnswer", "noHosts"),
  /** The reason in words, without secrets. */
  detail: Schema.String,
  cause: Schema.optional(Schema.Defect)
}) {
  /** The source and the reason in words. */
  override get message(): string {
    return `${this.source}: ${this.detail}`
  }
}

const invalid = (source: string, detail: string, cause?: unknown) =>
  new DiscoveryError({ source, reason: "invalidAnswer", detail, ...(cause === undefined ? {} : { cause }) })

/** The labels of a host name: letters, digits, hyphens, and the underscores of some private zones. */
const hostName = /^(?=.{1,254}$)[a-z\d_](?:[a-z\d_-]{0,61}[a-z\d_])?(?:\.[a-z\d_](?:[a-z\d_-]{0,61}[a-z\d_])?)*\.?$/i

/** An answer must not lead to a Unix socket, or add parameters: only names and addresses are hosts. */
const Host = Schema.String.pipe(
  Schema.filter((host) => Net.isIP(host) > 0 || hostName.test(host) || "neither a host name nor an address")
)

const Port = Schema.Int.pipe(Schema.between(1, 65_535))

const isHost = Schema.is(Host)

/** Fails with a typed error if there is no answer in time. */
const within =
  (source: string, timeout: Duration.DurationInput) =>
  <A, R>(self: Effect.Effect<A, DiscoveryError, R>): Effect.Effect<A, DiscoveryError, R> =>
    Effect.timeoutFail(self, {
      duration: timeout,
      onTimeout: () =>
        new DiscoveryError({
          source,
          reason: "timeout",
          detail: `no answer within ${Duration.format(Duration.decode(timeout))}`
        })
    })

/**
 * Returns hosts that do not change.
 *
 * It serves programs that choose a source by their settings; a cluster with fixed hosts needs no
 * `discover`.
 *
 * @see `DatabaseConfig.HostsOption` for hosts in the settings
 * @example
 * ```ts
 * import { Discovery } from "effect-db"
 *
 * export const discover = Discovery.list([{ host: "10.0.0.1" }, { host: "10.0.0.2", port: 5433 }])
 * ```
 *
 * @since 0.3.0
 * @category sources
 */
export const list = (hosts: ReadonlyArray<DiscoveredHost>): Effect.Effect<ReadonlyArray<DiscoveredHost>> =>
  Effect.succeed(hosts)

/**
 * Options of the sources that ask DNS.
 *
 * @see {@link dns}
 * @see {@link srv}
 * @since 0.3.0
 * @category models
 */
export interface DnsOptions {
  /**
   * The DNS servers to ask, as `address` or `address:port`.
   *
   * @default the resolver of the system
   */
  readonly servers?: ReadonlyArray<string> | undefined
  /**
   * The time for all answers together. It should be shorter than `connectTimeout` of the database.
   *
   * @default "3 seconds"
   */
  readonly timeout?: Duration.DurationInput | undefined
}

const defaultTimeout: Duration.DurationInput = "3 seconds"

/** Checks if DNS has answered that there is no such record. */
const isMissing = (cause: unknown): boolean =>
  cause instanceof Error && "code" in cause && (cause.code === Dns.NOTFOUND || cause.code === Dns.NODATA)

const dnsError = (source: string, cause: unknown): DiscoveryError => {
  const detail = thrownMessage(cause)
  return new DiscoveryError({ source, reason: isMissing(cause) ? "noHosts" : "unreachable", detail, cause })
}

/** Asks DNS with a resolver of its own, whose requests end with the effect. */
const resolving = <A>(
  source: string,
  { servers }: DnsOptions,
  ask: (resolver: Dns.promises.Resolver) => Promise<A>
): Effect.Effect<A, DiscoveryError> =>
  Effect.acquireUseRelease(
    Effect.try({
      try: () => {
        const resolver = new Dns.promises.Resolver()
        if (servers !== undefined) resolver.setServers(servers)
        return resolver
      },
      catch: (cause) => dnsError(source, cause)
    }),
    (resolver) => Effect.tryPromise({ try: () => ask(resolver), catch: (cause) => dnsError(source, cause) }),
    (resolver) => Effect.sync(() => resolver.cancel())
  )

const pendingLookups = new Map<string, ReturnType<typeof lookUpAll>>()

const lookUpAll = (name: string) => Dns.promises.lookup(name, { all: true })

/**
 * Looks a name up by the system. A look-up cannot be cancelled, and takes one of the few threads of
 * Node until it times out, so callers share it.
 */
const lookUp = (name: string): ReturnType<typeof lookUpAll> => {
  const known = pendingLookups.get(name)
  if (known !== undefined) return known
  const pending = lookUpAll(name).finally(() => pendingLookups.delete(name))
  pendingLookups.set(name, pending)
  return pending
}

/**
 * Returns the addresses of both families. Fails if there are no addresses, or if a family cannot be
 * asked.
 */
const addressesBy = async (resolver: Dns.promises.Resolver, name: string): Promise<ReadonlyArray<string>> => {
  const answers = await Promise.allSettled([resolver.resolve4(name), resolver.resolve6(name)])
  const addresses = answers.flatMap((answer) => (answer.status === "fulfilled" ? answer.value : []))
  const failures = answers.flatMap((answer) => (answer.status === "rejected" ? [answer.reason as unknown] : []))
  // a family that cannot be asked may have addresses, which must not be missing in the answer
  const failure = failures.find((failure) => !isMissing(failure)) ?? (addresses.length === 0 ? failures[0] : undefined)
  if (failure !== undefined) throw failure
  return addresses
}

/**
 * Returns the addresses of a name, from its A and AAAA records, as hosts with one port.
 *
 * The name is resolved by each run. A certificate is compared with the name, and errors and
 * observations have the address. Without `servers`, the resolver of the system is used, with its
 * search domains and its file of hosts. Fails with {@link DiscoveryError}.
 *
 * @see {@link srv} for records that have the ports as well
 * @example
 * ```ts
 * import { Config } from "effect"
 * import { Database, Discovery } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * // the URL has no host: postgres://me:secret@/app
 * export const DbLive = Db.layerConfig({
 *   hosts: Config.redacted("DATABASE_URL"),
 *   discover: Discovery.dns("postgres.internal", { port: 5432 })
 * })
 * ```
 *
 * @since 0.3.0
 * @category sources
 */
export const dns = (
  name: string,
  options: DnsOptions & {
    /**
     * The port of all hosts.
     *
     * @default 5432
     */
    readonly port?: number | undefined
  } = {}
): Effect.Effect<ReadonlyArray<DiscoveredHost>, DiscoveryError> => {
  const { port = 5432, servers, timeout = defaultTimeout } = options
  const found =
    servers === undefined
      ? Effect.tryPromise({
          try: () => lookUp(name),
          catch: (cause) => dnsError(name, cause)
        }).pipe(Effect.map((all) => all.map(({ address }) => address)))
      : resolving(name, options, (resolver) => addressesBy(resolver, name))
  return found.pipe(
    Effect.map((addresses) =>
      [...new Set(addresses)].sort().map((address) => ({
        name: Net.isIPv6(address) ? `[${address}]:${port}` : `${address}:${port}`,
        host: name,
        address,
        port
      }))
    ),
    within(name, timeout)
  )
}

/**
 * Returns the hosts and ports in the SRV records of a name, those of the smallest priority first.
 *
 * The name is resolved by each run. The order decides which host is tried first where that matters;
 * weights only order hosts of the same priority. Fails with {@link DiscoveryError}.
 *
 * @see {@link dns} for the addresses of a name
 * @example
 * ```ts
 * import { Discovery } from "effect-db"
 *
 * export const discover = Discovery.srv("_postgresql._tcp.app.internal", { servers: ["10.0.0.53"] })
 * ```
 *
 * @since 0.3.0
 * @category sources
 */
export const srv = (
  name: string,
  options: DnsOptions = {}
): Effect.Effect<ReadonlyArray<DiscoveredHost>, DiscoveryError> =>
  resolving(name, options, (resolver) => resolver.resolveSrv(name)).pipe(
    Effect.flatMap((records) => {
      // a record with the target "." says that there is no such service
      const offered = records.filter((record) => record.name !== "" && record.name !== ".")
      if (offered.length === 0) {
        const detail = "the service is not offered"
        return Effect.fail(new DiscoveryError({ source: name, reason: "noHosts", detail }))
      }
      const wrong = offered.find((record) => !isHost(record.name) || record.port === 0)
      if (wrong !== undefined) return Effect.fail(invalid(name, "a record has no valid host and port"))
      const sorted = offered.sort((a, b) => a.priority - b.priority || b.weight - a.weight)
      const unique = new Map(sorted.map(({ name: host, port }) => [`${host}:${port}`, { host, port }]))
      return Effect.succeed([...unique.values()])
    }),
    within(name, options.timeout ?? defaultTimeout)
  )

/** The largest answer of Patroni that is read, in bytes. A cluster of ten members has about 3 kB. */
const maxAnswerBytes = 1_048_576

const Cluster = Schema.parseJson(
  Schema.Struct({
    members: Schema.Array(
      Schema.Struct({
        state: Schema.String,
        role: Schema.optional(Schema.String),
        tags: Schema.optional(Schema.Struct({ noloadbalance: Schema.optional(Schema.Unknown) })),
        // a member that is being created has no host, and that of a stopped member does not matter
        host: Schema.optional(Schema.Unknown),
        port: Schema.optional(Schema.Unknown)
      })
    )
  })
)

/**
 * The states in which a member of Patroni accepts connections. A standby that can restore the log from
 * an archive is in the last one while it has no primary to stream from.
 */
const connectable: ReadonlySet<string> = new Set(["running", "streaming", "in archive recovery"])

/** Checks if a member takes no reads, and is no leader, by its tag. */
const isLeftOut = ({
  role,
  tags
}: {
  readonly role?: string | undefined
  readonly tags?: object | undefined
}): boolean =>
  role?.endsWith("leader") !== true && tags !== undefined && "noloadbalance" in tags && tags.noloadbalance === true

const isPlace = Schema.is(Schema.Struct({ host: Host, port: Schema.optional(Port) }))

const readAnswer = (source: string, response: HttpClientResponse.HttpClientResponse) =>
  response.stream.pipe(
    Stream.mapError((cause) => unreachable(source, cause)),
    Stream.mapAccumEffect(0, (size, part) => {
      const total = size + part.length
      return total > maxAnswerBytes
        ? Effect.fail(invalid(source, `the answer has more than ${maxAnswerBytes} bytes`))
        : Effect.succeed([total, part] as const)
    }),
    Stream.runCollect,
    Effect.map((parts) => Buffer.concat(Chunk.toReadonlyArray(parts)).toString())
  )

const unreachable = (source: string, cause: HttpClientError.HttpClientError) =>
  new DiscoveryError({ source, reason: "unreachable", detail: cause.message, cause })

const membersOf = (source: string, answer: string): Effect.Effect<ReadonlyArray<DiscoveredHost>, DiscoveryError> =>
  Schema.decode(Cluster)(answer).pipe(
    Effect.mapError((cause) => {
      const [issue] = ParseResult.ArrayFormatter.formatErrorSync(cause)
      const path = issue === undefined || issue.path.length === 0 ? "the answer" : issue.path.join(".")
      return invalid(source, `${path} is not as Patroni sends it`, cause)
    }),
    Effect.flatMap(({ members }) => {
      const places = members.filter((member) => connectable.has(member.state) && !isLeftOut(member))
      const hosts = places.flatMap((place) => (isPlace(place) ? [{ host: place.host, port: place.port }] : []))
      if (hosts.length < places.length) return Effect.fail(invalid(source, "a member has no valid host and port"))
      // a member that was made anew has two entries for a while
      const unique = new Map(hosts.map((host) => [`${host.host}:${host.port}`, host]))
      if (unique.size > 0) return Effect.succeed([...unique.values()])
      const detail = `none of ${members.length} members is running`
      return Effect.fail(new DiscoveryError({ source, reason: "noHosts", detail }))
    })
  )

const askPatroni = (
  url: string,
  timeout: Duration.DurationInput
): Effect.Effect<ReadonlyArray<DiscoveredHost>, DiscoveryError, HttpClient.HttpClient> =>
  Effect.suspend(() => {
    if (!URL.canParse("cluster", url)) return Effect.fail(invalid("patroni", "the URL of the API is not valid"))
    const { href, origin, password, username } = new URL("cluster", url.endsWith("/") ? url : `${url}/`)
    // an error of the client would show user and password
    if (username !== "" || password !== "") {
      return Effect.fail(invalid(origin, "the URL has a user or a password, which belong into the HttpClient"))
    }
    return HttpClient.HttpClient.pipe(
      Effect.flatMap((client) => HttpClient.withScope(client).execute(HttpClientRequest.get(href))),
      Effect.mapError((cause) => unreachable(origin, cause)),
      Effect.flatMap((response) =>
        response.status === 200
          ? readAnswer(origin, response)
          : Effect.fail(invalid(origin, `the answer has the status ${response.status}`))
      ),
      Effect.flatMap((answer) => membersOf(origin, answer)),
      Effect.scoped,
      within(origin, timeout)
    )
  })

/**
 * Returns the running members of a cluster of Patroni, from its REST API.
 *
 * All URLs are asked for `/cluster` at once, and the first valid answer is used, so give the URLs
 * of all members. Members in the states `running`, `streaming` and `in archive recovery` are hosts,
 * except for those with the tag `noloadbalance` that do not lead; their roles are found out by
 * logins, because the API may be behind. The password is sent to these hosts, so ask by `https`.
 * Redirects are followed only by an `HttpClient` that does so itself.
 *
 * It uses the `HttpClient` of the environment, which has the settings of TLS and of authentication,
 * such as `FetchHttpClient.layer`. Fails with {@link DiscoveryError} if no URL has a valid answer.
 *
 * @see {@link https://patroni.readthedocs.io/en/latest/rest_api.html} for the API
 * @example
 * ```ts
 * import { FetchHttpClient } from "@effect/platform"
 * import { Config, Effect } from "effect"
 * import { Database, Discovery } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * const members = Discovery.patroni(["http://10.0.0.1:8008", "http://10.0.0.2:8008"])
 *
 * // the URL has no host: postgres://me:secret@/app
 * export const DbLive = Db.layerConfig({
 *   hosts: Config.redacted("DATABASE_URL"),
 *   discover: Effect.provide(members, FetchHttpClient.layer)
 * })
 * ```
 *
 * @since 0.3.0
 * @category sources
 */
export const patroni = (
  urls: readonly [string, ...ReadonlyArray<string>],
  options: {
    /**
     * The time for each answer. It should be shorter than `connectTimeout` of the database.
     *
     * @default "3 seconds"
     */
    readonly timeout?: Duration.DurationInput | undefined
  } = {}
): Effect.Effect<ReadonlyArray<DiscoveredHost>, DiscoveryError, HttpClient.HttpClient> =>
  Effect.flatMap(Effect.serviceOption(FetchHttpClient.RequestInit), (init) =>
    Effect.raceAll(urls.map((url) => askPatroni(url, options.timeout ?? defaultTimeout))).pipe(
      Effect.provideService(FetchHttpClient.RequestInit, {
        ...(init._tag === "Some" ? init.value : {}),
        redirect: "manual"
      })
    )
  )
