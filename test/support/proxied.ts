/** Databases that are open as `Db` through a proxy of their own. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import type { Database } from "effect-db"
import { Db, namesIn } from "./databases.js"
import { makeProxy } from "./proxy.js"
import { freshDatabase, query } from "./server.js"

/** Opens a database through a proxy. */
export const throughProxy = (url: Redacted.Redacted<string>, options: Partial<Database.Options> = {}) =>
  Effect.gen(function* () {
    const proxy = yield* makeProxy(url)
    const context = yield* Layer.build(Db.layer({ writer: proxy.url, ...options }))
    return { proxy, context: Context.pick(Db)(context), writer: url }
  })

/** Creates a table `item` with names in a database, and opens the database through a proxy. */
export const itemsThroughProxy = (url: Redacted.Redacted<string>, options: Partial<Database.Options> = {}) =>
  Effect.gen(function* () {
    yield* query(url, "CREATE TABLE item (name text)")
    return { ...(yield* throughProxy(url, options)), stored: namesIn(url) }
  })

/** Creates a database with a table `item`, and opens it through a proxy. */
export const freshItemsThroughProxy = (options: Partial<Database.Options> = {}) =>
  Effect.flatMap(freshDatabase, ({ writer }) => itemsThroughProxy(writer, options))
