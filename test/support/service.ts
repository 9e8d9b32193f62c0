import * as ConfigProvider from "effect/ConfigProvider"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { EmbeddedPostgres } from "effect-db/EmbeddedPostgres"
import * as Banner from "../../examples/service/banner.js"
import * as Databases from "../../examples/service/databases.js"
import * as Http from "../../examples/service/http.js"
import * as Listen from "../../examples/service/listen.js"
import * as Migrations from "../../examples/service/migrations.js"
import { directory } from "./directory.js"
import { query } from "./server.js"

export class Service extends Context.Tag("test/Service")<Service, { readonly url: string }>() {}

/** The example service, on a cluster of its own. */
export const service = Layer.scoped(
  Service,
  Effect.gen(function* () {
    yield* Migrations.run
    yield* Layer.build(Http.layer)
    yield* Listen.drained
    return { url: yield* Banner.baseUrl }
  })
).pipe(
  Layer.provide([Databases.embedded(), Listen.layer(0)]),
  Layer.provideMerge(Databases.cluster({ directory })),
  Layer.provide([Layer.setConfigProvider(ConfigProvider.fromMap(new Map())), Logger.remove(Logger.defaultLogger)])
)

export interface Answer {
  readonly status: number
  readonly body: unknown
  readonly headers: Headers
}

export const send = (
  method: string,
  path: string,
  body?: unknown,
  init: RequestInit = {}
): Effect.Effect<Answer, never, Service> =>
  Effect.flatMap(Service, ({ url }) =>
    Effect.promise(async (signal) => {
      const response = await fetch(url + path, {
        method,
        signal,
        ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } }),
        ...init
      })
      const text = await response.text()
      const isJson = response.headers.get("content-type")?.includes("json") === true
      return { status: response.status, body: isJson ? JSON.parse(text) : text, headers: response.headers }
    })
  )

export const rows = (database: "app" | "audit", sql: string, params: ReadonlyArray<unknown> = []) =>
  Effect.flatMap(EmbeddedPostgres, ({ primary }) => query(primary.url(database), sql, params))

export const todo = (id: string) => rows("app", "SELECT title, done FROM todo WHERE id = $1", [id])

export const events = (id: string) =>
  Effect.map(rows("audit", "SELECT what FROM event WHERE subject = $1 ORDER BY id", [id]), (all) =>
    all.map(({ what }) => what)
  )

/** Runs statements on a database, and others that undo them when the scope ends. */
export const during = (database: "app" | "audit", sql: string, undo: string) =>
  Effect.acquireRelease(rows(database, sql), () => rows(database, undo))
