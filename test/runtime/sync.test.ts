/**
 * Synchronous code, which blocks while a thread works for it. The databases in that thread are
 * opened once, and all calls share them.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { EmbeddedPostgres } from "effect-db"
import * as Program from "../service/program.js"
import { freshTable, Place, stored } from "../support/databases.js"
import { directory } from "../support/directory.js"
import { eventually } from "../support/eventually.js"
import { makeProxy } from "../support/proxy.js"
import { query } from "../support/server.js"

const place = Layer.scoped(Place, freshTable)

const others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

/** The state of each other session, with the statement that it runs or has run last. */
const seen = Effect.flatMap(Place, ({ writer }) =>
  Effect.map(query<{ query: string; state: string }>(writer, `SELECT query, state ${others}`), (rows) =>
    rows.map(({ query, state }) => `${state}: ${query}`)
  )
)

/** Waits until the other sessions are so; a server process needs time to end. */
const seenUntil = (isSo: (found: ReadonlyArray<string>) => boolean) => eventually(seen, isSo)

const noStatement = Effect.tap(
  seenUntil(({ length }) => length === 0),
  (found) => assert.deepStrictEqual(found, [])
)

const sleeping = "active: SELECT pg_sleep(600)"

/** Starts a program that executes commands, and reads their results. */
const startProgram = (url: Redacted.Redacted<string>) =>
  Effect.map(Program.startScript("test/support/sync.ts", [], { DATABASE_URL: Redacted.value(url) }), (program) => {
    let count = 0
    const begin = (command: string) =>
      Effect.as(program.type(`${command}\n`), program.line(new RegExp(`^${++count}: (.*)$`, "m")))
    return {
      ...program,
      /** Sends the command; the effect inside waits for its result. */
      begin,
      does: (command: string) => Effect.flatten(begin(command))
    }
  })

const started = Effect.flatMap(Place, ({ writer }) => startProgram(writer))

const opened = Effect.tap(started, ({ does }) => does("open"))

describe("synchronous code", () => {
  it.scopedLive(
    "synchronous code may open repeatedly; all calls use one connection, and only the last close closes it",
    () =>
      Effect.gen(function* () {
        const { does, ended, leave } = yield* started
        const closed = 'failed: DatabaseClosed: DatabaseClosed: database "app" is'
        assert.strictEqual(yield* does("session"), `${closed} not open yet - wait for \`open()\` before the first use`)
        yield* does("open")
        const session = yield* does("session")
        assert.match(session, /^\d+$/)
        yield* does("open")
        assert.strictEqual(yield* does("session"), session)
        yield* does("close")
        assert.strictEqual(yield* does("session"), session)
        yield* does("add milk eggs bread")
        assert.strictEqual((yield* seen).length, 1)
        yield* does("close")
        // the program and its thread are still there
        yield* noStatement
        assert.strictEqual(yield* does("session"), `${closed} closed - use it only while its layer is open`)
        yield* does("open")
        assert.notStrictEqual(yield* does("session"), session)
        yield* does("close")
        yield* noStatement
        yield* leave
        const { code, stderr } = yield* ended
        assert.deepStrictEqual({ code, stderr }, { code: 0, stderr: "" })
        assert.deepStrictEqual(yield* stored, ["bread", "eggs", "milk"])
      }).pipe(Effect.provide(place))
  )

  it.scopedLive("a failure in synchronous code keeps its type, and its call or its unit is rolled back", () =>
    Effect.gen(function* () {
      const { does } = yield* opened
      yield* does("add milk")
      const violation = /^failed: UniqueViolation: .*database "app" at \S+: duplicate key value violates/
      assert.match(yield* does("add milk"), violation)
      assert.strictEqual(yield* does("addAndFail eggs"), "failed: RangeError: no more than that")
      assert.match(yield* does("unit eggs bread milk"), violation)
      assert.strictEqual(yield* does("thrown eggs"), "failed: TypeError: of the caller itself")
      // a unit in another is a part of it
      assert.match(yield* does("nested eggs bread milk"), violation)
      // also if its failure is caught, because half of the unit must not be stored
      assert.match(yield* does("caught eggs bread"), /^failed: RolledBackAtCommit: .*its caller rolls it back/)
      assert.deepStrictEqual(yield* stored, ["milk"])
      assert.strictEqual(yield* does("nested eggs bread"), "undefined")
      assert.deepStrictEqual(yield* stored, ["bread", "eggs", "milk"])
    }).pipe(Effect.provide(place))
  )

  it.scopedLive("a call that would block for ever fails instead", () =>
    Effect.gen(function* () {
      const { does } = yield* opened
      assert.match(yield* does("blockItself"), /^failed: BlocksItself: the thread that answers would wait for itself/)
      assert.match(yield* does("unsendable"), /^failed: DataCloneError: .* could not be cloned/)
      assert.match(yield* does("unsendableArgument"), /^failed: DataCloneError: .* could not be cloned/)
      // an argument that makes a call of its own is served first
      assert.strictEqual(yield* does("askWhileAsking"), "undefined")
      assert.deepStrictEqual(yield* stored, [`by ${yield* does("session")}`])
      assert.strictEqual(yield* does("break"), "failed: Error: a bug")
      yield* noStatement
      assert.match(yield* does("unit milk"), /^failed: ThreadEnded: the thread that has the databases has ended/)
      assert.strictEqual(yield* does("close"), "undefined")
    }).pipe(Effect.provide(place))
  )

  it.scopedLive("Ctrl-C aborts the blocking call, which is rolled back, and nothing else", () =>
    Effect.gen(function* () {
      const { begin, does, signal } = yield* opened
      for (const command of ["addAndSleep milk", "sleepInUnit eggs milk"]) {
        const result = yield* begin(command)
        yield* seenUntil((found) => found.includes(sleeping))
        yield* signal("SIGINT")
        assert.strictEqual(yield* result, "failed: Interrupted: interrupted by Ctrl-C")
        yield* seenUntil((found) => !found.includes(sleeping))
        assert.deepStrictEqual(yield* stored, [])
      }
      yield* does("add bread")
      assert.deepStrictEqual(yield* stored, ["bread"])
    }).pipe(Effect.provide(place))
  )

  it.scopedLive("Ctrl-C ends a synchronous program with 130, when all is rolled back and closed", () =>
    Effect.gen(function* () {
      const { begin, ended, leave, signal } = yield* started
      const done = yield* begin("program milk")
      yield* seenUntil((found) => found.includes(sleeping))
      yield* signal("SIGINT")
      yield* done
      yield* noStatement
      yield* leave
      const { code, stderr } = yield* ended
      assert.deepStrictEqual({ code, stderr }, { code: 130, stderr: "" })
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(place))
  )

  it.scopedLive("a second Ctrl-C ends the program without a wait, and so does another signal", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const proxy = yield* makeProxy(writer)
      const frozen = yield* startProgram(proxy.url)
      yield* frozen.does("open")
      const held = yield* proxy.when(({ bytes }) => bytes.includes("pg_sleep"), "freeze")
      yield* frozen.begin("addAndSleep milk")
      yield* held
      // the server does not answer the cancel either
      const asked = yield* proxy.when(({ type }) => type === "cancel", "freeze")
      yield* frozen.signal("SIGINT")
      yield* asked
      yield* frozen.signal("SIGINT")
      assert.strictEqual((yield* frozen.ended).code, "SIGINT")

      const { begin, ended, signal } = yield* opened
      // the server has not noticed the end of the first program, whose transaction still holds "milk"
      yield* begin("addAndSleep eggs")
      yield* seenUntil((found) => found.includes(sleeping))
      yield* signal("SIGTERM")
      assert.strictEqual((yield* ended).code, "SIGTERM")
      assert.deepStrictEqual(yield* stored, [])
    }).pipe(Effect.provide(place))
  )

  it.scopedLive(
    "a server that is lost between two calls is reported by its address, and a call works when it is back",
    () =>
      Effect.gen(function* () {
        const { primary } = yield* EmbeddedPostgres.make({ directory, databases: ["app"] })
        const url = primary.url("app")
        yield* query(url, "CREATE TABLE item (name text UNIQUE)")
        const { does } = yield* startProgram(url)
        yield* does("open")
        yield* does("add milk")
        yield* primary.stop
        const gone = yield* does("add eggs")
        assert.match(gone, /^failed: (ConnectFailed|Disconnected): .*database "app" at \S+:/)
        assert.notInclude(gone, new URL(Redacted.value(url)).password)
        yield* primary.start
        assert.strictEqual(yield* does("add bread"), "undefined")
        assert.deepStrictEqual(yield* query(url, "SELECT name FROM item ORDER BY name"), [
          { name: "bread" },
          { name: "milk" }
        ])
        yield* does("close")
      })
  )
})
