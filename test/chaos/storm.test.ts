/**
 * 64 fibers on one database, while its sessions are killed, its network is cut, silent, slow or
 * half dead, its server stands still or crashes, its passwords change every two seconds and fibers
 * are interrupted. No result is ever late, lost, leaked, untyped or that of another fiber.
 *
 * - `EFFECT_DB_CHAOS=full`: for 60 s instead of 8 s.
 * - `EFFECT_DB_CHAOS_SEED=...`: selects the disasters and the work of the fibers, not their timing;
 *   every failure names it.
 */
import { inspect } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { type Database, EmbeddedPostgres } from "effect-db"
import { Db } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually, eventuallySucceeds } from "../support/eventually.js"
import { makeProxy } from "../support/proxy.js"
import { randoms } from "../support/random.js"
import { anonymous, freshRole, Provider } from "../support/roles.js"
import { query } from "../support/server.js"
import { befall, rotate, type Scene } from "../support/storm/disasters.js"
import { Ledger } from "../support/storm/ledger.js"
import { heap, Watch } from "../support/storm/watch.js"
import { counters, kinds, talk, type Worker, work } from "../support/storm/work.js"

const isFull = process.env.EFFECT_DB_CHAOS === "full"
const seconds = isFull ? 60 : 8
const seed = Number(process.env.EFFECT_DB_CHAOS_SEED ?? (isFull ? Date.now() % 1_000_000 : 20_240_607))

const fibers = 60
const talkers = 4

/** The limit of each of the two pools, for writes and for reads. */
const maxConnections = 12

const options = {
  maxConnections,
  minConnections: 3,
  acquireTimeout: "1500 millis",
  connectTimeout: "1 second",
  maxLifetime: "20 seconds",
  validateAfterIdle: "200 millis",
  statementTimeout: "3 seconds",
  idleInTransactionTimeout: "2 seconds",
  applicationName: "storm"
} satisfies Partial<Database.Options>

/** The permitted growth of the heap from the first to the last third, in bytes. */
const growth = 10 * 1024 * 1024

const sockets = () => process.getActiveResourcesInfo().filter((kind) => kind === "TCPSocketWrap").length

/** The number of connections that are in use or connecting, of waiters and of transactions. */
const inUse = Effect.map(Db.status, ({ servers, transactions }) =>
  servers
    .flatMap(({ reads, writes }) => (writes === undefined ? [reads] : [reads, writes]))
    .map(({ active, connecting, waiting }) => active + connecting + waiting)
    .reduce((sum, n) => sum + n, transactions.length)
)

it.scopedLive(
  `a storm of ${seconds} s with seed ${seed} loses no write and leaks no connection`,
  () =>
    Effect.gen(function* () {
      const watch = new Watch(seed)
      yield* Effect.addFinalizer(() => Effect.sync(() => watch.lag.stop()))
      const ledger = new Ledger()
      const { primary: server } = yield* EmbeddedPostgres.make({ directory, settings: { max_connections: 300 } })
      const admin = server.url()
      yield* query(
        admin,
        `CREATE TABLE entry (grp int, fiber int);
         CREATE TABLE counter (id int PRIMARY KEY, n int);
         INSERT INTO counter SELECT id, 0 FROM generate_series(1, ${counters}) AS id;
         GRANT ALL ON entry, counter TO PUBLIC`
      )
      const roles = [yield* freshRole(admin), yield* freshRole(admin)] as const
      const socketsBefore = sockets()

      const inner = yield* Scope.make()
      const proxy = yield* Scope.extend(makeProxy(admin), inner)
      const provider = new Provider(roles[0])
      const scene: Scene = { random: randoms(seed), proxy, server, admin, provider, roles }
      const layer = yield* Scope.make()
      const context = yield* Layer.buildWithScope(
        Db.layer({ ...options, writer: anonymous(proxy.url), credentials: provider.credentials }),
        layer
      )
      const happened = new Map<string, number>()

      /**
       * Checks that the server has no connection beyond the limits. Those that the client has closed,
       * and the server has not noticed yet, do not count.
       */
      const sample = Effect.gen(function* () {
        const rows = yield* query<{ port: number }>(
          admin,
          "SELECT client_port AS port FROM pg_stat_activity WHERE application_name = 'storm'"
        )
        const live = new Set(proxy.ports)
        const open = rows.filter(({ port }) => live.has(port)).length
        watch.most = Math.max(watch.most, open)
        // one more connection listens
        if (open > 2 * maxConnections + 1) watch.note(`${open} connections at once`)
      }).pipe(Effect.catchAllCause(() => Effect.void))

      yield* Effect.gen(function* () {
        const writer = yield* Db.writer
        const reader = yield* Db.reader
        const begin = performance.now()
        const haveAllSucceeded = () => kinds.every((kind) => watch.seen.has(`${kind}: success`))
        // on a busy machine a kind of work may need more time for its first success
        const goesOn = () => {
          const elapsed = (performance.now() - begin) / 1000
          return elapsed < seconds || (elapsed < seconds + 30 && !haveAllSucceeded())
        }
        const until = <E, R>(self: Effect.Effect<void, E, R>) =>
          Effect.whileLoop({ while: goesOn, body: () => self, step: () => {} })
        const worker = (number: number): Worker => ({
          number,
          random: randoms(seed + number),
          watch,
          ledger,
          writer,
          reader
        })
        const misfortunes = yield* Effect.forEach(
          [
            befall(scene, (name) => happened.set(name, (happened.get(name) ?? 0) + 1)),
            rotate(scene),
            Effect.forever(Effect.zipRight(sample, Effect.sleep("100 millis")))
          ],
          Effect.fork
        )
        const heaps: Array<number> = []
        const weigh = Effect.forEach([1, 2, 3], () =>
          Effect.zipRight(
            Effect.sleep((seconds * 1000 - 200) / 3),
            Effect.map(heap, (bytes) => heaps.push(bytes))
          )
        )
        const all = Array.from({ length: fibers + talkers }, (_, n) => worker(n + 1))
        yield* Effect.all(
          [
            weigh,
            Effect.forEach(all, (one) => until(one.number <= fibers ? work(one) : talk(one)), {
              concurrency: "unbounded",
              discard: true
            })
          ],
          { concurrency: 2 }
        )
        for (const exit of yield* Effect.forEach(misfortunes, Fiber.interrupt)) {
          if (!Exit.isInterrupted(exit)) watch.note(`the storm broke off: ${String(exit)}`)
        }
        const grown = (heaps[2] ?? 0) - (heaps[0] ?? 0)
        console.log(
          `seed ${seed}: the heap grew by ${Math.round(grown / 1024)} kB, at the most ${watch.most} connections, ` +
            `${Math.round(watch.latest)} ms late, ${Math.round(watch.lag.total)} ms of lag`,
          ledger.counts,
          happened,
          [...watch.seen].sort()
        )
        if (grown > growth) watch.note(`the heap grew by ${grown} bytes`)

        // after the storm no connection is in use, and every kind of work succeeds
        yield* Effect.all([server.start, proxy.forget, proxy.cut])
        // the last rotation may have been lost on its way
        yield* Effect.zipRight(
          roles[0].rotate,
          Effect.sync(() => provider.use(roles[0]))
        )
        const after = <A, E>(what: string, self: Effect.Effect<A, E, Db>) =>
          Effect.timeout(self, "20 seconds").pipe(
            Effect.catchAllCause((cause) =>
              Effect.map(Db.status, (status) => watch.note(`${what}: ${Cause.pretty(cause)} ${inspect(status)}`))
            )
          )
        yield* after(
          "nothing is in use",
          Effect.repeat(inUse, { schedule: Schedule.spaced("2 millis"), until: (n) => n === 0 })
        )
        // a client receives the cut a moment later, and the storm may have used up the retry budget
        for (const sql of [writer, reader]) yield* after("statements work", eventuallySucceeds(sql`SELECT 1`))
        const receive = eventuallySucceeds(Stream.runHead(writer.listen("after")))
        const send = Effect.forever(
          Effect.zipRight(Effect.ignore(writer.notify("after", "hello")), Effect.sleep("5 millis"))
        )
        yield* after("listening works", Effect.race(receive, send))
      }).pipe(Effect.provide(context))

      // the default of shutdownTimeout is 5000 ms
      yield* watch.within("the end of the database", 5000, Scope.close(layer, Exit.void))
      const noted = <A>(what: string, self: Effect.Effect<A>) =>
        Effect.catchAllCause(self, (cause) => Effect.sync(() => watch.note(`${what}: ${Cause.pretty(cause)}`)))
      yield* noted(
        "sockets are still open",
        eventually(
          Effect.sync(() => proxy.connections),
          (n) => n === 0
        )
      )
      yield* Scope.close(inner, Exit.void)
      yield* noted(
        "more sockets than before",
        eventually(Effect.sync(sockets), (n) => n <= socketsBefore)
      )

      // the sessions of abandoned work are terminated
      yield* eventually(
        query(admin, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'storm'"),
        (rows) => rows.length === 0
      )
      const found = yield* query<{ id: number; rows: number; fibers: ReadonlyArray<number> }>(
        admin,
        "SELECT grp AS id, count(*)::int AS rows, array_agg(DISTINCT fiber) AS fibers FROM entry GROUP BY grp"
      )
      const steps = yield* query<{ n: number }>(admin, "SELECT n FROM counter ORDER BY id")
      for (const wrong of ledger.check(
        found,
        steps.map(({ n }) => n)
      )) {
        watch.note(wrong)
      }
      assert.deepStrictEqual(watch.wrong, [], `with seed ${seed}`)
      // each kind of work has succeeded
      for (const kind of kinds) assert.isAbove(watch.seen.get(`${kind}: success`) ?? 0, 0, `${kind}, with seed ${seed}`)
      assert.isAbove(ledger.counts.undone, 0)
    }),
  seconds * 1000 + 90_000
)
