/**
 * Servers whose packets are dropped, so that nothing reports the loss of a connection. The tests run
 * in a network of their own: `test/network.sh`.
 */
import { execFile } from "node:child_process"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { DatabaseError } from "effect-db"
import { Db } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { insertNumber, makeCluster, nameOf, numbersOn, type Server, urlOf } from "../support/hostCluster.js"
import { told, watch } from "../support/suites/pooling/observations.js"

const hasNetwork = process.env.EFFECT_DB_TEST_NETWORK === "own"

const nft = (rule: string) =>
  Effect.async<void>((resume) => {
    execFile("nft", rule.split(" "), (error) => resume(error === null ? Effect.void : Effect.die(error)))
  })

/** Drops all packets from and to a server, until the scope ends. */
const drop = ({ port }: Server) =>
  Effect.acquireRelease(
    Effect.gen(function* () {
      yield* nft(`add table inet drop${port}`)
      yield* nft(`add chain inet drop${port} input { type filter hook input priority 0 ; }`)
      yield* nft(`add rule inet drop${port} input tcp dport ${port} drop`)
      yield* nft(`add rule inet drop${port} input tcp sport ${port} drop`)
    }),
    () => nft(`delete table inet drop${port}`)
  )

const opened = Effect.map(makeCluster(2), (cluster) => {
  const { first: next, primary, second: other } = cluster
  const layer = Db.layer({
    writer: urlOf(primary, [primary, next]),
    readers: [next.url(), other.url()],
    connectTimeout: "1 second",
    monitorInterval: "500 millis",
    readerRetryDelay: "200 millis"
  })
  return { ...cluster, next, other, layer }
})

const port = Effect.flatMap(Db.reader, (sql) =>
  Effect.map(sql<{ port: number }>`SELECT inet_server_port() AS port`, ([row]) => row?.port)
)

describe.skipIf(!hasNetwork)("servers whose packets are dropped", () => {
  it.scopedLive("reads on a replica whose packets are dropped succeed on another one, and new reads avoid it", () =>
    Effect.gen(function* () {
      const { layer, next, other } = yield* opened
      yield* Effect.gen(function* () {
        const seen = yield* watch
        yield* Effect.replicateEffect(port, 8, { concurrency: 8 })
        yield* eventually(Db.status, ({ servers }) =>
          servers.every(({ latencyMillis, role }) => role === "writer" || latencyMillis !== undefined)
        )
        yield* Effect.scoped(
          Effect.gen(function* () {
            yield* drop(next)
            const since = performance.now()
            const times = yield* Effect.replicateEffect(
              Effect.map(port, (at) => {
                assert.strictEqual(at, other.port)
                return performance.now() - since
              }),
              20,
              { concurrency: 20 }
            )
            const [down] = yield* told(seen, "MarkedDown")
            assert.strictEqual(down?.server, nameOf(next))
            console.log(
              `20 reads end within ${Math.round(Math.max(...times))} ms after the packets of a replica are dropped`
            )
            assert.deepStrictEqual(new Set(yield* Effect.replicateEffect(port, 8)), new Set([other.port]))
          })
        )
        yield* told(seen, "MarkedUp")
      }).pipe(Effect.provide(layer))
    })
  )

  it.scopedLive("writes on a primary whose packets are dropped end in doubt, and new ones wait for its successor", () =>
    Effect.gen(function* () {
      const { awaitReplicas, layer, next, primary } = yield* opened
      yield* Effect.gen(function* () {
        yield* Effect.forEach([1, 2, 3], insertNumber, { concurrency: 3 })
        // an asynchronous standby may lack the last writes of its primary
        yield* awaitReplicas
        yield* Effect.scoped(
          Effect.gen(function* () {
            yield* drop(primary)
            const since = performance.now()
            const error = yield* DatabaseError.refine(insertNumber(4)).pipe(Effect.flip)
            console.log(
              `a write ends within ${Math.round(performance.now() - since)} ms after the packets of the primary are dropped`
            )
            assert.strictEqual(error._tag === "Disconnected" && error.outcome, "inDoubt")
            const waiting = yield* Effect.fork(insertNumber(5))
            yield* next.promote
            yield* Fiber.join(waiting)
          })
        )
        yield* Effect.forEach([6, 7, 8], insertNumber, { concurrency: 3 })
        assert.deepStrictEqual(yield* numbersOn(next), [1, 2, 3, 5, 6, 7, 8])
        assert.deepStrictEqual(yield* numbersOn(primary), [1, 2, 3])
      }).pipe(Effect.provide(layer))
    })
  )
})
