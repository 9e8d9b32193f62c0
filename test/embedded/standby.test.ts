/** Standbys that lag or receive nothing, and commits that wait for standbys. */
import * as fs from "node:fs"
import * as path from "node:path"
import { describe, expect, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { EmbeddedPostgres } from "effect-db/EmbeddedPostgres"
import { addNumber, cluster, execute, filledCluster, make, numbers, standbysOf } from "../support/embedded.js"
import { query } from "../support/server.js"

type Server = EmbeddedPostgres.Server

describe("the replay of a standby", () => {
  /** Waits until a standby has received all that its primary has written, replayed or not. */
  const awaitReceipt = (primary: Server, standby: Server) =>
    Effect.gen(function* () {
      const [written] = yield* query(primary.url(), "SELECT pg_current_wal_lsn()::text AS lsn")
      const received = query(standby.url(), "SELECT pg_last_wal_receive_lsn() >= $1::pg_lsn AS yes", [written?.lsn])
      yield* Effect.repeat(received, { until: ([row]) => row?.yes === true })
    })

  it.scopedLive("a delayed replica receives commits and does not show them before their delay ends", () =>
    Effect.gen(function* () {
      const { one, postgres, primary } = yield* filledCluster({ replicas: 1 })
      yield* one.delayReplay("1 hour")
      yield* execute(primary, "INSERT INTO t VALUES (2)")
      yield* awaitReceipt(primary, one)
      expect(yield* numbers(one)).toEqual([1])
      yield* one.delayReplay(0)
      yield* postgres.awaitReplicas
      expect(yield* numbers(one)).toEqual([1, 2])
    })
  )

  it.scopedLive("a promotion and a follower end a delay", () =>
    Effect.gen(function* () {
      const { one, postgres, primary, two } = yield* filledCluster()
      yield* Effect.all([one.delayReplay("1 hour"), two.delayReplay("1 hour")], { concurrency: "unbounded" })
      yield* execute(primary, "INSERT INTO t VALUES (2)")
      yield* postgres.switchOver(one)
      expect(yield* numbers(one)).toEqual([1, 2])
      yield* addNumber(postgres, one, 3)
      expect(yield* numbers(two)).toEqual([1, 2, 3])
      expect(yield* numbers(primary)).toEqual([1, 2, 3])
    })
  )

  it.scopedLive("a paused replica shows no new commits until it resumes", () =>
    Effect.gen(function* () {
      const { one, postgres, primary } = yield* filledCluster({ replicas: 1 })
      yield* one.pauseReplay
      yield* execute(primary, "INSERT INTO t VALUES (2)")
      yield* awaitReceipt(primary, one)
      expect(yield* numbers(one)).toEqual([1])
      yield* one.resumeReplay
      yield* one.resumeReplay
      yield* postgres.awaitReplicas
      expect(yield* numbers(one)).toEqual([1, 2])
    })
  )

  it.scopedLive("a replica without replication gets nothing until it is restored", () =>
    Effect.gen(function* () {
      const { one, postgres, primary, two } = yield* filledCluster()
      yield* addNumber(postgres, primary, 2)
      yield* one.cutReplication
      yield* one.cutReplication
      yield* addNumber(postgres, primary, 3)
      expect(yield* numbers(two)).toEqual([1, 2, 3])
      expect(yield* numbers(one)).toEqual([1, 2])
      yield* one.stop
      yield* one.start
      expect(yield* numbers(one)).toEqual([1, 2])
      yield* one.restoreReplication
      yield* one.restoreReplication
      yield* postgres.awaitReplicas
      expect(yield* numbers(one)).toEqual([1, 2, 3])
    })
  )

  it.scopedLive("a replica without replication is restored to the primary of a switch-over", () =>
    Effect.gen(function* () {
      const { one, postgres, primary, two } = yield* filledCluster()
      yield* two.delayReplay("1 hour")
      yield* execute(primary, "INSERT INTO t VALUES (2)")
      yield* two.cutReplication
      yield* postgres.switchOver(one)
      expect(yield* standbysOf(one)).toEqual(["primary"])
      yield* two.restoreReplication
      yield* two.delayReplay(0)
      yield* addNumber(postgres, one, 3)
      expect(yield* numbers(two)).toEqual([1, 2, 3])
      // without a primary to stream from, the standby is restored and does not wait
      yield* two.cutReplication
      yield* one.kill
      yield* two.restoreReplication
      yield* one.start
      yield* two.cutReplication
      yield* two.restoreReplication
      yield* addNumber(postgres, one, 4)
      expect(yield* standbysOf(one)).toEqual(["primary", "replica-2"])
    })
  )

  it.scopedLive("a primary, a stopped server and a delay that is not valid are refused", () =>
    Effect.gen(function* () {
      const { one, primary } = yield* cluster({ replicas: 1 })
      const operations = (server: Server) => [
        server.delayReplay("1 second"),
        server.pauseReplay,
        server.resumeReplay,
        server.cutReplication,
        server.restoreReplication
      ]
      const names = ["delayReplay", "pauseReplay", "resumeReplay", "cutReplication", "restoreReplication"]
      const onPrimary = yield* Effect.forEach(operations(primary), Effect.flip)
      expect(onPrimary.map((error) => error.operation)).toEqual(names)
      for (const error of onPrimary) expect(error.message).toContain("(primary): the server is a primary")
      yield* one.stop
      const onStopped = yield* Effect.forEach(operations(one), Effect.flip)
      expect(onStopped.map((error) => error.operation)).toEqual(names)
      for (const error of onStopped) expect(error.message).toContain("start it first")
      for (const delay of [-1, Number.NaN, Number.POSITIVE_INFINITY, "25 days", "soon", null]) {
        const error = yield* Effect.flip(one.delayReplay(delay as number))
        expect(error.reason).toContain("expected a duration from 0 to 24 days")
      }
    })
  )

  it.scopedLive("settings that the server cannot read are reported with the lines of its log", () =>
    Effect.gen(function* () {
      const { one, postgres } = yield* cluster({ replicas: 1 })
      fs.appendFileSync(path.join(postgres.directory, "replica-1", "postgresql.conf"), "nope=1\n")
      const error = yield* Effect.flip(one.delayReplay("1 second"))
      expect(error.message).toContain("delayReplay (replica-1): the server did not read its settings")
      expect(error.logs.join()).toContain('unrecognized configuration parameter "nope"')
    })
  )
})

describe("synchronous commits", () => {
  /** Starts a commit, and returns a fiber of it when the commit waits for a standby. */
  const waitingCommit = (server: Server, sql: string) =>
    Effect.gen(function* () {
      const fiber = yield* Effect.fork(execute(server, sql))
      const waits = query(
        server.url(),
        "SELECT count(*)::int AS n FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = $1",
        [sql]
      )
      yield* Effect.repeat(waits, { until: ([row]) => row?.n === 1 })
      return fiber
    })

  it.scopedLive("a commit waits for the number of standbys, also after a switch-over", () =>
    Effect.gen(function* () {
      const { one, postgres, primary, two } = yield* cluster({ synchronous: 1, databases: ["app"] })
      yield* execute(primary, "CREATE TABLE t AS SELECT 1 AS n")
      yield* two.stop
      yield* execute(primary, "INSERT INTO t VALUES (2)")
      yield* one.cutReplication
      const commit = yield* waitingCommit(primary, "INSERT INTO t VALUES (3)")
      // operations of the cluster do not wait
      yield* postgres.createDatabase("more")
      yield* one.restoreReplication
      yield* Fiber.join(commit)
      yield* postgres.switchOver(one)
      yield* primary.cutReplication
      const later = yield* waitingCommit(one, "INSERT INTO t VALUES (4)")
      yield* postgres.setSynchronous(0)
      yield* Fiber.join(later)
      // the stopped server has the setting as well
      yield* two.start
      yield* primary.restoreReplication
      yield* postgres.switchOver(two)
      yield* primary.cutReplication
      yield* one.cutReplication
      yield* execute(two, "INSERT INTO t VALUES (5)")
      yield* postgres.setSynchronous(2)
      const last = yield* waitingCommit(two, "INSERT INTO t VALUES (6)")
      yield* primary.restoreReplication
      expect(yield* Fiber.poll(last)).toMatchObject({ _tag: "None" })
      yield* one.restoreReplication
      yield* Fiber.join(last)
      expect(yield* numbers(two)).toEqual([1, 2, 3, 4, 5, 6])
    })
  )

  it.scopedLive("a number that is not from 0 to the number of replicas is refused", () =>
    Effect.gen(function* () {
      const { postgres } = yield* cluster({ replicas: 1 })
      for (const count of [-1, 2, 0.5, Number.NaN, "1"]) {
        const error = yield* Effect.flip(postgres.setSynchronous(count as number))
        expect(error.message).toContain("setSynchronous: the number is")
      }
      const error = yield* Effect.flip(make({ synchronous: 1 }))
      expect(error.message).toContain("configure: synchronous is 1: expected a whole number from 0 to the number of")
      const untyped = yield* Effect.flip(make({ synchronous: "1" as unknown as number, replicas: 1 }))
      expect(untyped.message).toContain('synchronous is "1"')
    })
  )
})
