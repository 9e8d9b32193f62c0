/**
 * A visitor of the example service freezes a replica, which thaws by itself or when the service
 * ends.
 */
import * as fs from "node:fs"
import { describe, expect, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/TestClock"
import { EmbeddedPostgres } from "effect-db"
import * as Playground from "../../examples/service/playground.js"
import { directory, emptyFolder } from "../support/directory.js"
import { query } from "../support/server.js"
import * as Program from "./program.js"

/** Starts a cluster, and creates the playground's actions on it, in a scope that the test can close. */
const given = Effect.gen(function* () {
  const postgres = yield* EmbeddedPostgres.make({ directory, replicas: 1, databases: ["app", "audit"] })
  const scope = yield* Scope.make()
  yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
  const context = yield* Layer.buildWithScope(Playground.embedded(postgres), scope)
  const acts = Option.getOrThrow(Context.get(context, Playground.Playground))
  const [replica = postgres.primary] = postgres.replicas
  return { acts, scope, replica: query(replica.url("app"), "SELECT 1 AS answer") }
})

describe("a frozen replica", () => {
  it.scoped("a frozen replica thaws by itself after half a minute", () =>
    Effect.gen(function* () {
      const { acts, replica } = yield* given
      expect(yield* acts.state).toEqual({ embedded: true, frozenFor: 0 })
      yield* acts.freeze
      expect(yield* acts.state).toEqual({ embedded: true, frozenFor: 30 })
      yield* TestClock.adjust("29 seconds")
      expect(yield* acts.state).toEqual({ embedded: true, frozenFor: 1 })
      yield* TestClock.adjust("1 second")
      expect(yield* replica).toEqual([{ answer: 1 }])
      expect(yield* acts.state).toEqual({ embedded: true, frozenFor: 0 })
    })
  )

  it.scoped("a frozen replica that is frozen again thaws half a minute later, and not by an earlier timer", () =>
    Effect.gen(function* () {
      const { acts, replica } = yield* given
      yield* acts.freeze
      yield* TestClock.adjust("20 seconds")
      yield* acts.freeze
      yield* TestClock.adjust("20 seconds")
      expect(yield* acts.state).toEqual({ embedded: true, frozenFor: 10 })
      yield* acts.thaw
      expect(yield* replica).toEqual([{ answer: 1 }])
      yield* acts.freeze
      yield* TestClock.adjust("15 seconds")
      expect(yield* acts.state).toEqual({ embedded: true, frozenFor: 15 })
    })
  )

  it.scoped("a frozen replica thaws when the service ends", () =>
    Effect.gen(function* () {
      const { acts, replica, scope } = yield* given
      yield* acts.freeze
      yield* Scope.close(scope, Exit.void)
      expect(yield* replica).toEqual([{ answer: 1 }])
    })
  )

  it.scopedLive(
    "a service with a frozen replica ends with code 0 by Ctrl-C, before a server would be killed, and leaves no folder",
    () =>
      Effect.gen(function* () {
        const folder = yield* emptyFolder
        const service = yield* Program.start([], { TMPDIR: folder })
        const url = yield* service.url
        const { status } = yield* Effect.promise(() => fetch(`${url}/servers/freeze`, { method: "POST" }))
        expect(status).toBe(200)
        yield* service.signal("SIGINT")
        const [took, ended] = yield* Effect.timed(service.ended)
        expect(ended).toMatchObject({ code: 0, stderr: "" })
        expect(Duration.toMillis(took)).toBeLessThan(9000)
        expect(fs.readdirSync(folder).filter((name) => name.startsWith("effect-db-"))).toEqual([])
      })
  )
})
