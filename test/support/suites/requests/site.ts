/** An HTTP server that a test sends requests to, and its databases. */
import { HttpServer } from "@effect/platform"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import { DatabaseRuntime } from "effect-db"
import { audit } from "../../audit.js"
import { Audit, Db, freshTable } from "../../databases.js"
import { makeProxy, type Proxy } from "../../proxy.js"
import { query } from "../../server.js"
import { type Handlers, makeHandlers, type Runtime } from "./plain.js"

export class Site extends Context.Tag("test/Site")<
  Site,
  {
    /** The port on which it listens. */
    readonly port: number
    /** Runs an effect on the open databases of the handlers. */
    readonly run: <A, E>(self: Effect.Effect<A, E, Db | Audit>) => Effect.Effect<A, E>
    /** The URL of the primary, without a proxy. */
    readonly writer: Redacted.Redacted<string>
    /** The proxy through which the handlers reach the primary. */
    readonly front: Proxy
    /** Another proxy in front of the primary. */
    readonly other: Proxy
  }
>() {}

/** The port of a framework's server, and the function that closes the server. */
export interface Listening {
  readonly port: number
  readonly close: () => Promise<void>
}

/**
 * The parts of a server, by the prefix of their paths, with the settings of their units of work.
 */
export const parts: ReadonlyArray<{
  readonly prefix: `/${string}`
  readonly checkFirst: boolean
  /** Sets the tenant of a request, from its header, around the unit of work or inside of it. */
  readonly tenants: "around" | "inside"
}> = [
  { prefix: "/checked", checkFirst: true, tenants: "around" },
  { prefix: "/unchecked", checkFirst: false, tenants: "inside" }
]

/** The header with the tenant of a request. A request without it has no tenant. */
export const tenantHeader = "x-tenant"

/** Serves `POST <prefix>/<name>` for each of the parts and each handler. */
export type Serve = (runtime: Runtime, handlers: Handlers) => Promise<Listening>

const place = Effect.gen(function* () {
  const { reader, writer } = yield* freshTable
  yield* query(writer, "CREATE TABLE late (n int REFERENCES item DEFERRABLE INITIALLY DEFERRED)")
  for (const schema of ["tenant", "other"]) {
    yield* query(writer, `CREATE SCHEMA ${schema}`)
    yield* query(writer, `CREATE TABLE ${schema}.item (LIKE item INCLUDING ALL)`)
  }
  const front = yield* makeProxy(writer)
  const other = yield* makeProxy(writer)
  return { writer, front, other, layer: Layer.merge(Db.layer({ writer: front.url, readers: [reader] }), audit) }
})

/** Creates a site with a framework's server. */
export const plainSite = (serve: Serve): Layer.Layer<Site> =>
  Layer.scoped(
    Site,
    Effect.gen(function* () {
      const { layer, ...rest } = yield* place
      const runtime = DatabaseRuntime.make({ db: Db, audit: Audit }, layer)
      yield* Effect.acquireRelease(
        Effect.promise(() => runtime.open()),
        () => Effect.promise(() => runtime.close())
      )
      const { port } = yield* Effect.acquireRelease(
        Effect.promise(() => serve(runtime, makeHandlers(runtime))),
        ({ close }) => Effect.promise(close)
      )
      return {
        ...rest,
        port,
        run: (self) => Effect.tryPromise({ try: () => runtime.runPromise(self), catch: unsafeE })
      }
    })
  )

// `runPromise` rejects only with the failure or the defect of the effect
const unsafeE = (error: unknown) => error as never

/** Creates a site with the Effect server. */
export const effectSite = (serve: Layer.Layer<HttpServer.HttpServer, unknown, Db | Audit>): Layer.Layer<Site> =>
  Layer.scoped(
    Site,
    Effect.gen(function* () {
      const { layer, ...rest } = yield* place
      const context = yield* Layer.build(Layer.provideMerge(serve, layer))
      const { address } = Context.get(context, HttpServer.HttpServer)
      const port = address._tag === "TcpAddress" ? address.port : 0
      return { ...rest, port, run: (self) => Effect.provide(self, context) }
    })
  ).pipe(Layer.orDie)
