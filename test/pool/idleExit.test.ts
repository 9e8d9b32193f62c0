/** A process whose only connections are idle ones. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Redacted from "effect/Redacted"
import { DatabaseConfig } from "effect-db"
import { startChild } from "../support/child.js"
import { eventually } from "../support/eventually.js"
import { freshDatabase, query } from "../support/server.js"

const said = ["at once", "later", "first", "last"]

it.scopedLive(
  "a script that leaves its database open ends by itself with idleExit, and not before its work is done",
  () =>
    Effect.gen(function* () {
      const { writer } = yield* freshDatabase
      const child = yield* startChild("idleExit", ["true"], writer)
      const { code, lines, stderr } = yield* child.ended
      assert.deepStrictEqual({ code, lines, stderr }, { code: 0, lines: said, stderr: "" })
    })
)

it.scopedLive("a script whose connections are streams other than sockets ends by itself with idleExit", () =>
  Effect.gen(function* () {
    const { writer } = yield* freshDatabase
    const child = yield* startChild("idleExit", ["true", "tunnel"], writer)
    const { code, lines, stderr } = yield* child.ended
    assert.deepStrictEqual({ code, lines, stderr }, { code: 0, lines: said, stderr: "" })
  })
)

it.scopedLive("a script that leaves its database open stays alive without idleExit", () =>
  Effect.gen(function* () {
    const { name, writer } = yield* freshDatabase
    const child = yield* startChild("idleExit", ["false"], writer)
    const idle = query<{ n: number }>(
      writer,
      "SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = $1 AND state = 'idle' AND query LIKE '%COMMIT%'",
      [name]
    )
    yield* eventually(idle, (rows) => rows[0]?.n === 1)
    // without work, the script is alive for as long as another takes from its start to its end
    const other = yield* startChild("idleExit", ["true"], writer)
    assert.strictEqual((yield* other.ended).code, 0)
    assert.strictEqual((yield* idle)[0]?.n, 1)
    yield* child.signal("SIGKILL")
    const { code, lines } = yield* child.ended
    assert.deepStrictEqual({ code, lines }, { code: "SIGKILL", lines: said })
  })
)

it("idleExit may be undefined, true or false, and a text is refused", () => {
  const make = (idleExit: unknown) =>
    DatabaseConfig.make("app", {
      writer: Redacted.make("postgres://me@localhost/app"),
      // a program without types may pass anything
      idleExit: idleExit as boolean
    })
  for (const idleExit of [undefined, true, false]) assert.isTrue(Either.isRight(make(idleExit)))
  assert.include(String(Either.flip(make("yes"))), "idleExit")
})
