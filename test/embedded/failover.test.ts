/** Promotion, following and switch-over of an embedded cluster. */
import * as fs from "node:fs"
import * as path from "node:path"
import { describe, expect, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { EmbeddedPostgres } from "effect-db/EmbeddedPostgres"
import * as Control from "../../src/internal/embedded/pgControl.js"
import { fileBefore, parseHistory } from "../../src/internal/embedded/walHistory.js"
import { emptyFolder } from "../support/directory.js"
import {
  addNumber,
  cluster,
  execute,
  filledCluster,
  isAlive,
  isStandby,
  make,
  numbers,
  pidsOf,
  postmasterOf,
  segmentsOf
} from "../support/embedded.js"
import { until } from "../support/eventually.js"
import { query } from "../support/server.js"

type Server = EmbeddedPostgres.Server

/** Puts a program in the place of `cp` until the scope ends. */
const withCopyProgram = (script: string) =>
  Effect.gen(function* () {
    const folder = yield* emptyFolder
    fs.writeFileSync(path.join(folder, "cp"), `#!/bin/sh\n${script}\n`, { mode: 0o755 })
    const before = process.env.PATH
    yield* Effect.acquireRelease(
      Effect.sync(() => {
        process.env.PATH = `${folder}:${before}`
      }),
      () =>
        Effect.sync(() => {
          process.env.PATH = before
        })
    )
  })

describe("a server that follows another one", () => {
  it.scopedLive("a replica follows a promoted one and keeps its process", () =>
    Effect.gen(function* () {
      const { one, postgres, primary, two } = yield* filledCluster()
      const before = yield* postmasterOf(two, postgres.directory)
      yield* primary.kill
      yield* one.promote
      yield* two.follow(one)
      yield* addNumber(postgres, one, 2)
      expect(yield* numbers(two)).toEqual([1, 2])
      expect(yield* postmasterOf(two, postgres.directory)).toBe(before)
      // once more changes nothing
      yield* two.follow(one)
      expect(yield* isStandby(two)).toBe(true)
    })
  )

  for (const end of ["stopped", "killed", "running", "frozen"] as const) {
    it.scopedLive(`a former primary that is ${end} gets the data of the new one`, () =>
      Effect.gen(function* () {
        const { one, postgres, primary } = yield* filledCluster({ replicas: 1 })
        const pids = yield* pidsOf(primary, postgres.directory)
        yield* one.promote
        // commits that the new primary does not have
        yield* execute(primary, "INSERT INTO t SELECT generate_series(100, 110)")
        yield* execute(one, "INSERT INTO t VALUES (2)")
        if (end === "stopped") yield* primary.stop
        if (end === "killed") yield* primary.kill
        if (end === "frozen") yield* primary.freeze
        yield* primary.follow(one)
        yield* addNumber(postgres, one, 3)
        expect(yield* numbers(primary)).toEqual([1, 2, 3])
        expect(yield* isStandby(primary)).toBe(true)
        expect(fs.readdirSync(postgres.directory).filter((name) => /clone|old/.test(name))).toEqual([])
        expect(pids.filter(isAlive)).toEqual([])
        expect(segmentsOf(pids)).toEqual([])
        // and back
        yield* one.stop
        yield* primary.promote
        yield* one.follow(primary)
        yield* addNumber(postgres, primary, 4)
        expect(yield* numbers(one)).toEqual([1, 2, 3, 4])
      })
    )
  }

  it.scopedLive("a primary that was stopped before the promotion follows without a copy", () =>
    Effect.gen(function* () {
      const { one, postgres, primary } = yield* cluster({ replicas: 1 })
      yield* execute(primary, "CREATE TABLE t AS SELECT 1 AS n")
      const note = path.join(postgres.directory, "primary", "note")
      fs.writeFileSync(note, "")
      yield* primary.stop
      yield* one.promote
      yield* primary.follow(one)
      yield* addNumber(postgres, one, 2)
      expect(yield* numbers(primary)).toEqual([1, 2])
      expect(fs.existsSync(note)).toBe(true)
    })
  )

  it.scopedLive("a replica with commits that the new primary does not have gets its data", () =>
    Effect.gen(function* () {
      const { one, postgres, primary, two } = yield* filledCluster()
      yield* one.cutReplication
      yield* addNumber(postgres, primary, 100)
      expect(yield* numbers(two)).toEqual([1, 100])
      yield* primary.kill
      yield* one.promote
      yield* two.follow(one)
      yield* addNumber(postgres, one, 2)
      expect(yield* numbers(two)).toEqual([1, 2])
    })
  )

  it.scopedLive("a replica of one of two primaries on the same timeline gets the data of the other", () =>
    Effect.gen(function* () {
      const { one, postgres, primary, two } = yield* filledCluster({ replicas: 2 })
      yield* primary.kill
      yield* Effect.all([one.promote, two.promote], { concurrency: "unbounded" })
      const split = yield* Effect.flip(postgres.currentPrimary)
      expect(split.reason).toContain("replica-1 and replica-2 are both primaries")
      yield* primary.follow(one)
      yield* execute(one, "INSERT INTO t VALUES (100)")
      yield* execute(two, "INSERT INTO t VALUES (2)")
      yield* primary.follow(two)
      yield* one.follow(two)
      yield* addNumber(postgres, two, 3)
      expect(yield* numbers(primary)).toEqual([1, 2, 3])
      expect(yield* numbers(one)).toEqual([1, 2, 3])
      expect(yield* postgres.currentPrimary).toBe(two)
    })
  )

  it.scopedLive("a copy is complete although the primary changes its files meanwhile", () =>
    Effect.gen(function* () {
      const { one, postgres, primary } = yield* cluster({ replicas: 1 })
      yield* execute(primary, "CREATE TABLE t (n int)")
      yield* postgres.awaitReplicas
      yield* primary.kill
      yield* one.promote
      const started = yield* Deferred.make<void>()
      const writes = Effect.gen(function* () {
        for (let n = 0; n < 60; n++) {
          yield* execute(
            one,
            `INSERT INTO t VALUES (${n}); CREATE TABLE brief AS SELECT generate_series(1, 5000); DROP TABLE brief`
          )
          if (n === 5) yield* Deferred.succeed(started, undefined)
        }
      })
      const writing = yield* Effect.fork(writes)
      yield* Deferred.await(started)
      yield* primary.follow(one)
      yield* Fiber.join(writing)
      yield* postgres.awaitReplicas
      expect(yield* numbers(primary)).toEqual(Array.from({ length: 60 }, (_, n) => n))
    })
  )

  it.scopedLive("an interruption or a failure of the copy leaves the old data and nothing else", () =>
    Effect.gen(function* () {
      const directory = yield* emptyFolder
      // the name of a script is the name of its process, by which the release finds it
      const endless = withCopyProgram('/bin/cp "$@"; while :; do sleep 1; done')
      const following = yield* Effect.scoped(
        Effect.gen(function* () {
          const { one, postgres, primary } = yield* filledCluster({ replicas: 1, directory })
          yield* primary.kill
          yield* one.promote
          yield* execute(one, "INSERT INTO t VALUES (2)")
          const names = fs.readdirSync(postgres.directory)
          const clone = path.join(postgres.directory, "primary.clone")
          const isLeft = () => fs.readdirSync(postgres.directory).join() !== names.join()

          yield* Effect.scoped(
            Effect.gen(function* () {
              yield* endless
              const following = yield* Effect.fork(primary.follow(one))
              yield* until(() => fs.existsSync(path.join(clone, "base")))
              yield* Fiber.interrupt(following)
            })
          )
          expect(isLeft()).toBe(false)
          expect(yield* primary.isRunning).toBe(false)

          yield* Effect.scoped(
            Effect.gen(function* () {
              yield* withCopyProgram('echo "cp: error writing: No space left on device" >&2; exit 1')
              const full = yield* Effect.flip(primary.follow(one))
              expect(full.message).toContain("follow: the data folder could not be copied")
              expect(full.message).toContain("No space left on device")
            })
          )
          expect(isLeft()).toBe(false)

          yield* primary.start
          expect(yield* numbers(primary)).toEqual([1])
          yield* primary.follow(one)
          expect(yield* numbers(primary)).toEqual([1, 2])

          // a release during the copy
          yield* primary.kill
          yield* endless
          const following = yield* Effect.forkDaemon(primary.follow(one))
          yield* until(() => fs.existsSync(path.join(clone, "base")))
          return following
        })
      )
      expect((yield* Effect.flip(Fiber.join(following))).operation).toBe("follow")
      expect(fs.readdirSync(directory).filter((name) => name.startsWith("effect-db-"))).toEqual([])
    })
  )

  it.scopedLive("a server refuses to follow itself, a standby, a stopped server and one of another cluster", () =>
    Effect.gen(function* () {
      const { one, primary, two } = yield* cluster()
      const other = yield* make()
      const errors = [
        yield* Effect.flip(one.follow(one)),
        yield* Effect.flip(one.follow(two)),
        yield* Effect.flip(one.follow(other.primary)),
        yield* Effect.flip(one.follow(undefined as unknown as Server))
      ]
      yield* primary.stop
      errors.push(yield* Effect.flip(one.follow(primary)))
      yield* primary.start
      yield* one.freeze
      errors.push(yield* Effect.flip(one.follow(primary)))
      yield* one.thaw
      expect(errors.map((error) => [error.operation, error.server])).toEqual([
        ["follow", "replica-1"],
        ["follow", "replica-2"],
        ["follow", undefined],
        ["follow", undefined],
        ["follow", "primary"],
        ["follow", "replica-1"]
      ])
      expect(errors[0]?.reason).toContain("cannot follow itself")
      expect(errors[1]?.reason).toContain("promote it first")
      expect(errors[2]?.reason).toContain("not one of this cluster")
      expect(errors[4]?.reason).toContain("start it first")
      expect(errors[5]?.reason).toContain("thaw it first")
    })
  )
})

describe("a switch-over", () => {
  it.scopedLive("a switch-over keeps all commits, and the old primary follows without a copy", () =>
    Effect.gen(function* () {
      const { one, postgres, primary, two } = yield* cluster({ databases: ["app"] })
      const note = path.join(postgres.directory, "primary", "note")
      fs.writeFileSync(note, "")
      yield* execute(primary, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
      expect(yield* postgres.currentPrimary).toBe(primary)
      yield* postgres.switchOver(one)
      expect(yield* postgres.currentPrimary).toBe(one)
      expect(yield* numbers(one)).toHaveLength(1000)
      yield* addNumber(postgres, one, 1001)
      for (const server of [primary, two]) {
        expect(yield* isStandby(server)).toBe(true)
        expect(yield* numbers(server)).toHaveLength(1001)
      }
      expect(fs.existsSync(note)).toBe(true)
      // operations use the current primary
      yield* postgres.createDatabase("later")
      yield* postgres.dropDatabase("app")
      expect(yield* query(one.url(), "SELECT datname FROM pg_database WHERE datname IN ('app', 'later')")).toEqual([
        { datname: "later" }
      ])
      yield* postgres.switchOver(primary)
      yield* addNumber(postgres, primary, 1002)
      for (const server of [one, two]) expect(yield* numbers(server)).toHaveLength(1002)
    })
  )

  it.scopedLive("a stopped replica follows the new primary of a switch-over when it is started", () =>
    Effect.gen(function* () {
      const { one, postgres, primary, two } = yield* cluster()
      yield* execute(primary, "CREATE TABLE t AS SELECT 1 AS n")
      yield* two.stop
      yield* postgres.switchOver(one)
      yield* two.start
      yield* addNumber(postgres, one, 2)
      expect(yield* numbers(two)).toEqual([1, 2])
    })
  )

  it.scopedLive("two switch-overs at the same time run one after the other", () =>
    Effect.gen(function* () {
      const { one, postgres, primary, two } = yield* cluster()
      yield* execute(primary, "CREATE TABLE t AS SELECT 1 AS n")
      yield* Effect.all([postgres.switchOver(one), postgres.switchOver(two)], { concurrency: "unbounded" })
      expect(yield* postgres.currentPrimary).toBe(two)
      yield* addNumber(postgres, two, 2)
      for (const server of [primary, one]) expect(yield* numbers(server)).toEqual([1, 2])
    })
  )

  it.scopedLive("a switch-over to a server that cannot take over is refused, and the primary remains", () =>
    Effect.gen(function* () {
      const { one, postgres, primary, two } = yield* cluster()
      const other = yield* make()
      const errors = [
        yield* Effect.flip(postgres.switchOver(primary)),
        yield* Effect.flip(postgres.switchOver(other.primary))
      ]
      yield* one.stop
      errors.push(yield* Effect.flip(postgres.switchOver(one)))
      yield* one.start
      yield* one.cutReplication
      errors.push(yield* Effect.flip(postgres.switchOver(one)))
      yield* one.restoreReplication
      yield* two.freeze
      errors.push(yield* Effect.flip(postgres.switchOver(one)))
      yield* two.thaw
      expect(errors.map((error) => [error.operation, error.server])).toEqual([
        ["switchOver", "primary"],
        ["switchOver", undefined],
        ["switchOver", "replica-1"],
        ["switchOver", "replica-1"],
        ["switchOver", "replica-2"]
      ])
      expect(errors[0]?.reason).toContain("the primary already")
      expect(errors[2]?.reason).toContain("start it first")
      expect(errors[3]?.reason).toContain("does not follow primary")
      expect(errors[4]?.reason).toContain("thaw it first")
      yield* execute(primary, "CREATE TABLE t AS SELECT 1 AS n")
      yield* postgres.awaitReplicas
      yield* primary.stop
      const none = yield* Effect.flip(postgres.currentPrimary)
      expect(none.message).toBe("EmbeddedPostgres currentPrimary (primary): the server is not running: start it first")
      yield* one.promote
      expect((yield* Effect.flip(postgres.switchOver(one))).reason).toContain("the primary already")
    })
  )

  it.scopedLive("a switch-over without all commits fails, and the old primary runs again", () =>
    Effect.gen(function* () {
      const { one, postgres, primary } = yield* filledCluster({ replicas: 1, startTimeout: "20 seconds" })
      const [receiver] = yield* query<{ pid: number }>(one.url(), "SELECT pid FROM pg_stat_wal_receiver")
      const pid = receiver?.pid ?? Number.NaN
      process.kill(pid, "SIGSTOP")
      const error = yield* Effect.flip(postgres.switchOver(one))
      expect(error).toMatchObject({ operation: "switchOver", server: "replica-1" })
      // the wait before the stop fails if the primary has written a record by itself meanwhile
      expect(error.reason).toMatch(/has not received all WAL of primary|did not receive the WAL of primary/)
      expect(yield* postgres.currentPrimary).toBe(primary)
      process.kill(pid, "SIGCONT")
      yield* execute(primary, "INSERT INTO t VALUES (2)")
      yield* postgres.switchOver(one)
      expect(yield* numbers(one)).toEqual([1, 2])
    })
  )

  it.scopedLive("an interruption of a switch-over leaves a primary", () =>
    Effect.gen(function* () {
      const directory = yield* emptyFolder
      yield* Effect.scoped(
        Effect.gen(function* () {
          const { one, postgres, primary } = yield* cluster({ replicas: 1, directory })
          yield* execute(primary, "CREATE TABLE t AS SELECT 1 AS n")
          const switching = yield* Effect.fork(postgres.switchOver(one))
          yield* until(() =>
            Effect.runSync(primary.logs).some((line) => line.includes("received fast shutdown request"))
          )
          yield* Fiber.interrupt(switching)
          const current = yield* postgres.currentPrimary
          yield* execute(current, "INSERT INTO t VALUES (2)")
          yield* (current === primary ? one : primary).follow(current)
          yield* Effect.fork(postgres.switchOver(one))
        })
      )
      expect(fs.readdirSync(directory)).toEqual([])
    })
  )

  it.scopedLive("the wait for replicas leaves out those of another primary", () =>
    Effect.gen(function* () {
      const { one, postgres, two } = yield* filledCluster()
      yield* one.promote
      expect(yield* postgres.currentPrimary).toBe(one)
      yield* execute(one, "INSERT INTO t VALUES (2)")
      // `two` follows the former primary, and never has this commit
      yield* postgres.awaitReplicas
      yield* two.follow(one)
      yield* postgres.awaitReplicas
      expect(yield* numbers(two)).toEqual([1, 2])
      yield* postgres.terminateBackends()
    })
  )
})

describe("the files of a server", () => {
  it("a position before the end of a timeline is in a file of that timeline", () => {
    const history = parseHistory("1\t0/3000148\tno recovery target specified\n\n2\t1/0\tx\n")
    expect(history).toEqual([
      { timeline: 1, end: 0x3000148n },
      { timeline: 2, end: 0x1_0000_0000n }
    ])
    expect(fileBefore(0x3000148n, history, 3)).toEqual({ name: "000000010000000000000003", length: 0x148 })
    expect(fileBefore(0x3000149n, history, 3)).toEqual({ name: "000000020000000000000003", length: 0x149 })
    expect(fileBefore(0x1_0000_0000n, history, 3)).toEqual({ name: "0000000200000000000000FF", length: 0x100_0000 })
    expect(fileBefore(0x1_0000_0001n, history, 0x1f)).toEqual({ name: "0000001F0000000100000000", length: 1 })
  })

  it.scopedLive("the shutdown checkpoint of a primary is read as the server reports it", () =>
    Effect.gen(function* () {
      const { one, postgres, primary } = yield* cluster({ replicas: 1 })
      const data = (server: Server) => path.join(postgres.directory, server.name)
      expect(yield* Control.shutdownCheckpoint(data(primary))).toBeUndefined()
      yield* one.stop
      expect(yield* Control.shutdownCheckpoint(data(one))).toBeUndefined()
      yield* primary.stop
      const checkpoint = yield* Control.shutdownCheckpoint(data(primary))
      yield* primary.start
      const [row] = yield* query(
        primary.url(),
        "SELECT (checkpoint_lsn - '0/0')::text AS n FROM pg_control_checkpoint()"
      )
      expect(checkpoint).toBe(BigInt(String(row?.n)))
      yield* primary.kill
      expect(yield* Control.shutdownCheckpoint(data(primary))).toBeUndefined()
    })
  )
})
