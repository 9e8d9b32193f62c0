/**
 * Servers that are frozen (SIGSTOP) under a load of reads and writes, with the default settings: calls
 * in flight and new ones succeed on another server, or end with a typed failure, in time.
 *
 * `EFFECT_DB_CHAOS=full` runs 10 rounds, and not one, and asserts the times.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { DatabaseError, EmbeddedPostgres } from "effect-db"
import { Db } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { until } from "../support/eventually.js"
import { query } from "../support/server.js"
import { only, watch } from "../support/suites/pooling/observations.js"

const isFull = process.env.EFFECT_DB_CHAOS === "full"
const rounds = isFull ? 10 : 1

/** The longest time of a call whose server is frozen, in ms: the detection time, and a tenth of it. */
const limit = 1100

/** The number of callers that read, and of those that write. */
const callers = 8

/** Call that has ended. */
interface Call {
  readonly began: number
  readonly ended: number
  /** The port of the server, or the failure. */
  readonly result: number | string
}

const isFailed = ({ result }: Call): boolean => typeof result === "string"

const shownFailure = (error: DatabaseError.DatabaseError): string =>
  error._tag === "Disconnected" ? `${error._tag} ${error.outcome}` : error._tag

/** Starts callers that repeat a call; returns the ended calls, and an effect that stops the callers. */
const startCalls = (call: Effect.Effect<number, DatabaseError.DatabaseError>) =>
  Effect.gen(function* () {
    const calls: Array<Call> = []
    const inFlight = new Set<number>()
    let isStopped = false
    const one = Effect.suspend(() => {
      const began = performance.now()
      inFlight.add(began)
      return Effect.map(Effect.merge(Effect.mapError(call, shownFailure)), (result) => {
        inFlight.delete(began)
        calls.push({ began, ended: performance.now(), result })
      })
    })
    const repeated = Effect.repeat(one, { until: () => isStopped })
    const fiber = yield* Effect.forkScoped(Effect.replicateEffect(repeated, callers, { concurrency: callers }))
    const stop = Effect.suspend(() => {
      isStopped = true
      return Fiber.join(fiber)
    })
    /** Waits until the calls that began before a moment have ended. */
    const ended = (moment: number) => until(() => [...inFlight].every((began) => began > moment))
    return { calls, ended, stop }
  })

/** Returns the longest time of the calls that were in flight at a moment, or began later, in ms. */
const longestSince = (calls: ReadonlyArray<Call>, moment: number): number =>
  Math.max(...calls.filter(({ ended }) => ended > moment).map(({ began, ended }) => ended - Math.max(began, moment)))

type Server = EmbeddedPostgres.EmbeddedPostgres.Server

const nameOf = ({ host, port }: Server): string => `${host}:${port}`

/** Waits until a call that has begun after a moment was served by a server. */
const served = (calls: ReadonlyArray<Call>, { port }: Server, moment = performance.now()) =>
  until(() => calls.some(({ began, result }) => began > moment && result === port))

it.scopedLive(
  `${rounds} freezes of a replica, and of the primary, fail no read, and each write ends with its outcome`,
  () =>
    Effect.gen(function* () {
      const { awaitReplicas, primary, replicas } = yield* EmbeddedPostgres.make({ directory, replicas: 2 })
      const [other = assert.fail("no replica"), replica = assert.fail("no replica")] = replicas
      yield* query(primary.url(), "CREATE TABLE item (n int PRIMARY KEY)")
      yield* awaitReplicas
      const names = [primary, other, replica].map(nameOf).join()
      const hosts = Redacted.make(Redacted.value(primary.url()).replace(nameOf(primary), names))
      let last = 0
      const port = ([row]: ReadonlyArray<{ readonly port: number }>) => row?.port ?? assert.fail("no row")
      const read = Effect.flatMap(Db.reader, (sql) => sql<{ port: number }>`SELECT inet_server_port() AS port`).pipe(
        Effect.map(port),
        DatabaseError.refine
      )
      const write = Effect.flatMap(
        Db.writer,
        (sql) => sql<{ port: number }>`INSERT INTO item VALUES (${++last}) RETURNING inet_server_port() AS port`
      ).pipe(Effect.map(port), DatabaseError.refine)

      const freezeReplica = Effect.gen(function* () {
        const seen = yield* watch
        const { calls, ended, stop } = yield* startCalls(Effect.provide(read, yield* Effect.context<Db>()))
        yield* served(calls, replica)
        yield* replica.freeze
        const moment = performance.now()
        yield* until(() => only(seen, "MarkedDown").some(({ server }) => server === nameOf(replica)))
        yield* ended(performance.now())
        const longest = longestSince(calls, moment)
        yield* replica.thaw
        yield* served(calls, replica)
        yield* stop
        assert.deepStrictEqual(calls.filter(isFailed), [])
        return longest
      })

      const freezePrimary = (old: Server, next: Server) =>
        Effect.gen(function* () {
          const context = yield* Effect.context<Db>()
          const reads = yield* startCalls(Effect.provide(read, context))
          const writes = yield* startCalls(Effect.provide(write, context))
          yield* served(writes.calls, old)
          yield* old.freeze
          const moment = performance.now()
          const failed = () => writes.calls.filter((call) => call.ended > moment && isFailed(call))
          yield* until(() => failed().length > 0)
          yield* next.promote
          yield* served(writes.calls, next)
          // the former primary serves no reads either
          const { servers } = yield* Db.status
          const { up } = servers.find(({ name, role }) => role === "reader" && name === nameOf(old)) ?? assert.fail()
          assert.isFalse(up)
          yield* writes.stop
          yield* reads.stop
          const before = last
          yield* old.thaw
          yield* Effect.replicateEffect(write, 40, { concurrency: callers })
          const [found] = yield* query<{ count: number }>(
            old.url(),
            `SELECT count(*)::int AS count FROM item WHERE n > ${before}`
          )
          assert.strictEqual(found?.count, 0)
          assert.deepStrictEqual(reads.calls.filter(isFailed), [])
          // the frozen server may have received them
          assert.deepStrictEqual([...new Set(failed().map(({ result }) => result))], ["Disconnected inDoubt"])
          yield* old.follow(next)
          yield* replica.follow(next)
          return {
            reads: longestSince(reads.calls, moment),
            writes: Math.max(...failed().map(({ ended }) => ended - moment))
          }
        })

      yield* Effect.gen(function* () {
        const times: Array<ReadonlyArray<number>> = []
        let [old, next] = [primary, other]
        for (let round = 0; round < rounds; round++) {
          const replicaFrozen = yield* Effect.scoped(freezeReplica)
          const primaryFrozen = yield* Effect.scoped(freezePrimary(old, next))
          times.push([replicaFrozen, primaryFrozen.reads, primaryFrozen.writes])
          ;[old, next] = [next, old]
        }
        const [ofReplica, ofReads, ofWrites] = [0, 1, 2].map((i) =>
          Math.round(Math.max(...times.map((all) => all[i] ?? 0)))
        )
        console.log(
          `${rounds} freezes: the longest read takes ${ofReplica} ms after that of a replica and ${ofReads} ms after that of the primary, the longest write in flight ${ofWrites} ms`
        )
        if (isFull) for (const time of times.flat()) assert.isBelow(time, limit)
      }).pipe(Effect.provide(Db.layer({ hosts })))
    }),
  60_000 + rounds * 30_000
)
