/**
 * The opening of a database: its servers, its executor and its clients.
 */

import type * as Reactivity from "@effect/experimental/Reactivity"
import type { SqlError } from "@effect/sql/SqlError"
import * as Effect from "effect/Effect"
import * as ExecutionStrategy from "effect/ExecutionStrategy"
import * as LogLevel from "effect/LogLevel"
import * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import type { Client } from "../../Copy.js"
import * as DatabaseConfig from "../../DatabaseConfig.js"
import type { StartupError } from "../../DatabaseError.js"
import { Router } from "../../Router.js"
import { type ConnectReason, isNotYet } from "../../SqlState.js"
import type { Options } from "../../Transaction.js"
import { makeCredentialSource } from "../edge/credentials.js"
import { makeHostSource } from "../edge/hostSource.js"
import { reportBeforeInterrupt } from "../edge/reportBeforeInterrupt.js"
import { revealRedactedValues } from "../edge/revealRedacted.js"
import { recordCallSites } from "../observability/callSite.js"
import { makeLogger } from "../observability/logger.js"
import { Observers } from "../observability/observers.js"
import { makePoolMetrics } from "../observability/poolMetrics.js"
import { makeReaderMetrics, makeWriterMetrics } from "../observability/serverMetrics.js"
import { type MakeMetrics, Topology } from "../topology/topology.js"
import { rollback } from "../transaction/completion.js"
import { SandboxedLevel } from "../transaction/sandboxedLevel.js"
import { make as makeClient } from "./client.js"
import type { NamedClass } from "./databaseNames.js"
import { Executor } from "./executor.js"
import { makeLifecycleHooks } from "./lifecycleHooks.js"
import { exchangesOfSandbox, ObservedExecutor } from "./observedExecutor.js"
import { verifyPrepared, verifyServer } from "./verifyServer.js"

const makeMetrics: MakeMetrics = { pool: makePoolMetrics, reader: makeReaderMetrics, writer: makeWriterMetrics }

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
  /** The scope in which the servers are open. What is added to it ends before they are closed. */
  readonly scope: Scope.Scope
}

/** Makes the listening connection and the clients of an executor. */
const makeClients = <L extends Listening>(
  executor: Executor,
  observers: Observers,
  owner: NamedClass,
  scope: Scope.Scope,
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
      owner,
      scope
    }
  })

/** Opens a database in a scope. */
export const openDatabase = <L extends Listening>(
  owner: NamedClass,
  options: DatabaseConfig.DatabaseOptions,
  makeListen: MakeListen<L>
): Effect.Effect<OpenedDatabase<L>, StartupError, Reactivity.Reactivity | Scope.Scope> =>
  Effect.flatMap(DatabaseConfig.make(owner.name, options), (config) => openConfigured(owner, config, makeListen))

/** Opens a database with checked settings in a scope. */
export const openConfigured = <L extends Listening>(
  owner: NamedClass,
  config: DatabaseConfig.DatabaseConfig,
  makeListen: MakeListen<L>
): Effect.Effect<OpenedDatabase<L>, StartupError, Reactivity.Reactivity | Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* Effect.scope
    const runtime = yield* Effect.runtime()
    revealRedactedValues()
    const credentials = (server: DatabaseConfig.ServerConfig) => makeCredentialSource(config, server, runtime)
    const isEchoing = config.echo !== LogLevel.None
    // without `echo`, only leaks and servers that cannot prove their position are logged
    const observers = new Observers(yield* makeLogger(isEchoing ? LogLevel.None : LogLevel.Warning))
    if (isEchoing) observers.add(yield* makeLogger(config.echo))
    // closed in parallel, so that a server that does not answer delays the close by one timeout
    // only
    const sockets = yield* Scope.fork(scope, ExecutionStrategy.parallel)
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
        const started = verifyServer(writer.writes, config, mayCome, executor)
        yield* reportBeforeInterrupt(Effect.zipRight(started, verifyPrepared(writer.writes, executor, config)))
      }
      // one of the hosts of a cluster is no reader, and the others may come later
      yield* Effect.forEach(
        config.cluster === undefined ? topology.readers : [],
        (server) =>
          // reads go to other servers, so the start neither fails nor waits for this one
          Effect.catchAll(verifyServer(server.reads, config, isNotYet), (error) =>
            Effect.logWarning(`${error.message}; reads use other servers until this one answers`)
          ).pipe(Effect.forkScoped),
        { discard: true }
      )
      for (const server of topology.servers) for (const pool of server.pools) pool.warm()
    }
    return yield* Scope.extend(makeClients(executor, observers, owner, scope, makeListen), sockets)
  })

/**
 * Makes the clients of an opened database once more, for another program: its `Reactivity` is that of
 * the context, and its listening connection ends with the scope.
 */
export const renewClients = <L extends Listening>(
  { executor, observers, owner, scope }: OpenedDatabase<L>,
  makeListen: MakeListen<L>
): Effect.Effect<OpenedDatabase<L>, never, Reactivity.Reactivity | Scope.Scope> =>
  makeClients(executor, observers, owner, scope, makeListen)

/**
 * Opens a sandbox of a database. Each transaction in it is a savepoint of one transaction that is
 * never committed.
 */
export const openSandbox = <L extends Listening>(
  opened: OpenedDatabase<L>,
  makeListen: MakeListen<L>,
  options: Pick<Options, "isolation">
): Effect.Effect<OpenedDatabase<L>, never, Reactivity.Reactivity | Scope.Scope> =>
  Effect.gen(function* () {
    const exchanges = exchangesOfSandbox(opened.executor)
    const executor = yield* Effect.withFiberRuntime<Executor, never, Scope.Scope>((fiber) => {
      const root = new ObservedExecutor(opened.executor, exchanges).begin("writer", options, fiber, undefined)
      root.level.sandboxed ??= new SandboxedLevel("sandbox", undefined)
      return Effect.as(
        // this rollback is not one of the program
        Effect.addFinalizer(() => exchanges.unobserved(rollback(root, undefined))),
        opened.executor.observing(new ObservedExecutor(opened.executor, exchanges, root))
      )
    })
    return yield* makeClients(executor, opened.observers, opened.owner, opened.scope, makeListen)
  })
