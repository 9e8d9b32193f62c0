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
import type * as Stream from "effect/Stream"
import { type TransactionError, toSqlError } from "./DatabaseError.js"
import { type CallSite, callSite } from "./internal/callSite.js"
import { currentCarrier, type Kind } from "./internal/carrier.js"
import type { Engine } from "./internal/engine.js"
import { noSession } from "./internal/noSession.js"
import { checkMessage } from "./internal/notify.js"
import { plan } from "./internal/propagation.js"
import { makeReserve, refusesScopes } from "./internal/reserve.js"
import { makeConstructor } from "./internal/statement.js"
import { makeRows, makeStatements } from "./internal/statements.js"
import { makeStream } from "./internal/streams.js"
import { independent, run } from "./internal/within.js"
import { nest, type Options } from "./Transaction.js"

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
  wrap: (error: TransactionError) => X,
  site: CallSite | undefined
): Effect.Effect<A, E | X, R> =>
  Effect.withFiberRuntime((fiber) => {
    const carrier = currentCarrier(fiber)
    const chosen = plan(engine, engine.transactionFor(fiber, carrier, kind, site), options)
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
        const { retry } = options
        const begin = () => engine.begin(kind, options, fiber, carrier, site)
        return retry === undefined || retry === false
          ? Effect.suspend(() => run(self, carrier, begin(), wrap))
          : engine.replay(fiber, begin, (transaction) => run(self, carrier, transaction, wrap), retry)
      }
    }
  })

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
    // in a sandbox there is nothing to reserve, but what is refused elsewhere is refused there
    const reserved = Effect.withFiberRuntime<typeof statements, SqlError>((fiber) => {
      const refusal = refusesScopes(engine, fiber.currentContext)
      return refusal === undefined ? acquirer : Effect.fail(toSqlError(refusal))
    })
    const makeStatement = (made: Statement.Compiler, transform: typeof transformRows) => {
      const { read, request } = makeRows(kind, transform)
      return makeConstructor(Statement.make(acquirer, made, attributes, transform), (fiber, sql, params, site) =>
        engine.run(fiber, kind, request(sql, params, site), read)
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
      withTransaction: <R, E, A>(self: Effect.Effect<A, E, R>) =>
        withTransaction(engine, kind, self, {}, toSqlError, callSite()),
      reactive: reactivity.stream,
      reactiveMailbox: reactivity.query,
      json: (value: unknown) => pgJson(value, undefined, undefined),
      listen,
      notify: (channel: string, payload: string) =>
        Effect.suspend(() => {
          const invalid = checkMessage(engine.database, channel, payload)
          if (invalid !== undefined) return Effect.fail(toSqlError(invalid))
          return Effect.asVoid(constructor`SELECT pg_notify(${channel}, ${payload})`.raw)
        })
    }
    const finish = (
      statement: Statement.Constructor,
      withoutTransforms: (client: PgClient.PgClient) => PgClient.PgClient
    ): PgClient.PgClient => {
      const client: PgClient.PgClient = Object.assign(statement, members, {
        reserve: reserved,
        // it refers to the client that is being made, so it is filled in below
        safe: undefined as unknown as PgClient.PgClient,
        withoutTransforms: () => withoutTransforms(client)
      })
      Object.assign(client, { safe: client })
      if (engine.sandbox !== undefined) return client
      // it is a property, so its place in the program is where it is read
      return Object.defineProperty(client, "reserve", {
        configurable: true,
        enumerable: true,
        get: () =>
          session.mode === "session"
            ? makeReserve(engine, kind, callSite())
            : Effect.suspend(() => Effect.fail(toSqlError(noSession(engine.database, "reserve"))))
      })
    }
    if (transformRows === undefined) return finish(constructor, (client) => client)
    const plain = finish(makeStatement(compiler.withoutTransform, undefined), (client) => client)
    return finish(constructor, () => plain)
  })
