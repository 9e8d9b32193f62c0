/** The SQL storages of `@effect/cluster`, unchanged, on `Db.layerSqlClient`. */
import * as EntityAddress from "@effect/cluster/EntityAddress"
import * as EntityId from "@effect/cluster/EntityId"
import * as EntityType from "@effect/cluster/EntityType"
import * as Envelope from "@effect/cluster/Envelope"
import * as Message from "@effect/cluster/Message"
import * as MessageStorage from "@effect/cluster/MessageStorage"
import * as Reply from "@effect/cluster/Reply"
import * as Runner from "@effect/cluster/Runner"
import * as RunnerAddress from "@effect/cluster/RunnerAddress"
import * as RunnerStorage from "@effect/cluster/RunnerStorage"
import * as ShardId from "@effect/cluster/ShardId"
import * as ShardingConfig from "@effect/cluster/ShardingConfig"
import * as Snowflake from "@effect/cluster/Snowflake"
import * as SqlMessageStorage from "@effect/cluster/SqlMessageStorage"
import * as SqlRunnerStorage from "@effect/cluster/SqlRunnerStorage"
import * as Headers from "@effect/platform/Headers"
import * as Rpc from "@effect/rpc/Rpc"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as PrimaryKey from "effect/PrimaryKey"
import * as Schema from "effect/Schema"
import { Database } from "effect-db"
import { Db, fresh, insert, Place, stored } from "../support/databases.js"
import { eventually, eventuallySucceeds } from "../support/eventually.js"
import { inThisDatabase, query } from "../support/server.js"

const config = ShardingConfig.layer({ shardsPerGroup: 8 })

const no = Effect.fail("no")

describe("SqlMessageStorage", () => {
  class Greet extends Schema.Class<Greet>("Greet")({ name: Schema.String, key: Schema.String }) {
    [PrimaryKey.symbol]() {
      return this.key
    }
  }
  const rpc = Rpc.make("Greet", { payload: Greet, success: Schema.String })
  type Call = typeof rpc

  const open = () =>
    Layer.mergeAll(SqlMessageStorage.layer.pipe(Layer.provide(Layer.merge(Db.layerSqlClient, config)))).pipe(
      Layer.provideMerge(fresh({ readers: [] })),
      Layer.provideMerge(Snowflake.layerGenerator)
    )

  const shard = ShardId.make("default", 1)
  const address = EntityAddress.EntityAddress.make({
    shardId: shard,
    entityType: Schema.decodeSync(EntityType.EntityType)("person"),
    entityId: EntityId.make("1")
  })

  /** Creates a request that is delivered once per key. */
  const message = (key: string, name = 'it\'s "me"') =>
    Effect.map(
      Snowflake.Generator,
      (generator) =>
        new Message.OutgoingRequest<Call>({
          envelope: Envelope.makeRequest<Call>({
            requestId: generator.unsafeNext(),
            address,
            tag: "Greet",
            payload: new Greet({ key, name }),
            headers: Headers.fromInput({ a: "b" }),
            traceId: "trace",
            spanId: "span",
            sampled: true
          }),
          context: Context.empty(),
          lastReceivedReply: Option.none(),
          rpc,
          respond: () => Effect.void
        })
    )

  const reply = ({ envelope: { requestId } }: Message.OutgoingRequest<Call>, text: string) =>
    Effect.map(
      Snowflake.Generator,
      (generator) =>
        new Reply.ReplyWithContext<Call>({
          reply: new Reply.WithExit({ requestId, id: generator.unsafeNext(), exit: Exit.succeed(text) }),
          context: Context.empty(),
          rpc
        })
    )

  const kept = Effect.flatMap(Place, ({ writer }) =>
    Effect.map(query<{ n: number }>(writer, "SELECT count(*)::int AS n FROM cluster_messages"), ([row]) => row?.n ?? 0)
  )

  it.scopedLive("a request is saved once per key, delivered once, and answered with its reply", () =>
    Effect.gen(function* () {
      const storage = yield* MessageStorage.MessageStorage
      const first = yield* message("key")
      assert.strictEqual((yield* storage.saveRequest(first))._tag, "Success")
      const again = yield* storage.saveRequest(yield* message("key"))
      assert(again._tag === "Duplicate")
      assert.strictEqual(again.originalId, first.envelope.requestId)
      assert.isTrue(Option.isNone(again.lastReceivedReply))
      const [incoming, ...rest] = yield* storage.unprocessedMessages([shard])
      assert.deepStrictEqual(rest, [])
      assert.strictEqual(
        incoming?.envelope._tag === "Request" && String(incoming.envelope.requestId),
        String(first.envelope.requestId)
      )
      // the request is assigned to a runner now
      assert.deepStrictEqual(yield* storage.unprocessedMessages([shard]), [])
      yield* storage.resetShards([shard])
      assert.lengthOf(yield* storage.unprocessedMessages([shard]), 1)
      yield* storage.saveReply(yield* reply(first, "hello"))
      const replies = yield* storage.repliesFor([first])
      assert.deepStrictEqual(
        replies.map((one) => one._tag === "WithExit" && one.exit),
        [Exit.succeed("hello")]
      )
      const answered = yield* storage.saveRequest(yield* message("key"))
      assert(answered._tag === "Duplicate")
      assert.isTrue(Option.isSome(answered.lastReceivedReply))
      yield* storage.resetShards([shard])
      assert.deepStrictEqual(yield* storage.unprocessedMessages([shard]), [])
      yield* storage.clearAddress(address)
      assert.strictEqual(yield* kept, 0)
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("only one of many equal requests at once is saved", () =>
    Effect.gen(function* () {
      const storage = yield* MessageStorage.MessageStorage
      const saved = yield* Effect.forEach(
        Array.from({ length: 30 }),
        () => Effect.flatMap(message("same"), storage.saveRequest),
        { concurrency: "unbounded" }
      )
      assert.lengthOf(
        saved.filter(({ _tag }) => _tag === "Success"),
        1
      )
      assert.strictEqual(yield* kept, 1)
    }).pipe(Effect.provide(open()))
  )

  it.scopedLive("a request joins the transaction around it: it is stored with its rows or not at all", () =>
    Effect.gen(function* () {
      const storage = yield* MessageStorage.MessageStorage
      const both = (key: string) => Effect.zipRight(insert(key), Effect.flatMap(message(key), storage.saveRequest))
      yield* Effect.exit(Db.withTransaction(Effect.zipRight(both("undone"), no)))
      yield* Db.withTransaction(both("kept"))
      assert.deepStrictEqual(yield* stored, ["kept"])
      assert.strictEqual(yield* kept, 1)
    }).pipe(Effect.provide(open()))
  )
})

describe("SqlRunnerStorage", () => {
  class Other extends Database.Service<Other>()("other") {}

  const storageOn = <Self>(db: Pick<Database.Members<Self>, "layerSqlClient">, disableAdvisory: boolean) =>
    SqlRunnerStorage.layer.pipe(
      Layer.provide(db.layerSqlClient),
      Layer.provide(ShardingConfig.layer({ shardsPerGroup: 8, shardLockDisableAdvisory: disableAdvisory }))
    )

  const addressOf = (port: number) => RunnerAddress.make("localhost", port)
  const [one, two] = [addressOf(1), addressOf(2)]
  const shards = (...ids: ReadonlyArray<number>) => ids.map((id) => ShardId.make("default", id))
  const names = (ids: ReadonlyArray<ShardId.ShardId>) => ids.map(String).sort()

  /** Uses the storages of two processes on one database. */
  const both = <A, E>(
    use: (
      first: RunnerStorage.RunnerStorage["Type"],
      second: RunnerStorage.RunnerStorage["Type"]
    ) => Effect.Effect<A, E, Db | Place>,
    disableAdvisory = false
  ) =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const other = Other.layer({ writer })
      const first = yield* Layer.build(storageOn(Db, disableAdvisory))
      const second = yield* Layer.build(Layer.fresh(storageOn(Other, disableAdvisory)).pipe(Layer.provide(other)))
      return yield* use(
        Context.get(first, RunnerStorage.RunnerStorage),
        Context.get(second, RunnerStorage.RunnerStorage)
      )
    }).pipe(Effect.scoped, Effect.provide(fresh({ readers: [] })))

  it.scopedLive("runners are registered once, and see each other with their health", () =>
    both((first, second) =>
      Effect.gen(function* () {
        const runner = (address: RunnerAddress.RunnerAddress) =>
          Runner.make({ address, groups: ["default"], weight: 1 })
        const id = yield* first.register(runner(one), true)
        assert.strictEqual(yield* first.register(runner(one), true), id)
        assert.notStrictEqual(yield* second.register(runner(two), true), id)
        yield* second.setRunnerHealth(one, false)
        const seen = yield* second.getRunners
        assert.deepStrictEqual(seen.map(([{ address }, healthy]) => [address.port, healthy]).sort(), [
          [1, false],
          [2, true]
        ])
        yield* first.unregister(one)
        assert.lengthOf(yield* second.getRunners, 1)
      })
    )
  )

  for (const disableAdvisory of [false, true]) {
    it.scopedLive(`a shard belongs to one runner, with ${disableAdvisory ? "locks in rows" : "advisory locks"}`, () =>
      both(
        (first, second) =>
          Effect.gen(function* () {
            assert.deepStrictEqual(names(yield* first.acquire(one, shards(1, 2, 3))), names(shards(1, 2, 3)))
            assert.deepStrictEqual(names(yield* second.acquire(two, shards(2, 3, 4))), names(shards(4)))
            assert.deepStrictEqual(names(yield* first.refresh(one, shards(1, 2, 3))), names(shards(1, 2, 3)))
            for (const shard of shards(2)) yield* first.release(one, shard)
            assert.include(names(yield* second.acquire(two, shards(2, 3))), names(shards(2))[0])
            yield* first.releaseAll(one)
            assert.includeMembers(names(yield* second.acquire(two, shards(1, 3))), names(shards(1, 3)))
          }),
        disableAdvisory
      )
    )
  }

  it.scopedLive("a runner whose session is lost acquires its shard again in a new session, and keeps it", () =>
    both((first, second) =>
      Effect.gen(function* () {
        const { writer } = yield* Place
        yield* first.acquire(one, shards(1))
        assert.deepStrictEqual(yield* second.acquire(two, shards(1)), [])
        yield* query(
          writer,
          `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid() AND ${inThisDatabase}`
        )
        const again = yield* first.acquire(one, shards(1)).pipe(
          eventuallySucceeds,
          eventually((got) => got.length > 0)
        )
        assert.lengthOf(yield* Effect.succeed(again).pipe(Effect.zipRight(first.refresh(one, shards(1)))), 1)
        assert.deepStrictEqual(yield* second.acquire(two, shards(1)).pipe(eventuallySucceeds), [])
      })
    )
  )
})
