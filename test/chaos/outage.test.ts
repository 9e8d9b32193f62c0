/**
 * The primary is killed under 50 requests a second, with the default settings: each request succeeds,
 * ends at its own deadline or reports an unknown outcome, and nothing is stored twice.
 *
 * `EFFECT_DB_CHAOS=full`: the primary is down for 7 s instead of 3 s.
 */
import { inspect } from "node:util"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import { DatabaseError, EmbeddedPostgres, RetryPolicy, UnitOfWork } from "effect-db"
import { Db } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { query } from "../support/server.js"

const isFull = process.env.EFFECT_DB_CHAOS === "full"

/** The duration of the outage, in ms, and of the load before and after it. */
const away = isFull ? 7000 : 3000
const around = 1000

const perSecond = 50

/** The deadline of most requests, and a short one, which ends before the server is back. */
const deadlines = { long: "25 seconds", short: "500 millis" } as const

interface Request {
  readonly id: number
  readonly kind: keyof typeof kinds
  readonly deadline: keyof typeof deadlines
  /** True if the request came before the server was dead, so that it may have reached the server. */
  readonly cameBefore: boolean
  readonly exit: "success" | "deadline" | DatabaseError.DatabaseError
}

const write = (id: number, part: number) =>
  Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO entry (request, part) VALUES (${id}, ${part})`)

/** The kinds of requests. All but `plain` are safe to run again if the server dies during their work. */
const kinds = {
  read: (id: number) => Effect.flatMap(Db.reader, (sql) => sql`SELECT ${id}::int`),
  transaction: (id: number) => Db.withTransaction(Effect.zipRight(write(id, 1), write(id, 2)), { retry: true }),
  unit: (id: number) => UnitOfWork.run(Effect.zipRight(write(id, 1), write(id, 2)), { retry: true }),
  idempotent: (id: number) =>
    RetryPolicy.idempotent(
      Effect.flatMap(
        Db.writer,
        (sql) => sql`INSERT INTO entry (request, part) SELECT ${id}, 1
          WHERE NOT EXISTS (SELECT FROM entry WHERE request = ${id})`
      )
    ),
  plain: (id: number) => write(id, 1)
}

it.scopedLive(
  `a primary that is killed for ${away / 1000} s under ${perSecond} requests a second fails no request before its deadline, except writes in doubt`,
  () =>
    Effect.gen(function* () {
      const { primary } = yield* EmbeddedPostgres.make({ directory })
      const url = primary.url()
      yield* query(url, "CREATE TABLE entry (request int, part int)")
      const requests: Array<Request> = []
      yield* Effect.gen(function* () {
        // a request that comes when the server is dead waits until the server is back
        let isDead = false
        let id = 0
        const names = Object.keys(kinds) as Array<keyof typeof kinds>
        const request = Effect.suspend(() => {
          const number = ++id
          const kind = names[number % names.length] ?? "read"
          const deadline = number % 7 === 0 ? "short" : "long"
          const cameBefore = !isDead
          return DatabaseError.refine(kinds[kind](number) as Effect.Effect<unknown, unknown, Db>).pipe(
            Effect.timeout(deadlines[deadline]),
            Effect.match({
              onSuccess: () => "success" as const,
              onFailure: (error) => (DatabaseError.isDatabaseError(error) ? error : ("deadline" as const))
            }),
            Effect.map((exit) => {
              requests.push({ id: number, kind, deadline, cameBefore, exit })
            })
          )
        })
        const fibers: Array<Fiber.RuntimeFiber<void>> = []
        const come = Effect.map(Effect.forkDaemon(request), (fiber) => fibers.push(fiber))
        const coming = yield* Effect.fork(Effect.repeat(come, Schedule.fixed(1000 / perSecond)))
        // the outage itself: requests keep coming in real time before, during and after it
        yield* Effect.sleep(around)
        yield* primary.kill
        isDead = true
        yield* Effect.sleep(away)
        yield* primary.start
        yield* Effect.sleep(around)
        yield* Fiber.interrupt(coming)
        yield* Fiber.joinAll(fibers)
      }).pipe(Effect.provide(Db.layer({ writer: url })))

      const rows = yield* query<{ request: number; parts: ReadonlyArray<number> }>(
        url,
        "SELECT request, array_agg(part ORDER BY part) AS parts FROM entry GROUP BY request"
      )
      const found = new Map(rows.map(({ parts, request }) => [request, parts.join()]))
      const whole = { read: "", transaction: "1,2", unit: "1,2", idempotent: "1", plain: "1" }
      let slow = 0
      for (const { cameBefore, deadline, exit, id, kind } of requests) {
        const is = `${id}: ${kind}, ${inspect(exit)}`
        const there = found.get(id) ?? ""
        if (exit === "success") assert.strictEqual(there, whole[kind], is)
        // nothing is stored, or all of it
        else if (exit === "deadline") {
          slow++
          assert.include(["", whole[kind]], there, is)
          assert.strictEqual(deadline, "short", is)
        } else {
          // work that the server had when it died, and may have applied, is reported as in doubt
          const isInDoubt =
            exit._tag === "CommitOutcomeUnknown" || (exit._tag === "Disconnected" && exit.outcome === "inDoubt")
          assert.isTrue(cameBefore && isInDoubt, is)
          assert.include(["", whole[kind]], there, is)
        }
      }
      const most = (perSecond * (away + 2 * around)) / 1000
      assert.isAbove(requests.length, most / 2)
      // the shorter deadlines were over before the server was back
      assert.isAbove(slow, 0)
      const unknown = new Set(found.keys())
      for (const { id } of requests) unknown.delete(id)
      assert.isEmpty([...unknown])
    }),
  away + 90_000
)
