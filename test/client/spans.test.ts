/** Spans of statements and transactions, by OpenTelemetry's conventions for databases. */
import * as Statement from "@effect/sql/Statement"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as Tracer from "effect/Tracer"
import { TestDatabase, UnitOfWork } from "effect-db"
import { Audit, Db, fresh, freshTable, insert, Place } from "../support/databases.js"
import { query } from "../support/server.js"
import { waysToRun } from "../support/waysToRun.js"

interface Seen {
  readonly span: Tracer.Span
  readonly events: Array<readonly [name: string, attributes: Record<string, unknown> | undefined]>
  ended: boolean
}

/** Runs an effect with a tracer, and returns its spans in the order of their starts; asserts that each has ended. */
const traced = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const native = yield* Effect.tracer
    const all: Array<Seen> = []
    const tracer = Tracer.make({
      span: (...args) => {
        const span = native.span(...args)
        const seen: Seen = { span, events: [], ended: false }
        const { end, event } = span
        span.event = (name, time, attributes) => {
          seen.events.push([name, attributes])
          event.call(span, name, time, attributes)
        }
        span.end = (time, exit) => {
          assert.isFalse(seen.ended, "a span ends once")
          seen.ended = true
          end.call(span, time, exit)
        }
        all.push(seen)
        return span
      },
      context: native.context
    })
    yield* Effect.ignore(Effect.withTracer(self, tracer))
    for (const { ended, span } of all) assert.isTrue(ended, `${span.name} has not ended`)
    return all
  })

const named = (all: ReadonlyArray<Seen>, name: string) => all.filter(({ span }) => span.name === name)
const transactions = (all: ReadonlyArray<Seen>) => named(all, "sql.transaction")
const eventNames = ({ events }: Seen) => events.map(([name]) => name)
const parentOf = ({ span }: Seen) => Option.getOrUndefined(span.parent)
const attributesOf = ({ span }: Seen) => Object.fromEntries(span.attributes)

const endpoint = (url: Redacted.Redacted<string>) => {
  const { hostname, port } = new URL(Redacted.value(url))
  return { "server.address": hostname, "server.port": Number(port) }
}

const no = Effect.fail("no")

describe("the span of a transaction", () => {
  it.scopedLive("a transaction has a span around its statements, with label, server, BEGIN and COMMIT", () =>
    Effect.gen(function* () {
      const { name, writer } = yield* Place
      const all = yield* traced(Db.withTransaction(Effect.zipRight(insert("a"), insert("b")), { label: "adding" }))
      assert.deepStrictEqual(
        all.map(({ span }) => span.name),
        ["sql.transaction", "sql.execute", "sql.execute"]
      )
      const [transaction, ...statements] = all
      assert(transaction !== undefined)
      assert.strictEqual(transaction.span.kind, "client")
      assert.deepInclude(attributesOf(transaction), {
        "db.system.name": "postgresql",
        "db.namespace": name,
        "effect_db.transaction.label": "adding",
        "effect_db.transaction.attempt": 1,
        "effect_db.transaction.outcome": "committed",
        mine: "yes",
        ...endpoint(writer)
      })
      assert.deepStrictEqual(eventNames(transaction), ["db.transaction.begin", "db.transaction.commit"])
      assert.isNumber(transaction.events[0]?.[1]?.["effect_db.connection.wait"])
      for (const statement of statements) {
        assert.strictEqual(parentOf(statement), transaction.span)
        assert.deepInclude(attributesOf(statement), endpoint(writer))
      }
    }).pipe(Effect.provide(fresh({ spanAttributes: { mine: "yes" } })))
  )

  it.scopedLive("the span of a transaction tells a rollback, a refused COMMIT and an empty transaction apart", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      yield* sql`ALTER TABLE item ADD CONSTRAINT late UNIQUE (amount) DEFERRABLE INITIALLY DEFERRED`
      const [undone] = yield* traced(Db.withTransaction(Effect.zipRight(insert("a"), no)))
      assert.strictEqual(undone?.span.attributes.get("effect_db.transaction.outcome"), "rolledBack")
      assert.deepStrictEqual(undone && eventNames(undone), ["db.transaction.begin", "db.transaction.rollback"])
      const twice = sql`INSERT INTO item (name, amount) VALUES ('a', 1), ('b', 1)`
      const [refused] = yield* traced(Db.withTransaction(twice))
      assert.strictEqual(refused?.span.attributes.get("effect_db.transaction.outcome"), "failed")
      assert.strictEqual(refused?.span.attributes.get("error.type"), "CommitFailed")
      const [empty] = yield* traced(Db.withTransaction(Effect.void))
      assert.deepStrictEqual(empty && eventNames(empty), ["db.transaction.commit"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a nested transaction has a span inside that of the outer one", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const all = yield* traced(
        Db.withTransaction(
          Effect.zipRight(
            sql.withTransaction(insert("a")),
            Effect.ignore(Db.withTransaction(Effect.zipRight(insert("b"), no)))
          )
        )
      )
      const [outer, kept, undone] = transactions(all)
      assert(outer !== undefined && kept !== undefined && undone !== undefined)
      assert.deepStrictEqual([kept, undone].map(parentOf), [outer.span, outer.span])
      assert.deepStrictEqual(eventNames(kept), ["db.transaction.savepoint"])
      assert.deepStrictEqual(eventNames(undone), ["db.transaction.rollback"])
      const [first] = named(all, "sql.execute")
      assert.strictEqual(first && parentOf(first), kept.span)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a nested part of a unit of work has a span with its label on each database that it uses", () =>
    Effect.gen(function* () {
      const place = yield* freshTable
      yield* Effect.gen(function* () {
        const log = yield* Audit.writer
        const part = Effect.zipRight(insert("a"), log`INSERT INTO item (name) VALUES ('b')`)
        const work = Effect.gen(function* () {
          yield* UnitOfWork.nested(part, { work: { label: "kept" } })
          yield* Effect.ignore(UnitOfWork.nested(Effect.zipRight(insert("c"), no), { work: { label: "undone" } }))
        })
        const all = transactions(yield* traced(Effect.withSpan(UnitOfWork.run(work), "request")))
        // the outer transaction has the label of the first part in it
        const savepoints = all.filter((one) => !eventNames(one).includes("db.transaction.begin"))
        const labelled = (label: string) =>
          savepoints
            .filter(({ span }) => span.attributes.get("effect_db.transaction.label") === label)
            .map((one) => [
              one.span.attributes.get("db.namespace"),
              one.span.attributes.get("effect_db.transaction.outcome"),
              eventNames(one)
            ])
        assert.deepStrictEqual(labelled("kept"), [
          [(yield* Place).name, "committed", ["db.transaction.savepoint"]],
          [place.name, "committed", ["db.transaction.savepoint"]]
        ])
        assert.deepStrictEqual(labelled("undone"), [[(yield* Place).name, "rolledBack", ["db.transaction.rollback"]]])
      }).pipe(Effect.provide(Audit.layer({ writer: place.writer })))
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a retried transaction has a span for each attempt", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const sql = yield* Db.writer
      yield* insert("counter")
      const increment = Effect.suspend(() => {
        let runs = 0
        return Effect.gen(function* () {
          yield* sql`SELECT * FROM item`
          if (runs++ === 0) yield* query(writer, "UPDATE item SET amount = 10")
          yield* sql`UPDATE item SET amount = amount + 1`
        }).pipe((_) => ({ alone: _, unit: _ }), Effect.succeed)
      })
      const options = { isolation: "repeatable read", retry: true } as const
      const { alone } = yield* increment
      const { unit } = yield* increment
      const { retry, ...settings } = options
      for (const effect of [
        Db.withTransaction(alone, options),
        UnitOfWork.run(unit, { retry, transaction: settings })
      ]) {
        const tries = transactions(yield* traced(effect))
        assert.deepStrictEqual(
          tries.map(({ span }) => [
            span.attributes.get("effect_db.transaction.attempt"),
            span.attributes.get("effect_db.transaction.outcome")
          ]),
          [
            [1, "rolledBack"],
            [2, "committed"]
          ]
        )
      }
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a unit of work has a span for each database, inside the span around the unit", () =>
    Effect.gen(function* () {
      const place = yield* freshTable
      yield* Effect.gen(function* () {
        const log = yield* Audit.writer
        const work = Effect.zipRight(insert("a"), log`INSERT INTO item (name) VALUES ('b')`)
        const all = yield* traced(Effect.withSpan(UnitOfWork.run(work), "request"))
        const [request] = named(all, "request")
        const both = transactions(all)
        assert.deepStrictEqual(
          both.map((one) => [
            one.span.attributes.get("db.namespace"),
            one.span.attributes.get("effect_db.transaction.outcome"),
            parentOf(one)
          ]),
          [
            [(yield* Place).name, "committed", request?.span],
            [place.name, "committed", request?.span]
          ]
        )
      }).pipe(Effect.provide(Audit.layer({ writer: place.writer })))
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a stream, a transaction in a sandbox and a statement after its unit have spans that end", () =>
    Effect.gen(function* () {
      const sql = yield* Db.writer
      const streamed = yield* traced(Stream.runDrain(sql`SELECT generate_series(1, 300)`.stream))
      assert.deepStrictEqual(transactions(streamed).map(eventNames), [
        ["db.transaction.begin", "db.transaction.commit"]
      ])
      const inSandbox = yield* traced(Db.withTransaction(insert("a"))).pipe(Effect.provide(TestDatabase.layer(Db)))
      assert.lengthOf(transactions(inSandbox), 1)
      const late = yield* traced(
        Effect.flatMap(UnitOfWork.run(Effect.context<Db>()), (context) => Effect.provide(insert("late"), context))
      )
      assert.isAtLeast(late.length, 1)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a transaction has no span when no tracer is set or tracing is off", () =>
    Effect.gen(function* () {
      const off = yield* traced(Effect.withTracerEnabled(Db.withTransaction(insert("a")), false))
      assert.deepStrictEqual(off, [])
      yield* Db.withTransaction(
        Effect.map(Effect.currentParentSpan.pipe(Effect.option), (span) => assert.isTrue(Option.isNone(span)))
      )
    }).pipe(Effect.provide(fresh()))
  )
})

describe("the span of a statement", () => {
  it.scopedLive("the span of a reader's statement names the replica that has served it, however it runs", () =>
    Effect.gen(function* () {
      const { reader } = yield* Place
      const sql = yield* Db.reader
      const statement = sql`SELECT 1 AS n`
      for (const effect of waysToRun(sql, statement)) {
        const all = named(yield* traced(effect), "sql.execute")
        assert.lengthOf(all, 1)
        for (const span of all) assert.deepInclude(attributesOf(span), endpoint(reader))
      }
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("the span of a reader's statement that the primary has served names the primary", () =>
    Effect.gen(function* () {
      const { writer } = yield* Place
      const sql = yield* Db.reader
      const reads = Effect.zipRight(insert("a"), sql`SELECT 1`)
      for (const span of named(yield* traced(Db.withTransaction(reads)), "sql.execute")) {
        assert.deepInclude(attributesOf(span), endpoint(writer))
      }
      for (const span of named(yield* traced(UnitOfWork.run(reads)), "sql.execute")) {
        assert.deepInclude(attributesOf(span), endpoint(writer))
      }
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("the span of a statement that a transformer changes has the changed text, and names its server", () =>
    Effect.gen(function* () {
      const { reader } = yield* Place
      const sql = yield* Db.reader
      const all = yield* traced(
        Effect.map(
          Statement.withTransformer(sql<{ n: number }>`SELECT 1 AS n`, (_, other) =>
            Effect.succeed(other`SELECT 2 AS n`)
          ),
          (rows) => assert.deepStrictEqual(rows, [{ n: 2 }])
        )
      )
      const [span] = all
      assert(span !== undefined)
      assert.deepInclude(attributesOf(span), { "db.query.text": "SELECT 2 AS n", ...endpoint(reader) })
      assert.strictEqual(span.span.status._tag === "Ended" && span.span.status.exit._tag, "Success")
    }).pipe(Effect.provide(fresh()))
  )
})
