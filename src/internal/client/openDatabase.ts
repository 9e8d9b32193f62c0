/**
 * The opening of a database: its servers, its executor and its clients.
 */

import type * as Reactivity from "@effect/experimental/Reactivity"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as LogLevel from "effect/LogLevel"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type { Client } from "../../Copy.js"
import * as DatabaseConfig from "../../DatabaseConfig.js"
import { ConnectFailed, type StartupError } from "../../DatabaseError.js"
import { Router } from "../../Router.js"
import { type ConnectReason, isNotYet } from "../../SqlState.js"
import * as clock from "../concurrency/clock.js"
import type { Connection } from "../connection/connection.js"
import { makeCredentialSource } from "../edge/credentials.js"
import { toDatabaseError } from "../edge/databaseError.js"
import { makeHostSource } from "../edge/hostSource.js"
import { reportBeforeInterrupt } from "../edge/reportBeforeInterrupt.js"
import { revealRedactedValues } from "../edge/revealRedacted.js"
import { recordCallSites } from "../observability/callSite.js"
import { makeLogger } from "../observability/logger.js"
import { Observers } from "../observability/observers.js"
import { makePoolMetrics } from "../observability/poolMetrics.js"
import { makeReaderMetrics } from "../observability/readerMetrics.js"
import type { Pool } from "../pool/pool.js"
import { proveRole } from "../topology/roleProof.js"
import { type MakeMetrics, Topology } from "../topology/topology.js"
import { rollback } from "../transaction/completion.js"
import { outcomeTableFailure } from "../transaction/markedSource.js"
import { refusesPrepare } from "../transaction/preparation.js"
import { make as makeClient } from "./client.js"
import { Executor } from "./executor.js"
import { makeLifecycleHooks } from "./lifecycleHooks.js"
import type { NamedClass } from "./uniqueNames.js"

const makeMetrics: MakeMetrics = { pool: makePoolMetrics, reader: makeReaderMetrics }

/** The part of the listening connection that the clients use. */
interface Listening {
  readonly payloads: (channel: string) => Stream.Stream<string, SqlError>
}

/**
 * Function that makes the listening connection. It is a parameter, because `listen` is a higher
 * layer.
 */
type MakeListen<L> = (executor: Executor) => Effect.Effect<L, never, Scope.Scope>

/** Opened database. */
interface OpenedDatabase<L> {
  readonly writer: Client
  readonly reader: Client
  readonly any: Client
  readonly executor: Executor
  readonly listen: L
  readonly observers: Observers
  readonly owner: NamedClass
}

/** Makes the listening connection and the clients of an executor. */
const makeClients = <L extends Listening>(
  executor: Executor,
  observers: Observers,
  owner: NamedClass,
  makeListen: MakeListen<L>
): Effect.Effect<OpenedDatabase<L>, never, Reactivity.Reactivity | Scope.Scope> =>
  Effect.gen(function* () {
    const listen = yield* makeListen(executor)
    const reader = yield* makeClient(executor, "reader", listen.payloads)
    return {
      writer: yield* makeClient(executor, "writer", listen.payloads),
      reader,
      // `any` is the reader, whose statements run in an open transaction if the consistency allows
      // it
      any: reader,
      executor,
      listen,
      observers,
      owner
    }
  })

/**
 * Checks that a server accepts a connection and has the required role. Retries until
 * `connectTimeout` while `waits` accepts the reason of the failure.
 */
const verify = (
  pool: Pool,
  config: DatabaseConfig.DatabaseConfig,
  waits: (reason: ConnectReason) => boolean,
  executor?: Executor | undefined
): Effect.Effect<void, StartupError> =>
  Effect.suspend(() => {
    const last = clock.now() + pool.options.pool.connectTimeout
    // later than the timeout of the connect, so that the failure of the connect, which has the
    // reason, arrives first
    const deadline = last + 500
    const attempt = Effect.async<void, ConnectFailed>((resume) => {
      let checkedOut: Connection | undefined
      const cancel = pool.checkout(deadline, [], (failure, connection) => {
        const location = { database: config.name, server: pool.options.server.name }
        if (connection !== undefined) {
          checkedOut = connection
          return proveRole(connection, deadline, (mismatch) => {
            const end = (fault: Pick<ConnectFailed, "reason" | "cause"> | undefined) => {
              pool.checkin(connection)
              resume(
                fault === undefined
                  ? Effect.void
                  : Effect.fail(new ConnectFailed({ ...location, reason: fault.reason, cause: fault.cause }))
              )
            }
            if (mismatch !== undefined || executor === undefined) return end(mismatch)
            const { markers, outcomes } = executor
            if (markers !== undefined) {
              const stop = clock.later(deadline - clock.now(), () => connection.destroy("invalid"))
              markers.prepare(connection, (state) => {
                stop()
                end(outcomeTableFailure(location, state))
              })
            } else if (outcomes !== undefined) outcomes.probe(connection, deadline, () => end(undefined))
            else end(undefined)
          })
        }
        const error = failure === undefined ? undefined : toDatabaseError(failure)
        resume(
          Effect.fail(
            error?._tag === "ConnectFailed"
              ? error
              : new ConnectFailed({
                  ...location,
                  reason: "unresponsive",
                  ...(error === undefined ? {} : { cause: error })
                })
          )
        )
      })
      return Effect.sync(() => (checkedOut === undefined ? cancel() : checkedOut.abort("cancelled")))
    })
    return Effect.retry(attempt, {
      schedule: Schedule.spaced("100 millis"),
      while: (error) => waits(error.reason) && clock.now() + 100 < last
    })
  })

/** Checks that the server of a database takes prepared transactions, if units may end in two phases. */
const verifyPrepared = (
  pool: Pool,
  { prepared }: Executor,
  { name, pool: { acquireTimeout } }: DatabaseConfig.DatabaseConfig
): Effect.Effect<void, StartupError> =>
  prepared === undefined
    ? Effect.void
    : Effect.async((resume) => {
        const deadline = clock.now() + acquireTimeout
        let checkedOut: Connection | undefined
        const cancel = pool.checkout(deadline, [], (_, connection) => {
          // the first unit that needs it reports the failure
          if (connection === undefined) return resume(Effect.void)
          checkedOut = connection
          const stop = clock.later(deadline - clock.now(), () => connection.destroy("invalid"))
          prepared.identify(connection, (result) => {
            stop()
            pool.checkin(connection)
            resume("refusal" in result ? Effect.fail(refusesPrepare(name, result.refusal.message)) : Effect.void)
          })
        })
        return Effect.sync(() => (checkedOut === undefined ? cancel() : checkedOut.abort("cancelled")))
      })

/** Opens a database in a scope. */
export const openDatabase = <L extends Listening>(
  owner: NamedClass,
  options: DatabaseConfig.DatabaseOptions,
  makeListen: MakeListen<L>
): Effect.Effect<OpenedDatabase<L>, StartupError, Reactivity.Reactivity | Scope.Scope> =>
  Effect.gen(function* () {
    const config = yield* DatabaseConfig.make(owner.name, options)
    const runtime = yield* Effect.runtime()
    revealRedactedValues()
    const credentials = (server: DatabaseConfig.ServerConfig) => makeCredentialSource(config, server, runtime)
    const isEchoing = config.echo !== LogLevel.None
    // without `echo`, only leaks and servers that cannot prove their position are logged
    const observers = new Observers(yield* makeLogger(isEchoing ? LogLevel.None : LogLevel.Warning))
    if (isEchoing) observers.add(yield* makeLogger(config.echo))
    // closed in parallel, so that a server that does not answer delays the close by one timeout
    // only
    const sockets = yield* Scope.fork(yield* Effect.scope, ExecutionStrategy.parallel)
    const topology = yield* Effect.acquireRelease(
      Effect.sync(
        () =>
          new Topology(
            config,
            credentials,
            makeLifecycleHooks(config, runtime),
            observers,
            makeMetrics,
            makeHostSource(config, runtime)
          )
      ),
      (topology) => Effect.async<void>((resume) => topology.close(config.shutdownTimeout, () => resume(Effect.void)))
    ).pipe(Scope.extend(sockets))
    const executor = new Executor(config, topology, observers, yield* Router, undefined)
    yield* Effect.addFinalizer(() =>
      Effect.async<void>((resume) => {
        if (executor.prepared === undefined) resume(Effect.void)
        else executor.prepared.stop(() => resume(Effect.void))
      })
    )
    if (executor.isWatched) yield* Effect.acquireRelease(Effect.sync(recordCallSites), Effect.sync)
    const { writer } = topology
    if (config.startup === "verify") {
      topology.discover()
      // a server that is started at the same time may not listen yet
      const mayCome = (reason: ConnectReason) => isNotYet(reason) || reason === "unreachable"
      if (writer.writes !== undefined) {
        const started = verify(writer.writes, config, mayCome, executor)
        yield* reportBeforeInterrupt(Effect.zipRight(started, verifyPrepared(writer.writes, executor, config)))
      }
      // one of the hosts of a cluster is no reader, and the others may come later
      yield* Effect.forEach(
        config.cluster === undefined ? topology.readers : [],
        (server) =>
          // reads go to other servers, so the start neither fails nor waits for this one
          Effect.catchAll(verify(server.reads, config, isNotYet), (error) =>
            Effect.logWarning(`${error.message}; reads use other servers until this one answers`)
          ).pipe(Effect.forkScoped),
        { discard: true }
      )
      for (const server of topology.servers) for (const pool of server.pools) pool.warm()
    }
    return yield* Scope.extend(makeClients(executor, observers, owner, makeListen), sockets)
  })

/**
 * Opens a sandbox of a database. Each transaction in it is a savepoint of one transaction that is
 * never committed.
 */
export const openSandbox = <L extends Listening>(
  opened: OpenedDatabase<L>,
  makeListen: MakeListen<L>
): Effect.Effect<OpenedDatabase<L>, never, Reactivity.Reactivity | Scope.Scope> =>
  Effect.gen(function* () {
    const { config, topology } = opened.executor
    const executor = yield* Effect.withFiberRuntime<Executor, never, Scope.Scope>((fiber) => {
      const root = opened.executor.begin("writer", {}, fiber, undefined)
      return Effect.as(
        Effect.addFinalizer(() => rollback(root, undefined)),
        new Executor(config, topology, opened.observers, () => 0, root)
      )
    })
    return yield* makeClients(executor, opened.observers, opened.owner, makeListen)
  })
