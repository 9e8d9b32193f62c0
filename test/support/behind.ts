/** A new database behind a proxy of its own. */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { Database } from "effect-db"
import { Db, freshTable, Place } from "./databases.js"
import { makeProxy, type Proxy } from "./proxy.js"

/** Runs a test with a new database, open as `Db` through a proxy. */
export const behind = <A, E>(
  options: Partial<Database.Options>,
  body: (proxy: Proxy) => Effect.Effect<A, E, Db | Place | Scope.Scope>
) =>
  Effect.gen(function* () {
    const place = yield* freshTable
    const proxy = yield* makeProxy(place.writer)
    const database = Db.layer({ writer: proxy.url, ...options })
    return yield* Effect.provide(Effect.scoped(body(proxy)), Layer.merge(database, Layer.succeed(Place, place)))
  })
