/**
 * The hooks `onConnect`, `onCheckout` and `resetOnReturn` of the settings: effects that run on one
 * physical connection of a pool.
 */
import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Runtime from "effect/Runtime"
import * as Stream from "effect/Stream"
import type { DatabaseConfig, SessionEffect } from "../../DatabaseConfig.js"
import type { Connection } from "../connection/connection.js"
import type { ConnectionTask, ConnectionTasks } from "../pool/lifecycleTasks.js"
import { toError } from "../protocol/thrownValue.js"
import { makeCompiler } from "./compiler.js"
import { makeRun } from "./reserve.js"
import { makeSqlConnection } from "./sqlConnection.js"

const dirty = new Error("the hook left the session busy or in a transaction")

/** Makes a client that runs all its statements on one connection. */
const makeClient = (
  config: DatabaseConfig,
  connection: Connection,
  hasEnded: () => boolean
): Effect.Effect<SqlClient.SqlClient> => {
  const run = makeRun({ database: config.name, server: connection.server.name }, connection, hasEnded)
  const statements = makeSqlConnection("writer", run, (request) =>
    Stream.unwrap(
      Effect.map(
        run(request, (exchange): ReadonlyArray<object> => exchange.result.rows),
        Stream.fromIterable
      )
    )
  )
  return SqlClient.make({
    acquirer: Effect.succeed(statements),
    compiler: makeCompiler(config.options.transformQueryNames, config.options.transformJson),
    spanAttributes: []
  }).pipe(Effect.provide(Reactivity.layer))
}

const fromEffect = (config: DatabaseConfig, runtime: Runtime.Runtime<never>, effect: SessionEffect): ConnectionTask => {
  const fork = Runtime.runFork(
    // a database may be opened inside of a transaction of another one, and the hooks must not run
    // in that transaction
    Runtime.updateContext(runtime, Context.omit(SqlClient.TransactionConnection))
  )
  return (connection, done) => {
    // a fiber that a hook has forked may outlive the hook, when another caller may use the session
    let hasEnded = false
    const fiber = fork(
      Effect.flatMap(
        makeClient(config, connection, () => hasEnded),
        (client) => Effect.provideService(effect, SqlClient.SqlClient, client)
      )
    )
    fiber.addObserver((exit) => {
      hasEnded = true
      if (Exit.isFailure(exit)) return done(toError(Cause.squash(exit.cause)))
      done(connection.busy || connection.status !== "I" ? dirty : undefined)
    })
    return () => {
      hasEnded = true
      fiber.unsafeInterruptAsFork(fiber.id())
    }
  }
}

const discardAll: ConnectionTask = (connection, done) => {
  const request = { text: "DISCARD ALL", values: [], rows: "object", prepare: false, simple: false } as const
  connection.run([], request, [], (failure) => done(failure?.error))
  return () => {}
}

/** Returns a task that runs two tasks in order. A failure of the first skips the second. */
const inTurn =
  (first: ConnectionTask, second: ConnectionTask): ConnectionTask =>
  (connection, done) => {
    let stop = () => {}
    stop = first(connection, (failure) => {
      if (failure !== undefined) return done(failure)
      stop = second(connection, done)
    })
    return () => stop()
  }

export const makeLifecycleHooks = (config: DatabaseConfig, runtime: Runtime.Runtime<never>): ConnectionTasks => {
  const { onCheckout, onConnect, resetOnReturn } = config.options
  const task = (effect: SessionEffect | undefined) =>
    effect === undefined ? undefined : fromEffect(config, runtime, effect)
  const setUp = task(onConnect)
  return {
    onConnect: setUp,
    onCheckout: task(onCheckout),
    onReturn:
      resetOnReturn === "discardAll"
        ? // DISCARD ALL also undoes the work of `onConnect`, so `onConnect` runs again
          setUp === undefined
          ? discardAll
          : inTurn(discardAll, setUp)
        : task(resetOnReturn === "none" ? undefined : resetOnReturn)
  }
}
