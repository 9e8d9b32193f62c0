/**
 * The functions that inject faults into a database whose sockets have them.
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { ConfigInvalid } from "../../DatabaseError.js"
import type { Faults, Injected, Refusal, Server as ServerCondition, Statement } from "../../Fault.js"
import { faultCodes } from "../../SqlState.js"
import type { Executor } from "../client/executor.js"
import * as clock from "../concurrency/clock.js"
import type { Server } from "../topology/server.js"
import type { FaultKind, FaultRule, FaultRules } from "./faultRules.js"
import { exhaustPools, pauseReplay, promote } from "./serverFaults.js"

type Where = ServerCondition | Statement

/** Returns the condition on statements, if a condition has one. */
const statementOf = (where: Where): Statement | undefined => ("statement" in where ? where : undefined)

const matcherOf =
  (statement: string | RegExp) =>
  (text: string): boolean =>
    typeof statement === "string"
      ? text.includes(statement)
      : new RegExp(statement, statement.flags.replace(/[gy]/g, "")).test(text)

/** The servers that a condition names, and the names of their hosts. */
interface Concerned {
  readonly servers: ReadonlyArray<Server>
  readonly hosts: ReadonlySet<string>
}

/**
 * Returns the servers that a condition names at this moment. A writer with several hosts is on one of
 * them, and each host of a cluster is also a reader.
 */
const concernedBy = (
  { database, topology }: Executor,
  { server }: ServerCondition
): Effect.Effect<Concerned, ConfigInvalid> => {
  const { readers, writer, writerSearch } = topology
  const found = writerSearch?.writer
  const writerHosts = found === undefined ? writer.server.hosts.map(({ name }) => name) : [found]
  const others = readers.filter(({ name }) => !writerHosts.includes(name))
  const named = readers.filter(({ name }) => name === server)
  const isOfWriter = writer.server.hosts.some(({ name }) => name === server)
  const hostsOf = (servers: ReadonlyArray<Server>) =>
    new Set(servers.flatMap(({ server }) => server.hosts.map(({ name }) => name)))
  const choose = (): Concerned => {
    switch (server) {
      case undefined:
        return { servers: [writer, ...others], hosts: hostsOf([writer, ...others]) }
      case "writer":
        return { servers: [writer], hosts: new Set(writerHosts) }
      case "reader":
        return { servers: others, hosts: hostsOf(others) }
      default:
        return { servers: named.length > 0 ? named : isOfWriter ? [writer] : [], hosts: new Set([server]) }
    }
  }
  const chosen = choose()
  if (chosen.servers.length > 0) return Effect.succeed(chosen)
  const names = hostsOf(topology.servers)
  const expected = `"writer", "reader" if there is one, or one of ${[...names].join(", ")}`
  return Effect.fail(new ConfigInvalid({ database, setting: "server", given: `"${server}"`, expected }))
}

const checkReadable = (executor: Executor, servers: ReadonlyArray<Server>): Effect.Effect<void, ConfigInvalid> => {
  const encrypted = servers.find(({ server }) => server.hosts.some(({ ssl }) => ssl !== false))
  if (encrypted === undefined) return Effect.void
  return Effect.fail(
    new ConfigInvalid({
      database: executor.database,
      setting: "faults",
      given: `a condition on statements, or a refused login, and TLS to ${encrypted.name}`,
      expected: "a server without TLS in tests (sslmode=disable), or a fault of all connections"
    })
  )
}

const checkNumber = (
  executor: Executor,
  setting: "skip" | "times",
  value: number
): Effect.Effect<void, ConfigInvalid> =>
  (Number.isInteger(value) || value === Number.POSITIVE_INFINITY) && value >= 0
    ? Effect.void
    : Effect.fail(
        new ConfigInvalid({
          database: executor.database,
          setting,
          given: String(value),
          expected: "a whole number from 0 on"
        })
      )

/** Waits until the pools know of the sockets that were closed: a socket reports that in a later turn. */
const closed = Effect.async<void>((resume) => {
  clock.immediate(() => resume(Effect.void))
})

/** Makes the functions for a database with these rules. */
export const makeFaults = (executor: Executor, rules: FaultRules): Faults => {
  const inject = (kind: FaultKind, where: Where): Effect.Effect<Injected, ConfigInvalid, Scope.Scope> =>
    Effect.gen(function* () {
      const { hosts, servers } = yield* concernedBy(executor, where)
      const statement = statementOf(where)
      const { skip = 0, times = 1 } = statement ?? {}
      yield* checkNumber(executor, "skip", skip)
      yield* checkNumber(executor, "times", times)
      if (statement !== undefined || kind._tag === "RefuseLogin") yield* checkReadable(executor, servers)
      const first = yield* Deferred.make<void>()
      let count = 0
      const rule: FaultRule = {
        kind,
        // without a condition, hosts that are discovered later are concerned, too
        concerns: (name) => where.server === undefined || hosts.has(name),
        matches: statement === undefined ? undefined : matcherOf(statement.statement),
        skip,
        left: times,
        onHappened: () => {
          count++
          Deferred.unsafeDone(first, Effect.void)
        }
      }
      yield* Effect.acquireRelease(
        Effect.sync(() => rules.add(rule)),
        () => Effect.sync(() => rules.remove(rule))
      )
      yield* closed
      return { happened: Deferred.await(first), count: Effect.sync(() => count) }
    })
  const onServers = <E>(where: ServerCondition, act: (server: Server) => Effect.Effect<void, E, Scope.Scope>) =>
    Effect.flatMap(concernedBy(executor, where), ({ servers }) => Effect.forEach(servers, act, { discard: true }))
  const refusal = ({ message = "refused by a test", sqlState }: Refusal) => ({ sqlState, message })
  return {
    disconnect: (where = {}) => inject({ _tag: "Disconnect" }, where),
    freeze: (where = {}) => inject({ _tag: "Freeze" }, where),
    delay: (by, where = {}) => inject({ _tag: "Delay", millis: Duration.toMillis(by) }, where),
    refuse: (where, error) => inject({ _tag: "Refuse", ...refusal(error) }, where),
    loseAnswer: (where) => inject({ _tag: "LoseAnswer" }, where),
    unreachable: (where = {}) => inject({ _tag: "Unreachable" }, where),
    refuseLogin: (
      where = {},
      error = { sqlState: faultCodes.wrongPassword, message: "password authentication failed" }
    ) => inject({ _tag: "RefuseLogin", ...refusal(error) }, where),
    exhaustPool: (where = {}) => onServers(where, (server) => exhaustPools(executor, server)),
    pauseReplay: (where = { server: "reader" }) => onServers(where, (server) => pauseReplay(executor, server)),
    promote: (server) =>
      Effect.gen(function* () {
        const { servers } = yield* concernedBy(executor, { server })
        const replica = servers.find(({ role }) => role === "reader")
        if (replica === undefined) {
          const given = `"${server}", which is the writer`
          const { database } = executor
          return yield* new ConfigInvalid({ database, setting: "server", given, expected: "the name of a replica" })
        }
        yield* inject({ _tag: "Unreachable" }, { server: "writer" })
        yield* promote(executor, replica)
      })
  }
}
