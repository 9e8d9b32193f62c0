/**
 * The `PgClient` a user holds: at each statement it finds its transaction, or a server.
 *
 * @since 0.1.0
 */
import * as Reactivity from "@effect/experimental/Reactivity"
import * as SqlClient from "@effect/sql/SqlClient"
import type { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { ConfigInvalid, type TransactionError, toSqlError } from "./DatabaseError.js"
import { currentCarrier, type Kind } from "./internal/carrier.js"
import type { Engine } from "./internal/engine.js"
import { makeReserve } from "./internal/reserve.js"
import { makeConstructor } from "./internal/statement.js"
import { makeRows, makeStatements, makeStream } from "./internal/statements.js"
import { independent, nest, type Options, plan, run } from "./Transaction.js"

// the constructor of @effect/sql-pg is private to it; the compiler knows the kind
const pgJson = Statement.custom<Statement.Custom<"PgJson", unknown>>("PgJson")

/**
 * Runs an effect in a transaction of an engine. `wrap` says how the transaction's own failures are to look.
 *
 * @internal
 */
export const withTransaction = <A, E, R, X>(
  engine: Engine,
  kind: Kind,
  self: Effect.Effect<A, E, R>,
  options: Options,
  wrap: (error: TransactionError) => X
): Effect.Effect<A, E | X, R> =>
  Effect.withFiberRuntime((fiber) => {
    const carrier = currentCarrier(fiber)
    const chosen = plan(engine, engine.transactionFor(fiber, carrier, kind), options)
    switch (chosen._tag) {
      case "join":
        return self
      case "outside":
        return independent(self, engine)
      case "refuse":
        return Effect.fail(wrap(chosen.error))
      case "nest": {
        const inner: Options = kind === "reader" ? { ...options, access: "read only" } : options
        return run(self, carrier, nest(engine, chosen.outer, kind, chosen.outer, inner), wrap)
      }
      case "begin": {
        const once = Effect.suspend(() => run(self, carrier, engine.begin(kind, options, fiber, carrier), wrap))
        return options.retry === undefined || options.retry === false ? once : engine.replay(fiber, once, options.retry)
      }
    }
  })

/** Why there is no session to be had. To hear nothing, or to hold a lock that is somebody else's, would be worse. */
const noSession = (engine: Engine, what: string): SqlError =>
  toSqlError(
    new ConfigInvalid({
      database: engine.database,
      setting: "mode",
      given: '"transactionPooler"',
      expected: `"session" for ${what}: open a database by the server's own address for that`
    })
  )

/**
 * A client of one kind.
 *
 * @internal
 */
export const make = (
  engine: Engine,
  kind: Kind,
  listen: (channel: string) => Stream.Stream<string, SqlError>
): Effect.Effect<PgClient.PgClient, never, Reactivity.Reactivity> =>
  Effect.map(Reactivity.Reactivity, (reactivity) => {
    const { options, session, writer } = engine.config
    const hasSessions = session.mode === "session"
    const compiler = PgClient.makeCompiler(options.transformQueryNames, options.transformJson)
    const transformRows =
      options.transformResultNames === undefined
        ? undefined
        : Statement.defaultTransforms(options.transformResultNames, options.transformJson).array
    const statements = makeStatements(
      kind,
      (request, read) => Effect.withFiberRuntime((fiber) => engine.run(fiber, kind, request, read)),
      makeStream(engine, kind)
    )
    const attributes: ReadonlyArray<readonly [string, unknown]> = [
      ...Object.entries(options.spanAttributes ?? {}),
      ["db.system.name", "postgresql"],
      ["db.namespace", writer.database],
      ["server.address", writer.host],
      ["server.port", writer.port]
    ]
    const acquirer = Effect.succeed(statements)
    const makeStatement = (made: Statement.Compiler, transform: typeof transformRows) => {
      const { read, request } = makeRows(kind, transform)
      return makeConstructor(Statement.make(acquirer, made, attributes, transform), (fiber, sql, params) =>
        engine.run(fiber, kind, request(sql, params), read)
      )
    }
    const constructor = makeStatement(compiler, transformRows)
    const members = {
      [SqlClient.TypeId]: SqlClient.TypeId as SqlClient.TypeId,
      [PgClient.TypeId]: PgClient.TypeId,
      config: {
        host: writer.host,
        port: writer.port,
        database: writer.database,
        username: writer.username,
        password: writer.password,
        ssl: writer.ssl
      },
      withTransaction: <R, E, A>(self: Effect.Effect<A, E, R>) => withTransaction(engine, kind, self, {}, toSqlError),
      reserve:
        engine.sandbox !== undefined
          ? acquirer
          : hasSessions
            ? makeReserve(engine, kind)
            : Effect.suspend(() => noSession(engine, "reserve")),
      reactive: reactivity.stream,
      reactiveMailbox: reactivity.query,
      json: (value: unknown) => pgJson(value, undefined, undefined),
      listen: hasSessions ? listen : () => Stream.suspend(() => Stream.fail(noSession(engine, "listen"))),
      notify: (channel: string, payload: string) =>
        Effect.asVoid(constructor`SELECT pg_notify(${channel}, ${payload})`.raw)
    }
    const finish = (
      statement: Statement.Constructor,
      withoutTransforms: (client: PgClient.PgClient) => PgClient.PgClient
    ): PgClient.PgClient => {
      const client: PgClient.PgClient = Object.assign(statement, members, {
        // it refers to the client that is being made, so it is filled in below
        safe: undefined as unknown as PgClient.PgClient,
        withoutTransforms: () => withoutTransforms(client)
      })
      return Object.assign(client, { safe: client })
    }
    if (transformRows === undefined) return finish(constructor, (client) => client)
    const plain = finish(makeStatement(compiler.withoutTransform, undefined), (client) => client)
    return finish(constructor, () => plain)
  })
