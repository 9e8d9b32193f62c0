import { HttpApiSchema } from "@effect/platform"
import { Context, Effect, Fiber, Layer, Option, Schedule, Schema } from "effect"
import type { EmbeddedPostgres } from "effect-db"
import { direct, on } from "./servers.js"

type Server = EmbeddedPostgres.EmbeddedPostgres.Server

/** Failure of an action on the servers, with the reason and what to do. */
export class NotPossible extends Schema.TaggedError<NotPossible>()(
  "NotPossible",
  { message: Schema.String },
  HttpApiSchema.annotations({ status: 409, description: "The servers cannot do this now" })
) {}

/** One server of the cluster. Its name does not say its role, because a promotion changes that. */
export interface Member {
  readonly name: string
  readonly address: string
  readonly server: Server
}

export interface Actions {
  readonly members: ReadonlyArray<Member>
  /** Kills the primary with SIGKILL, and leaves it dead until `start`. */
  readonly killPrimary: Effect.Effect<Member, NotPossible>
  /**
   * Makes the replica with the most data the primary, which the other replicas follow. If the
   * primary is running, it hands over without a loss, and becomes a replica.
   */
  readonly promote: Effect.Effect<Member, NotPossible>
  /** Starts every server that is not running. A former primary becomes a replica of the new one. */
  readonly start: Effect.Effect<ReadonlyArray<Member>, NotPossible>
  /** Waits until a server has ended although it was not killed by `killPrimary`. */
  readonly ended: (member: Member) => Effect.Effect<void>
  /** Starts a server again if it is not running. */
  readonly revive: (member: Member) => Effect.Effect<void, EmbeddedPostgres.EmbeddedPostgresError>
}

/** The actions that change the roles of the servers; none if the service has not started them. */
export class Cluster extends Context.Tag("example/Cluster")<Cluster, Option.Option<Actions>>() {}

export const none = Layer.succeed(Cluster, Option.none())

const refused = (message: string) => new NotPossible({ message })

const impossible = ({ reason, server }: EmbeddedPostgres.EmbeddedPostgresError) =>
  refused(server === undefined ? reason : `${server}: ${reason}`)

/** Returns the end of the log that a replica has received, in bytes. */
const endOfLog = ({ server }: Member) =>
  on(
    { database: "app", role: "replica", url: server.url("app") },
    Effect.flatMap(
      direct,
      (sql) => sql<{ bytes: number }>`
        SELECT (greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0')::float8 AS bytes`
    )
  ).pipe(
    Effect.map(([row]) => row?.bytes ?? 0),
    Effect.mapError(({ message }) => refused(message))
  )

const make = (postgres: EmbeddedPostgres.EmbeddedPostgres.Service) =>
  Effect.gen(function* () {
    const scope = yield* Effect.scope
    const lock = yield* Effect.makeSemaphore(1)
    const members = [postgres.primary, ...postgres.replicas].map(
      (server, i): Member => ({ name: `server ${i + 1}`, address: `${server.host}:${server.port}`, server })
    )
    /** The servers that stay dead. */
    const killed = new Set<Member>()
    /** The servers that were not running when another one was promoted: they cannot go on with their data. */
    const outdated = new Set<Member>()

    const running = Effect.filter(members, ({ server }) => server.isRunning)
    const stopped = Effect.filter(members, ({ server }) => Effect.map(server.isRunning, (runs) => !runs))
    const primary = Effect.gen(function* () {
      const found = yield* Effect.option(postgres.currentPrimary)
      const all = yield* running
      return Option.flatMap(found, (server) => Option.fromNullable(all.find((member) => member.server === server)))
    })

    /** Runs actions one after the other, each to its end, also if the client that has asked for it goes away. */
    const whole = <A, E>(action: Effect.Effect<A, E>): Effect.Effect<A, E> =>
      Effect.flatMap(Effect.forkIn(lock.withPermits(1)(action), scope), Fiber.join)

    const bringBack = (member: Member) =>
      Effect.gen(function* () {
        const source = yield* primary
        if (outdated.has(member) && Option.isSome(source)) yield* member.server.follow(source.value.server)
        else yield* member.server.start
        outdated.delete(member)
        killed.delete(member)
      })

    const promoteOne = Effect.gen(function* () {
      const before = yield* primary
      const standbys = (yield* running).filter((member) => !Option.contains(before, member))
      const ends = yield* Effect.forEach(standbys, (member) =>
        Effect.map(endOfLog(member), (bytes) => ({ bytes, member }))
      )
      const [best] = ends.toSorted((a, b) => b.bytes - a.bytes)
      if (best === undefined) return yield* refused("no replica is running: start the servers first")
      const { member } = best
      if (Option.isSome(before)) yield* Effect.mapError(postgres.switchOver(member.server), impossible)
      else {
        yield* Effect.mapError(member.server.promote, impossible)
        for (const other of yield* stopped) outdated.add(other)
        const others = standbys.filter((other) => other !== member)
        // after this action: the new primary accepts writes already. With synchronous commits, those wait until a
        // replica follows
        yield* Effect.forEach(others, ({ server }) => server.follow(member.server), {
          concurrency: "unbounded",
          discard: true
        }).pipe(
          lock.withPermits(1),
          Effect.catchAll(({ message }) => Effect.logWarning(message)),
          Effect.forkIn(scope)
        )
      }
      return member
    })

    const actions: Actions = {
      members,
      killPrimary: whole(
        Effect.gen(function* () {
          const found = yield* primary
          if (Option.isNone(found)) {
            return yield* refused("no primary is running: promote a replica, or start the servers again")
          }
          killed.add(found.value)
          yield* Effect.mapError(found.value.server.kill, impossible)
          return found.value
        })
      ),
      promote: whole(promoteOne),
      start: whole(
        Effect.gen(function* () {
          const all = yield* stopped
          if (all.length === 0) return yield* refused("every server is running")
          // a primary first, because the outdated servers follow it
          const order = all.toSorted((a, b) => Number(outdated.has(a)) - Number(outdated.has(b)))
          yield* Effect.forEach(order, (member) => Effect.mapError(bringBack(member), impossible), { discard: true })
          return all
        })
      ),
      ended: (member) =>
        // between two actions, which stop and start servers themselves
        Effect.repeat(lock.withPermits(1)(member.server.isRunning), {
          while: (runs) => runs || killed.has(member),
          schedule: Schedule.spaced("200 millis")
        }).pipe(Effect.asVoid),
      revive: (member) => whole(Effect.unlessEffect(bringBack(member), member.server.isRunning)).pipe(Effect.asVoid)
    }
    return Option.some(actions)
  })

/** The actions on servers that the service has started. */
export const embedded = (postgres: EmbeddedPostgres.EmbeddedPostgres.Service) => Layer.scoped(Cluster, make(postgres))
