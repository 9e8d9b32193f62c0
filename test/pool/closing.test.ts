/**
 * The close of a database whose server is frozen: its kernel accepts the sent bytes, and no process
 * answers or closes.
 */
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { EmbeddedPostgres } from "effect-db"
import { Db } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually } from "../support/eventually.js"

const Server = Layer.scoped(EmbeddedPostgres.EmbeddedPostgres, EmbeddedPostgres.make({ directory }))

/** The time for work under way, in ms. */
const shutdownTimeout = 1000

/** The time for a last message that is not answered, in ms. */
const goodbye = 1000

/** The time that this process may be late, in ms. */
const allowance = 500

const quick = Effect.flatMap(Db.writer, (sql) => sql`SELECT 1`)
const slow = Effect.flatMap(Db.writer, (sql) => sql`SELECT pg_sleep(1000)`)

const works = {
  nothing: Effect.void,
  "a statement": slow,
  "a statement of a transaction": Db.withTransaction(Effect.zipRight(quick, slow)),
  "a transaction": Db.withTransaction(Effect.zipRight(quick, Effect.never))
}

layer(Server, { timeout: "30 seconds", excludeTestServices: true })("a close on a frozen server", (it) => {
  for (const [name, work] of Object.entries(works)) {
    it.scoped(`a close takes at most shutdownTimeout and a second with ${name} under way and a listener`, () =>
      Effect.gen(function* () {
        const { primary } = yield* EmbeddedPostgres.EmbeddedPostgres
        const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
        const context = yield* Layer.buildWithScope(Db.layer({ writer: primary.url(), shutdownTimeout }), scope)
        yield* Effect.gen(function* () {
          const received = yield* Effect.makeLatch()
          yield* Effect.forkScoped(Stream.runForEach(Db.listen("here"), () => received.open))
          yield* Effect.repeat(Effect.zipRight(Db.notify("here"), Effect.timeoutOption(received.await, 10)), {
            until: (_) => _._tag === "Some"
          })
          yield* Effect.forkScoped(work)
          const busy = name === "nothing" ? 0 : 1
          yield* eventually(Db.status, ({ servers }) => servers[0]?.writes?.active === busy)
          yield* Effect.acquireRelease(primary.freeze, () => Effect.orDie(primary.thaw))
          const start = performance.now()
          yield* Scope.close(scope, Exit.void)
          assert.isBelow(performance.now() - start, shutdownTimeout + goodbye + allowance)
        }).pipe(Effect.scoped, Effect.provide(context))
      })
    )
  }
})
