/** Rotation of credentials: connections with old credentials that are in use, idle or not open yet. */
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { DatabaseConfig, type Observation } from "effect-db"
import { describe } from "vitest"
import type { Connection } from "../../src/internal/connection/connection.js"
import { connectToHost } from "../../src/internal/connection/connectToHost.js"
import { Connections } from "../../src/internal/pool/connections.js"
import { Secret } from "../../src/internal/protocol/secret.js"
import { eventually } from "../support/eventually.js"
import { fill, given, holder, open, session, users } from "../support/providedCredentials.js"
import { makeProxy } from "../support/proxy.js"
import { anonymous, type Role } from "../support/roles.js"
import { freshDatabase } from "../support/server.js"

const closed = (facts: ReadonlyArray<Observation.Observation>) =>
  facts.flatMap((fact) => (fact._tag === "Closed" ? [fact.reason] : []))

describe("credentials from a provider", () => {
  it.scopedLive("if credentials alternate, no connection in use is cut, and in the end all have the new ones", () =>
    Effect.gen(function* () {
      const { a, admin, b, name, provider, writer } = yield* given
      const { facts, figures, heard, sql } = yield* open({
        writer,
        credentials: provider.credentials,
        maxConnections: 40,
        minConnections: 4,
        // connections with old credentials retire within 2.5 % of that
        maxLifetime: "4 seconds",
        idleTimeout: Duration.infinity
      })
      yield* fill(sql, 4)
      for (const [i, role] of [b, a, b].entries()) {
        const busy = yield* holder(sql)
        yield* role.rotate
        provider.use(role)
        // a rotation is detected by the next connect
        yield* fill(sql, (yield* figures).total)
        yield* heard("CredentialsRotated", i + 1)
        yield* eventually(users(admin, name), (all) => all.filter((user) => user !== role.name).length === 1)
        const [before, after] = yield* busy
        assert.notStrictEqual(before.user, role.name)
        assert.deepStrictEqual(after, before)
        yield* eventually(users(admin, name), (all) => all.length >= 4 && all.every((user) => user === role.name))
      }
      assert.deepStrictEqual(
        facts.flatMap((fact) => (fact._tag === "CredentialsRotated" ? [fact.generation] : [])),
        [1, 2, 3]
      )
      assert.isEmpty(facts.filter((fact) => fact._tag === "ConnectFailed" || fact._tag === "Lost"))
      assert.isAtLeast(closed(facts).filter((reason) => reason === "oldCredentials").length, 3 * 4)
    })
  )

  it.scopedLive("a connection that was in use at the rotation and is idle afterwards is replaced as well", () =>
    Effect.gen(function* () {
      const { admin, b, name, provider, writer } = yield* given
      const { sql } = yield* open({
        writer,
        credentials: provider.credentials,
        // so that the sweep of idle connections, each 30 s, does not replace it
        maxLifetime: "2 minutes",
        idleTimeout: Duration.infinity
      })
      const busy = yield* Effect.all([holder(sql), holder(sql)])
      provider.use(b)
      yield* Effect.flatten(holder(sql))
      yield* Effect.all(busy)
      yield* eventually(users(admin, name), (all) => all.join() === b.name)
    })
  )

  it.scopedLive("connections with old credentials retire one by one, spread over 30 s", () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const { pool, session, writer: server } = Either.getOrThrow(DatabaseConfig.make("app", { writer }))
      const stock = new Connections(pool, { setConnections: () => {} })
      yield* Effect.addFinalizer(() => Effect.sync(() => stock.stop()))
      const make = (generation: number) =>
        Effect.acquireRelease(
          Effect.async<Connection>((resume) => {
            const owner = { lost: () => {}, closed: () => {} }
            const { password, username } = server
            const secret = password && new Secret(Redacted.value(password))
            const credentials = { username, password: secret, generation }
            connectToHost(
              server,
              session,
              { timeout: 5000, readOnly: false, owner, credentials },
              (error, connection) => resume(connection === undefined ? Effect.die(error) : Effect.succeed(connection))
            )
          }),
          (connection) => Effect.sync(() => connection.destroy("shutdown"))
        )
      const old = yield* Effect.forEach([0, 0, 0, 0, 1, 1, 1, 1], make, { concurrency: 4 })
      const current = yield* make(2)
      for (const connection of [...old, current]) stock.add(connection)
      const aged = current.retireAt
      const before = performance.now()
      stock.retireOldCredentials(2)
      const after = performance.now()
      const ends = old.map((connection) => connection.retireAt).sort((x, y) => x - y)
      assert.strictEqual(new Set(ends).size, old.length)
      for (const end of ends) {
        assert.isAtLeast(end, before)
        assert.isBelow(end, after + 30_000)
      }
      // eight random times in 30 s are within one second with a probability of 4 in 10 billion
      assert.isAbove((ends.at(-1) ?? 0) - (ends[0] ?? 0), 1000)
      for (const [i, end] of ends.entries()) {
        assert.strictEqual(old.filter((connection) => stock.retirementReason(connection, end) !== undefined).length, i)
      }
      assert.deepStrictEqual([current.retireAt, current.retireAs], [aged, "aged"])
      // a further rotation extends no deadline
      stock.retireOldCredentials(3)
      assert.deepStrictEqual(
        old.map((connection) => connection.retireAt).sort((x, y) => x - y),
        ends
      )
      assert.isBelow(current.retireAt, after + 30_000)
    })
  )

  it.scopedLive("a connection whose connect was under way during a rotation is closed, and serves no caller", () =>
    Effect.gen(function* () {
      const { a, admin, b, name, provider } = yield* given
      const proxy = yield* makeProxy(admin)
      const { facts, figures, heard, sql } = yield* open({
        writer: anonymous(proxy.url),
        credentials: provider.credentials,
        // no room for a third connect in place of one that is late
        maxConnections: 2
      })
      const loggedIn = yield* proxy.when(({ from, type }) => from === "server" && type === "Z", "freeze")
      const waiting = yield* Effect.fork(session(sql))
      yield* loggedIn
      provider.use(b)
      // another caller requests the new credentials, and that connection serves both callers
      const second = yield* Effect.fork(session(sql))
      yield* heard("Connected")
      assert.strictEqual((yield* Fiber.join(waiting)).user, b.name)
      assert.strictEqual((yield* Fiber.join(second)).user, b.name)
      assert.isEmpty(closed(facts))
      yield* proxy.thaw
      yield* heard("Closed")
      assert.deepStrictEqual(closed(facts), ["oldCredentials"])
      // the server lists a session for a moment after its socket is closed
      yield* eventually(users(admin, name), (all) => all.join() === b.name)
      assert.deepStrictEqual(yield* figures, { active: 0, connecting: 0, idle: 1, total: 1, waiting: 0 })
      assert.strictEqual(provider.asked, 2)
      assert.isAbove(a.name.length, 0)
    })
  )

  it.scopedLive("credentials that arrive after those of a later request are outdated, and are not tried", () =>
    Effect.gen(function* () {
      const { a, b, writer } = yield* given
      const questions: Array<Deferred.Deferred<Role>> = []
      const credentials = Effect.flatMap(Deferred.make<Role>(), (question) => {
        questions.push(question)
        return Effect.map(Deferred.await(question), (role) => role.credentials)
      })
      const asked = (times: number) =>
        eventually(
          Effect.sync(() => questions.length),
          (n) => n === times
        )
      const answer = (question: number, role: Role) =>
        Deferred.succeed(questions[question - 1] ?? assert.fail("not asked"), role)
      const { facts, heard, sql } = yield* open({ writer, credentials })
      const holders = yield* Effect.fork(Effect.all([holder(sql), holder(sql)], { concurrency: 2 }))
      yield* asked(2)
      yield* answer(2, b)
      yield* heard("Connected")
      yield* answer(1, a)
      yield* asked(3)
      yield* answer(3, b)
      const seen = yield* Effect.flatMap(Fiber.join(holders), Effect.all)
      assert.deepStrictEqual(
        seen.map(([{ user }]) => user),
        [b.name, b.name]
      )
      assert.isEmpty(facts.filter((fact) => fact._tag === "CredentialsRotated" || fact._tag === "Closed"))

      // the same if the later request has returned the current credentials
      const busy = yield* Effect.fork(
        Effect.all([holder(sql), holder(sql), holder(sql), holder(sql)], { concurrency: 4 })
      )
      yield* asked(5)
      yield* answer(5, b)
      yield* heard("Connected", 3)
      yield* answer(4, a)
      yield* asked(6)
      yield* answer(6, b)
      yield* Effect.flatMap(Fiber.join(busy), Effect.all)
      assert.isEmpty(facts.filter((fact) => fact._tag === "CredentialsRotated" || fact._tag === "Closed"))
      assert.lengthOf(questions, 6)
    })
  )

  it.scopedLive("credentials of the same version are no rotation, even if the user is another one", () =>
    Effect.gen(function* () {
      const { a, b, provider, writer } = yield* given
      const { facts, sql } = yield* open({
        writer,
        credentials: Effect.map(provider.credentials, (credentials) => ({ ...credentials, version: 7 }))
      })
      const first = yield* holder(sql)
      provider.use(b)
      const second = yield* holder(sql)
      const seen = yield* Effect.all([first, second])
      assert.deepStrictEqual(
        seen.map(([{ user }]) => user),
        [a.name, b.name]
      )
      assert.deepStrictEqual(
        facts.map((fact) => fact._tag).filter((tag) => tag === "CredentialsRotated"),
        []
      )
    })
  )
})
