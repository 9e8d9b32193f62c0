/** COPY in both directions, and COPY as a plain statement, which is refused. */
import { inspect } from "node:util"
import { assert, describe, expect, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { Consistency, type Copy, DatabaseError, DatabaseRuntime, Tenant, TestDatabase } from "effect-db"
import { behind } from "../support/behind.js"
import { behindBouncer, hasBouncer, makeBouncer } from "../support/bouncer.js"
import { active, Db, fresh, freshTable, insert, look, Place, pid, soon, stored } from "../support/databases.js"
import { failure } from "../support/failures.js"
import { sends } from "../support/proxy.js"
import { randoms } from "../support/random.js"
import { at, query, terminateBackends } from "../support/server.js"

const writer = Db.writer

const copy = <E, R>(rows: Stream.Stream<Copy.Row, E, R>, options?: Copy.Options, columns = ["name", "amount"]) =>
  Effect.flatMap(writer, (sql) => sql.copyFrom("item", columns, rows, options))

const given = (...rows: ReadonlyArray<Copy.Row>) => Stream.fromIterable(rows)

const copyFailure = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.map(failure(self), (error) =>
    error instanceof DatabaseError.CopyFailed ? error : assert.fail(`not CopyFailed: ${error}`)
  )

const textOf = <E, R>(blocks: Stream.Stream<Uint8Array, E, R>) => Stream.mkString(Stream.decodeText(blocks))

/** Opens a database with one connection, so that it shows if the connection is kept. */
const one = () => fresh({ maxConnections: 1, readers: [] })

/** Rows without an end. */
const endless = Stream.map(
  Stream.iterate(1, (n) => n + 1),
  (n) => [`n${n}`, n]
)

describe("copyFrom", () => {
  it.scopedLive("copyFrom stores arrays, objects and ready text, and returns the number of stored rows", () =>
    Effect.gen(function* () {
      expect(yield* copy(given(["a", 1], { amount: 2, name: "b", more: "?" }, "c\t3\nd", Buffer.from("\t4\n")))).toBe(4)
      expect(yield* look("SELECT name, amount FROM item ORDER BY name")).toEqual([
        { name: "a", amount: 1 },
        { name: "b", amount: 2 },
        { name: "c", amount: 3 },
        { name: "d", amount: 4 }
      ])
      expect(yield* copy(Stream.empty)).toBe(0)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom stores each value as a parameter would be stored, in every format", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const columns = {
        t: "text",
        i: "int8",
        f: "float8",
        b: "bool",
        d: "timestamptz",
        a: "text[]",
        j: "jsonb",
        y: "bytea"
      }
      const table = (name: string) =>
        look(
          `CREATE TABLE ${name} (n int, ${Object.entries(columns)
            .map((column) => column.join(" "))
            .join(", ")})`
        )
      const texts = [
        "",
        " a ",
        "\\N",
        "\\.",
        "NULL",
        "a\tb\\c\nd\re\"f'g,h;i|\\",
        "\b\f\v",
        "\\x41",
        "日本\u{1f600}",
        '"',
        '""',
        ","
      ]
      const rows = [
        ...texts.map((t) => ({ t, a: [t, "b", null], j: sql.json({ t }), y: Buffer.from(t) })),
        { i: 9_007_199_254_740_993n, f: Number.NaN, b: true, d: new Date(1e12), j: sql.json([1]) },
        { i: -1, f: Number.NEGATIVE_INFINITY, b: false, t: Redacted.make("secret"), y: new Uint8Array([0, 92, 255]) }
      ].map((row, n) => ({ n, ...Object.fromEntries(Object.keys(columns).map((key) => [key, null])), ...row }))
      yield* table("expected")
      yield* sql`INSERT INTO expected ${sql.insert(rows)}`
      const formats: ReadonlyArray<Copy.Options> = [
        {},
        { delimiter: "|", null: "nothing" },
        { format: "csv" },
        { format: "csv", delimiter: ";", null: "NULL", quote: "'", escape: "\\" },
        { format: "csv", header: true },
        { header: "match" }
      ]
      for (const [i, options] of formats.entries()) {
        yield* table(`copied_${i}`)
        const names = ["n", ...Object.keys(columns)]
        expect(yield* sql.copyFrom(`copied_${i}`, names, Stream.fromIterable(rows), options)).toBe(rows.length)
        const differing = `(TABLE copied_${i} EXCEPT TABLE expected) UNION ALL (TABLE expected EXCEPT TABLE copied_${i})`
        expect(yield* look(differing), JSON.stringify(options)).toEqual([])
      }
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom and copyTo return any text unchanged, in every format", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      yield* look("CREATE TABLE text (n int, a text, b text)")
      const random = randoms(11)
      const below = (n: number) => Math.floor(random() * n)
      const letters = ["\\", "\t", "\n", "\r", '"', "'", ",", ".", "N", ";", "a", "\u00e9", " "]
      const text = () =>
        below(6) === 0 ? null : Array.from({ length: below(6) }, () => letters[below(letters.length)]).join("")
      const rows = Array.from({ length: 2000 }, (_, n) => [n, text(), text()])
      for (const options of [{}, { format: "csv" }, { format: "csv", delimiter: ";", escape: "\\" }] as const) {
        yield* sql.copyFrom("text", ["n", "a", "b"], Stream.fromIterable(rows), options)
        expect(yield* sql`SELECT * FROM text ORDER BY n`.values).toEqual(rows)
        const written = yield* textOf(sql.copyTo(sql`TABLE text`, options))
        yield* sql`TRUNCATE text`
        yield* sql.copyFrom("text", [], given(written), options)
        expect(yield* sql`SELECT * FROM text ORDER BY n`.values).toEqual(rows)
        yield* sql`TRUNCATE text`
      }
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom takes ready data in another encoding, with a header and cut anywhere", () =>
    Effect.gen(function* () {
      const bytes = Buffer.from("name;amount\n'Zo\u00eb';1\n'b''c';-\n", "latin1")
      const pieces = Stream.fromIterable(Array.from(bytes, (_, i) => bytes.subarray(i, i + 1)))
      const options = {
        format: "csv",
        delimiter: ";",
        quote: "'",
        null: "-",
        header: "match",
        encoding: "LATIN1"
      } as const
      expect(yield* copy(pieces, options)).toBe(2)
      expect(yield* look("SELECT name, amount FROM item ORDER BY amount")).toEqual([
        { name: "Zo\u00eb", amount: 1 },
        { name: "b'c", amount: null }
      ])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive(
    "copyFrom drops the byte order mark at the start of CSV in UTF-8, which spreadsheets write, and keeps any other",
    () =>
      Effect.gen(function* () {
        const mark = "\uFEFF"
        const csv = Buffer.from(`${mark}name,amount\na,1\n${mark}b,2\n`)
        const matched = { format: "csv", header: "match" } as const
        for (const pieces of [
          [csv],
          [csv.toString()],
          Array.from(csv, (_, i) => csv.subarray(i, i + 1)),
          ["", mark, "name,amount\na,1\n", `${mark}b,2\n`]
        ]) {
          yield* look("TRUNCATE item")
          expect(yield* copy(Stream.fromIterable<Copy.Row>(pieces), matched)).toBe(2)
          expect(yield* stored).toEqual(["a", `${mark}b`])
        }
        // the first bytes of a row, of text in another format or of another encoding are data
        yield* look("TRUNCATE item")
        yield* copy(given([`${mark}row`, 1], `${mark}after,2\n`), { format: "csv" })
        yield* copy(given(`${mark}text\t3\n`))
        yield* copy(given(Buffer.from("\xEF\xBB\xBFlatin,4\n", "latin1")), { format: "csv", encoding: "LATIN1" })
        yield* copy(given(Buffer.from([0xef]), Buffer.from([0xbc, 0xa1]), ",5\n"), { format: "csv" })
        expect([...(yield* stored)].sort()).toEqual(
          [`${mark}row`, `${mark}after`, `${mark}text`, "ï»¿latin", "\uFF21"].sort()
        )
        // fewer bytes than a mark are data as well, and here no UTF-8
        expect((yield* failure(copy(given(Buffer.from([0xef, 0xbb])), { format: "csv" })))._tag).toBe("CopyFailed")
      }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom joins the transaction that is open, and runs in one of its own when none is open", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const first = copy(given(["a", 1])).pipe(
        Effect.zipRight(sql`SELECT name FROM item`),
        Effect.tap((rows) => Effect.sync(() => expect(rows).toEqual([{ name: "a" }]))),
        Effect.zipRight(Effect.fail("undone"))
      )
      expect(yield* Effect.flip(Db.withTransaction(first))).toBe("undone")
      expect(yield* stored).toEqual([])
      yield* Db.withTransaction(copy(given(["b", 1])))
      yield* copy(given(["c", 1]))
      expect(yield* stored).toEqual(["b", "c"])
    }).pipe(Effect.provide(fresh()))
  )

  for (const place of ["outside of a transaction", "in a transaction, which goes on"] as const) {
    const within = <A, E, R>(self: Effect.Effect<A, E, R>) =>
      place === "outside of a transaction" ? self : Db.withTransaction(Effect.zipLeft(self, copy(given(["kept", 0]))))
    const kept = place === "outside of a transaction" ? [] : ["kept"]

    it.scopedLive(`copyFrom stores nothing when its rows end in a failure, and keeps its connection, ${place}`, () =>
      Effect.gen(function* () {
        const before = yield* pid
        const failing = Stream.concat(Stream.take(endless, 20_000), Stream.fail("no more"))
        expect(yield* within(Effect.flip(copy(failing)))).toBe("no more")
        expect(yield* stored).toEqual(kept)
        expect(yield* pid).toBe(before)
      }).pipe(Effect.provide(one()))
    )

    it.scopedLive(`copyFrom stores nothing when it is interrupted, and keeps its connection, ${place}`, () =>
      Effect.gen(function* () {
        const before = yield* pid
        const sent = yield* Deferred.make<void>()
        const stuck = Stream.concat(Stream.take(endless, 20_000), Stream.never)
        const interrupted = Effect.gen(function* () {
          const copying = yield* Effect.fork(copy(stuck, { onProgress: () => Deferred.succeed(sent, undefined) }))
          yield* Deferred.await(sent)
          return yield* Fiber.interrupt(copying)
        })
        expect(Exit.isInterrupted(yield* within(interrupted))).toBe(true)
        expect(yield* stored).toEqual(kept)
        expect(yield* pid).toBe(before)
        expect(yield* active).toBe(0)
      }).pipe(Effect.provide(one()))
    )

    it.scopedLive(`copyFrom stores nothing when its data is refused, and reports the line and column, ${place}`, () =>
      Effect.gen(function* () {
        const before = yield* pid
        const wrong = Stream.concat(Stream.take(endless, 1000), given(["x", "many"], ["y", 1]))
        const error = yield* within(copyFailure(copy(wrong)))
        expect(error).toMatchObject({ table: "item", line: 1001, column: "amount" })
        expect(error.message).toMatch(
          /^database "app" at \S+: COPY into item, line 1001, column amount: invalid input syntax for type integer: "many" - no row was stored\n {2}in: COPY "item" \("name", "amount"\) FROM STDIN WITH/
        )
        expect(yield* stored).toEqual(kept)
        expect(yield* pid).toBe(before)
      }).pipe(Effect.provide(one()))
    )
  }

  it.scopedLive("copyFrom reports what was refused, with the line if the server names it", () =>
    Effect.gen(function* () {
      yield* look(`
        ALTER TABLE item ADD CHECK (amount < 100), ALTER amount SET NOT NULL, ADD other int REFERENCES item;
        CREATE FUNCTION odd() RETURNS trigger LANGUAGE plpgsql AS
          'BEGIN IF new.amount = 13 THEN RAISE EXCEPTION ''unlucky''; END IF; RETURN new; END';
        CREATE TRIGGER odd BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION odd();
        CREATE TABLE "COPY, line 9: x" ("a, b: c" int)`)
      const refusal = (...rows: ReadonlyArray<Copy.Row>) =>
        Effect.map(copyFailure(copy(given(...rows))), ({ cause, column, line }) => [
          DatabaseError.isDatabaseError(cause) ? cause._tag : cause,
          line,
          column
        ])
      expect(yield* refusal(["a", 1], ["a", 2])).toEqual(["UniqueViolation", 2, undefined])
      expect(yield* refusal(["a", 1], ["b", 2], ["c", null])).toEqual(["NotNullViolation", 3, undefined])
      expect(yield* refusal(["a", 100])).toEqual(["CheckViolation", 1, undefined])
      expect(yield* refusal(["a", 1], ["b", 13])).toEqual(["QueryFailed", 2, undefined])
      expect(yield* refusal("a\t1\nb\n")).toEqual([expect.any(String), 2, undefined])
      const sql = yield* writer
      const odd = yield* copyFailure(sql.copyFrom("COPY, line 9: x", ["a, b: c"], given([1], [", line 7, column y: "])))
      expect(odd).toMatchObject({ line: 2, column: "a, b: c" })
      // the number is checked when all rows are there
      expect((yield* failure(copy(given(["a", 1, 7]), {}, ["name", "amount", "other"])))._tag).toBe(
        "ForeignKeyViolation"
      )
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom refuses rows that do not fit, and names their numbers", () =>
    Effect.gen(function* () {
      const refusal = (row: Copy.Row, options: Copy.Options = {}) =>
        Effect.map(copyFailure(copy(given(["a", 1], row), options)), ({ column, line, message }) => [
          line,
          column,
          message
        ])
      expect(yield* refusal({ name: "b" })).toEqual([
        2,
        "amount",
        expect.stringContaining("it is missing: give null for NULL")
      ])
      expect(yield* refusal(["b"])).toEqual([2, undefined, expect.stringContaining("it has 1 values for 2 columns")])
      expect(yield* refusal(["-", 1], { null: "-" })).toEqual([2, "name", expect.stringContaining("stands for NULL")])
      // a program without types passes anything
      expect(yield* refusal(7 as never)).toEqual([2, undefined, expect.stringContaining("it is a number, no row")])
      expect(yield* stored).toEqual([])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom quotes names as names and options as texts, whatever they contain", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      yield* look(`CREATE SCHEMA house; CREATE TABLE house."it""em; --" ("a"" b." int)`)
      expect(yield* sql.copyFrom('house.it"em; --', ['a" b.'], given([1]))).toBe(1)
      const hostile = [
        copy(given(["a", 1]), { null: "'); DROP TABLE item; --" }),
        copy(given(["a", 1]), { encoding: "x') ; --" }),
        copy(given(["a", 1]), { format: "csv); DROP TABLE item; --" as never }),
        copy(given(["a", 1]), { header: "true); --" as never }),
        copy(given(["a", 1]), { delimiter: 7 as never }),
        sql.copyFrom("item\0", ["name"], given(["a"])),
        sql.copyFrom("item", ["name) FROM STDIN; --"], given(["a"]))
      ]
      // an odd text for NULL is one like any other
      const tags = yield* Effect.forEach(hostile, (one) =>
        Effect.match(DatabaseError.refine(one), { onFailure: ({ _tag }) => _tag, onSuccess: () => "stored" })
      )
      expect(tags).toEqual(["stored", "InvalidInput", ...Array.from({ length: 5 }, () => "QueryFailed")])
      expect(yield* stored).toEqual(["a"])
      expect(yield* active).toBe(0)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom is refused by a reader", () =>
    Effect.gen(function* () {
      const sql = yield* Db.reader
      const rows = () => sql.copyFrom("item", ["name"], given(["a"]))
      const refusal = { _tag: "ReadOnlyViolation", reason: "reader" }
      expect(yield* failure(rows())).toMatchObject(refusal)
      const inside = Effect.zipLeft(failure(rows()), copy(given(["b", 1])))
      expect(yield* Db.withTransaction(inside)).toMatchObject(refusal)
      expect(yield* stored).toEqual(["b"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom reads its rows as fast as the server takes them", () =>
    Effect.gen(function* () {
      yield* look(`
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
          'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN new; END';
        CREATE TRIGGER wait BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION wait()`)
      const sql = yield* writer
      let read = 0
      const rows = Stream.tap(
        Stream.map(endless, ([, n]) => [`${n}${"x".repeat(10_000)}`, n]),
        () => Effect.sync(() => void read++)
      ).pipe(Stream.rechunk(1))
      yield* Effect.scoped(
        Effect.gen(function* () {
          const held = yield* sql.reserve
          yield* held.executeRaw("SELECT pg_advisory_lock(1)", [])
          yield* Effect.addFinalizer(() => Effect.ignore(held.executeRaw("SELECT pg_advisory_unlock(1)", [])))
          const copying = yield* Effect.fork(copy(rows))
          yield* look<{ n: number }>(
            "SELECT count(*)::int AS n FROM pg_stat_activity WHERE wait_event = 'advisory'"
          ).pipe(Effect.repeat({ schedule: soon, until: ([row]) => row?.n === 1 }))
          // the buffers of the network are soon full
          let before = -1
          yield* look("SELECT 1").pipe(
            Effect.repeat({
              schedule: soon,
              until: () => {
                const isStill = read === before
                before = read
                return isStill && read > 0
              }
            })
          )
          expect(read * 10_000).toBeLessThan(50_000_000)
          expect(Exit.isInterrupted(yield* Fiber.interrupt(copying))).toBe(true)
        })
      )
      expect(yield* stored).toEqual([])
    }).pipe(Effect.provide(fresh({ readers: [] })))
  )

  for (const [waits, harm] of [
    ["waits for a lock on its table", "LOCK TABLE item IN SHARE MODE"],
    ["is waited for at its end", "SELECT pg_advisory_xact_lock(7)"]
  ] as const) {
    it.scopedLive(`copyFrom that is interrupted while it ${waits} has the server stop, and keeps its connection`, () =>
      Effect.gen(function* () {
        yield* look(`
          CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END';
          CREATE TRIGGER wait AFTER INSERT ON item FOR EACH STATEMENT EXECUTE FUNCTION wait()`)
        const { name, writer: url } = yield* Place
        const before = yield* pid
        yield* Effect.scoped(
          Effect.gen(function* () {
            const other = Context.get(yield* Layer.build(Db.layer({ writer: url })), Db)
            const sql = yield* other.writer.reserve
            yield* sql.executeRaw("BEGIN", [])
            yield* sql.executeRaw(harm, [])
            yield* Effect.addFinalizer(() => Effect.ignore(sql.executeRaw("ROLLBACK", [])))
            const interrupted = Effect.gen(function* () {
              const copying = yield* Effect.fork(copy(given(["a", 1])))
              yield* query(
                url,
                "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock' AND query LIKE 'COPY%'",
                [name]
              ).pipe(Effect.repeat({ schedule: soon, until: (rows) => rows.length === 1 }))
              yield* Fiber.interrupt(copying)
              return yield* pid
            })
            expect(yield* Db.withTransaction(interrupted)).toBe(before)
            expect(yield* interrupted).toBe(before)
          })
        )
        expect(yield* stored).toEqual([])
      }).pipe(Effect.provide(one()))
    )
  }

  it.scopedLive("copyFrom reports its progress, and waits until the report is handled", () =>
    Effect.gen(function* () {
      const seen: Array<Copy.Progress> = []
      const rows = Stream.map(Stream.range(1, 30_000), (n) => [`n${n}`, n])
      yield* copy(rows, { onProgress: (progress) => Effect.sync(() => void seen.push(progress)) })
      expect(seen.length).toBeGreaterThan(3)
      expect(seen.at(-1)).toEqual({ rows: 30_000, bytes: expect.any(Number) })
      expect(seen).toEqual([...seen].sort((a, b) => a.rows - b.rows))
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom fails with a typed error when the server dies in the middle, and stores nothing", () =>
    Effect.gen(function* () {
      const { name } = yield* Place
      const sent = yield* Deferred.make<void>()
      const copying = yield* Effect.fork(
        failure(copy(endless, { onProgress: () => Deferred.succeed(sent, undefined) }))
      )
      yield* Deferred.await(sent)
      yield* terminateBackends(name)
      expect(yield* Fiber.join(copying)).toMatchObject({ _tag: "Disconnected", outcome: "undone" })
      expect(yield* stored).toEqual([])
      expect(yield* copy(given(["a", 1]))).toBe(1)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom fails with a typed error when it is cancelled on the server, and keeps its connection", () =>
    Effect.gen(function* () {
      const before = yield* pid
      const sent = yield* Deferred.make<void>()
      const copying = yield* Effect.fork(
        failure(copy(endless, { onProgress: () => Deferred.succeed(sent, undefined) }))
      )
      yield* Deferred.await(sent)
      yield* look(`SELECT pg_cancel_backend(${before})`)
      expect((yield* Fiber.join(copying))._tag).toBe("StatementTimeout")
      expect(yield* pid).toBe(before)
    }).pipe(Effect.provide(one()))
  )

  it.scopedLive(
    "copyFrom waits for a program's rows for as long as they take, whatever the limit for a statement",
    () =>
      Effect.gen(function* () {
        // a slow program on purpose: the server's silence is longer than its limit, and a second more
        const slow = Stream.concat(given(["a", 1]), Stream.drain(Stream.fromEffect(Effect.sleep("1600 millis"))))
        expect(yield* copy(Stream.concat(slow, given(["b", 2])), { statementTimeout: "1 minute" })).toBe(2)
        const error = yield* failure(copy(Stream.concat(slow, Stream.take(endless, 20_000))))
        expect(error._tag).toBe("StatementTimeout")
      }).pipe(Effect.provide(fresh({ statementTimeout: "300 millis" })))
  )

  it.scopedLive("copyFrom of rows that come from the same transaction fails in bounded time, with the reason", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      yield* copy(given(["a", 1]))
      const rows = Stream.map(sql<{ name: string }>`SELECT name FROM item`.stream, ({ name }) => [`${name} again`, 1])
      expect(yield* copy(rows)).toBe(1)
      expect((yield* failure(Db.withTransaction(copy(rows))))._tag).toBe("TransactionBusy")
      expect(yield* stored).toEqual(["a", "a again"])
    }).pipe(Effect.provide(fresh({ acquireTimeout: "300 millis" })))
  )

  it.scopedLive("copyFrom is seen by the later reads of its causal session", () =>
    Effect.gen(function* () {
      const session = Consistency.makeSession()
      yield* copy(given(["a", 1])).pipe(Consistency.withSession(session))
      expect(session.known.get("app")).toBeInstanceOf(Consistency.Token)
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom transforms column names as the program's other statements do", () =>
    Effect.gen(function* () {
      yield* look("CREATE TABLE odd_name (first_column int, second_column int)")
      const sql = yield* writer
      const rows = given({ firstColumn: 1, secondColumn: 2 }, { firstColumn: 3, secondColumn: "x" })
      const error = yield* copyFailure(sql.copyFrom("oddName", ["firstColumn", "secondColumn"], rows))
      expect(error).toMatchObject({ table: "oddName", line: 2, column: "secondColumn" })
      const plain = sql.withoutTransforms()
      expect(yield* plain.copyFrom("odd_name", ["first_column"], given({ first_column: 1 }))).toBe(1)
    }).pipe(
      Effect.provide(
        fresh({
          transformQueryNames: (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
          transformResultNames: (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase())
        })
      )
    )
  )
})

describe("copyTo", () => {
  it.scopedLive("copyTo returns the rows of a query as text or CSV", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      yield* copy(given(["a\tb", 1], ['c"d', null]))
      const rows = sql`SELECT name, amount FROM item ORDER BY name`
      expect(yield* textOf(sql.copyTo(rows))).toBe('a\\tb\t1\nc"d\t\\N\n')
      expect(yield* textOf(sql.copyTo(rows, { format: "csv", header: true, delimiter: ";", null: "-" }))).toBe(
        'name;amount\na\tb;1\n"c""d";-\n'
      )
      expect(yield* textOf(sql.copyTo(sql`SELECT 'é'`, { encoding: "LATIN1" }))).toBe("\ufffd\n")
      expect(yield* textOf(sql.copyTo(sql`SELECT 1 WHERE false -- none`))).toBe("")
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyTo writes the values of its query into the statement as they would be sent", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const hostile = "'; DROP TABLE item; -- \\' $1 \\"
      const query = sql`SELECT ${hostile}::text, ${1}::int, ${null}::text, ${sql.json({ a: [hostile] })}::jsonb ->> 'a',
        ${["x", hostile]}::text[] IS NOT NULL, ${Redacted.make("s")}::text, ${Buffer.from([1])}::bytea, 'a' IN ${sql.in(["a"])}`
      const [values] = yield* query.values
      // it was compiled for the statement before
      const [line] = (yield* textOf(sql.copyTo(query, { format: "csv", null: "NULL" }))).split("\n", 1)
      expect(values?.slice(0, 3)).toEqual([hostile, 1, null])
      expect(line).toBe(
        `'; DROP TABLE item; -- \\' $1 \\,1,NULL,"[""'; DROP TABLE item; -- \\\\' $1 \\\\""]",t,s,\\x01,t`
      )
      expect((yield* failure(Stream.runDrain(sql.copyTo(sql.unsafe("SELECT $1", [1])))))._tag).toBe("QueryFailed")
      expect((yield* failure(Stream.runDrain(sql.copyTo(sql.unsafe("SELECT \0")))))._tag).toBe("QueryFailed")
      const name = sql.copyTo(sql`SELECT ${'"; --'} AS ${sql("\0" + "1\0")}`)
      expect((yield* failure(Stream.runDrain(name))).message).toContain("NUL")
      expect(yield* stored).toEqual([])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyTo accepts a single command, from a reader as well", () =>
    Effect.gen(function* () {
      const sql = yield* Db.reader
      const several = sql.copyTo(sql.unsafe("SELECT 1) TO STDOUT; COMMIT; CREATE TABLE mine (); --"))
      expect((yield* failure(Stream.runDrain(several)))._tag).toBe("QueryFailed")
      expect(yield* look("SELECT to_regclass('mine') AS mine")).toEqual([{ mine: null }])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive(
    "copyTo runs through a reader, sees what a transaction has written, and leaves the transaction writable",
    () =>
      Effect.gen(function* () {
        const sql = yield* Db.reader
        const names = textOf(sql.copyTo(sql`SELECT name FROM item ORDER BY name`))
        const write = textOf(sql.copyTo(sql`INSERT INTO item (name) VALUES ('x') RETURNING name`))
        const program = Effect.gen(function* () {
          yield* copy(given(["a", 1]))
          expect(yield* names).toBe("a\n")
          expect((yield* failure(write))._tag).toBe("ReadOnlyViolation")
          yield* copy(given(["b", 1]))
        })
        yield* Db.withTransaction(program)
        expect(yield* stored).toEqual(["a", "b"])
        expect((yield* failure(write))._tag).toBe("ReadOnlyViolation")
      }).pipe(Effect.provide(fresh({ readers: [] })))
  )

  it.scopedLive("copyTo keeps what its query writes, in the transaction around it or in one of its own", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const write = (name: string) => textOf(sql.copyTo(sql`INSERT INTO item (name) VALUES (${name}) RETURNING name`))
      expect(yield* write("a")).toBe("a\n")
      yield* Effect.flip(Db.withTransaction(Effect.zipRight(write("b"), Effect.fail("undone"))))
      yield* Db.withTransaction(write("c"))
      expect(yield* stored).toEqual(["a", "c"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyTo is read from the server as fast as it is consumed", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const rows = sql.copyTo(sql`SELECT repeat('x', 10000) FROM generate_series(1, 10000)`)
      const held = yield* Deferred.make<void>()
      const first = yield* Deferred.make<void>()
      let bytes = 0
      const reading = yield* Effect.fork(
        Stream.runForEach(rows, (block) => {
          bytes += block.length
          return Effect.zipRight(Deferred.succeed(first, undefined), Deferred.await(held))
        })
      )
      yield* Deferred.await(first)
      yield* look("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'ClientWrite'").pipe(
        Effect.repeat({ schedule: soon, until: (rows) => rows.length === 1 })
      )
      expect(bytes).toBeLessThan(1_000_000)
      yield* Deferred.succeed(held, undefined)
      yield* Fiber.join(reading)
      expect(bytes).toBe(10_001 * 10_000)
    }).pipe(Effect.provide(fresh({ statementTimeout: "1 minute" })))
  )

  it.scopedLive("copyTo that is not read to its end keeps its connection if the rest arrives soon", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const before = yield* pid
      const rows = sql.copyTo(
        sql`INSERT INTO item (name) SELECT n::text FROM generate_series(1, 3000) AS n RETURNING name`
      )
      const [block] = [...(yield* Stream.runCollect(Stream.take(rows, 1)))]
      expect(String(block)).toMatch(/^1\n2\n/)
      expect(yield* stored).toHaveLength(3000)
      yield* Db.withTransaction(Effect.zipRight(Stream.runDrain(Stream.take(rows, 0)), sql`TRUNCATE item`))
      expect(yield* pid).toBe(before)
    }).pipe(Effect.provide(one()))
  )

  /** A first block at once, more of it soon, and the rest in a minute. The first row has arrived when the second is written. */
  const slow = (sql: Effect.Effect.Success<typeof writer>) =>
    sql`SELECT repeat('x', 70000), pg_sleep(n) FROM (VALUES (0), (0), (60)) AS _ (n)`

  it.scopedLive(
    "copyTo that is not read to its end has the server stop if the rest does not arrive soon, and keeps its connection",
    () =>
      Effect.gen(function* () {
        const sql = yield* writer
        const before = yield* pid
        const rows = sql.copyTo(slow(sql))
        expect(yield* Stream.runCount(Stream.take(rows, 1))).toBe(1)
        expect(yield* active).toBe(0)
        expect(yield* pid).toBe(before)
        const inside = Effect.zipRight(Stream.runDrain(Stream.take(rows, 1)), insert("after"))
        yield* Db.withTransaction(Effect.zipRight(insert("before"), inside))
        expect(yield* stored).toEqual(["after", "before"])
        expect(yield* pid).toBe(before)
      }).pipe(Effect.provide(one()))
  )

  it.scopedLive("copyTo that is interrupted has the server stop, and its transaction goes on", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const before = yield* pid
      const interrupted = Effect.gen(function* () {
        const first = yield* Deferred.make<void>()
        const reading = yield* Effect.fork(
          Stream.runForEach(sql.copyTo(slow(sql)), () => Deferred.succeed(first, undefined))
        )
        yield* Deferred.await(first)
        yield* Fiber.interrupt(reading)
        yield* insert("after")
      })
      yield* Db.withTransaction(interrupted)
      expect(yield* stored).toEqual(["after"])
      expect(yield* pid).toBe(before)
    }).pipe(Effect.provide(one()))
  )

  it.scopedLive("copyTo that is interrupted and not stopped in time is no lost connection: nothing runs again", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const sql = yield* writer
        yield* proxy.when(({ type }) => type === "cancel", "cut", Number.POSITIVE_INFINITY)
        let attempts = 0
        const interrupted = Effect.gen(function* () {
          attempts++
          const first = yield* Deferred.make<void>()
          const reading = yield* Effect.fork(
            Stream.runForEach(sql.copyTo(slow(sql)), () => Deferred.succeed(first, undefined))
          )
          yield* Deferred.await(first)
          yield* Fiber.interrupt(reading)
          yield* sql`SELECT 1`
        })
        const error = yield* failure(Db.withTransaction(interrupted, { retry: true }))
        expect(error).toMatchObject({ _tag: "TransactionInterrupted" })
        expect(attempts).toBe(1)
      })
    )
  )

  it.scopedLive("copyTo fails with a typed error when the server refuses it, dies in the middle or cancels it", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const { name } = yield* Place
      expect((yield* failure(Stream.runDrain(sql.copyTo(sql`SELECT nothing`))))._tag).toBe("QueryFailed")
      const divided = sql.copyTo(sql`SELECT 1 / (90000 - n) FROM generate_series(1, 100000) AS n`)
      expect((yield* failure(Stream.runDrain(divided))).message).toContain("division by zero")
      const rows = sql.copyTo(sql`SELECT repeat('x', 10000) FROM generate_series(1, 100000)`)
      const broken = (how: Effect.Effect<unknown>) =>
        failure(Stream.runForEach(rows, () => how)).pipe(Effect.map((error) => error._tag))
      const cancel = look(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND state = 'active'"
      ).pipe(Effect.provideService(Place, yield* Place))
      expect(yield* broken(cancel)).toBe("StatementTimeout")
      expect(yield* broken(terminateBackends(name))).toBe("Disconnected")
      expect(yield* sql`SELECT 1 AS n`).toEqual([{ n: 1 }])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyTo is interrupted within a second, on a dead network as well", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const sql = yield* writer
        const first = yield* Deferred.make<void>()
        const rows = sql.copyTo(sql`SELECT repeat('x', 10000) FROM generate_series(1, 1000)`)
        const reading = yield* Effect.fork(
          Stream.runForEach(rows, () => Effect.zipRight(proxy.strand, Deferred.succeed(first, undefined)))
        )
        yield* Deferred.await(first)
        yield* Effect.timeout(Fiber.interrupt(reading), "1500 millis")
        const stuck = yield* Effect.fork(sql.copyFrom("item", ["name", "amount"], endless))
        yield* Effect.flatten(proxy.when(sends("COPY"), "pass"))
        yield* proxy.strand
        yield* Effect.timeout(Fiber.interrupt(stuck), "1500 millis")
        expect(yield* active).toBe(0)
      })
    )
  )

  it.scopedLive("copyTo ends for a slow consumer whatever part of the data arrives with the end of the exchange", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      for (let kilobytes = 72; kilobytes <= 264; kilobytes += 8) {
        const rows = sql.copyTo(sql`SELECT repeat('x', 1023) FROM generate_series(1, ${kilobytes})`)
        let bytes = 0
        yield* Stream.runForEach(rows, (block) => {
          bytes += block.length
          // by the answer of another session, all that the socket takes has arrived
          return look("SELECT 1").pipe(Effect.repeatN(2))
        })
        expect(bytes).toBe(kilobytes * 1024)
      }
    }).pipe(Effect.provide(one()))
  )

  it.scopedLive("copyTo returns all rows if it is sent again because its connection was lost before it had begun", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const sql = yield* writer
        const lost = yield* proxy.when(sends("COPY"), "cut")
        const lines = sql.copyTo(sql`SELECT repeat('x', 1023) FROM generate_series(1, 1000)`)
        expect(yield* Stream.runFold(lines, 0, (sum, block) => sum + block.length)).toBe(1000 * 1024)
        yield* lost
      })
    )
  )

  it.scopedLive("copyTo feeds copyFrom", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      yield* copy(Stream.take(endless, 50_000))
      yield* look("CREATE TABLE other (LIKE item)")
      expect(yield* sql.copyFrom("other", [], sql.copyTo(sql`TABLE item`))).toBe(50_000)
      expect(yield* look("TABLE other EXCEPT TABLE item")).toEqual([])
    }).pipe(Effect.provide(fresh()))
  )
})

describe("COPY", () => {
  it.scopedLive("a failed COPY has its SQL without values, the position of the error in it and its call site", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const secret = "correct 🐎 battery"
      const query = sql`SELECT ${secret}::text, '🐎', ${7}::int, absent`
      const error = yield* failure(Stream.runDrain(sql.copyTo(query, { format: "csv" })))
      assert(error instanceof DatabaseError.QueryFailed)
      expect(error.sql).toMatch(/^COPY \(SELECT \$1::text, '🐎', \$2::int, absent\n\) TO STDOUT WITH \(FORMAT csv/)
      expect(error.message.split("\n").slice(1)).toEqual([
        "  LINE 1: COPY (SELECT $1::text, '🐎', $2::int, absent",
        "                                               ^",
        expect.stringMatching(/^ {2}at: .*copy\.test\.ts:\d+:\d+/)
      ])
      expect(inspect(error, { depth: 9 }) + JSON.stringify(error)).not.toContain("battery")
      const spot = expect.stringMatching(/copy\.test\.ts:\d+:\d+/)
      const rows = ["name", "amount"]
      const place = {
        sql: expect.stringMatching(/^COPY "item" \("name", "amount"\) FROM STDIN WITH/),
        location: spot
      }
      expect(yield* copyFailure(sql.copyFrom("item", rows, given(["a", "x"])))).toMatchObject({
        ...place,
        cause: place
      })
      expect(yield* copyFailure(sql.copyFrom("item", rows, given(["a"])))).toMatchObject(place)
    }).pipe(Effect.provide(fresh({ leakThreshold: "1 hour" })))
  )

  it.scopedLive("a COPY that fails inside a span names that span when call sites are not recorded", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const all = [Stream.runDrain(sql.copyTo(sql`SELECT absent`)), copy(given(["a", "x"])), copy(given(["a"]))]
      for (const one of all) {
        expect(yield* failure(Effect.withSpan(one, "loading"))).toMatchObject({ location: 'span "loading"' })
      }
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a transaction whose COPY was interrupted names it without its values", () =>
    behind({}, (proxy) =>
      Effect.gen(function* () {
        const sql = yield* writer
        yield* proxy.when(({ type }) => type === "cancel", "cut", Number.POSITIVE_INFINITY)
        const interrupted = Effect.gen(function* () {
          const sent = yield* proxy.when(sends("pg_sleep"), "pass")
          const reading = yield* Effect.fork(Stream.runDrain(sql.copyTo(sql`SELECT ${"secret"}, pg_sleep(60)`)))
          yield* sent
          yield* Fiber.interrupt(reading)
          yield* sql`SELECT 1`
        })
        expect(yield* failure(Db.withTransaction(interrupted))).toMatchObject({
          _tag: "TransactionInterrupted",
          statement: expect.stringMatching(/^COPY \(SELECT \$1, pg_sleep\(60\)/)
        })
      })
    )
  )

  it.scopedLive(
    "a COPY that is sent as a statement is refused in both directions with a hint, and its connection stays usable",
    () =>
      Effect.gen(function* () {
        const sql = yield* writer
        const before = yield* pid
        const refusals = Effect.gen(function* () {
          const from = yield* failure(sql`COPY item FROM STDIN`)
          expect([from._tag, from.message]).toEqual(["QueryFailed", expect.stringContaining("use sql.copyFrom")])
          const to = yield* failure(sql`COPY item TO STDOUT`)
          expect([to._tag, to.message]).toEqual(["QueryFailed", expect.stringContaining("use sql.copyTo")])
          const many = yield* failure(sql`COPY (SELECT n FROM generate_series(1, 1000) AS n) TO STDOUT`)
          expect(many.message).toContain("use sql.copyTo")
          const among = yield* failure(sql`/* two */ SELECT 1; COPY item FROM STDIN`)
          expect(among.message).toContain("use sql.copyFrom")
        })
        yield* refusals
        yield* Tenant.withTenant(refusals, "public")
        expect(yield* pid).toBe(before)
        // a refused COPY is a failed statement, which a transaction does not survive, and a savepoint does
        yield* Db.withTransaction(
          Effect.zipRight(Effect.flip(Db.withTransaction(sql`COPY item FROM STDIN`)), copy(given(["a", 1])))
        )
        expect(yield* stored).toEqual(["a"])
        expect(yield* pid).toBe(before)
      }).pipe(Effect.provide(one()))
  )

  it.scopedLive("a COPY of files of the server is a statement like any other", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      yield* sql`COPY item (name) FROM PROGRAM 'echo a'`
      expect(yield* stored).toEqual(["a"])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("a COPY sent as a statement that would return much data is not read to its end", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      const error = yield* failure(sql`COPY (SELECT repeat('x', 1000) FROM generate_series(1, 10000000)) TO STDOUT`)
      expect(error.message).toContain("use sql.copyTo")
      expect(yield* sql`SELECT 1 AS n`).toEqual([{ n: 1 }])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("COPY resolves names in the schema scope that it runs in", () =>
    Effect.gen(function* () {
      yield* look("CREATE SCHEMA house; CREATE TABLE house.item (LIKE item INCLUDING ALL)")
      const sql = yield* writer
      const names = textOf(sql.copyTo(sql`SELECT name FROM item`))
      yield* copy(given(["a", 1])).pipe(Tenant.withTenant("house"))
      expect([yield* names, yield* Tenant.withTenant(names, "house")]).toEqual(["", "a\n"])
      yield* Db.withTransaction(copy(given(["b", 1])).pipe(Tenant.withTenant("house")))
      expect(yield* look("SELECT name FROM house.item ORDER BY 1")).toEqual([{ name: "a" }, { name: "b" }])
      expect(yield* stored).toEqual([])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("COPY in a sandbox is undone with it, and is refused as a statement without harm to it", () =>
    Effect.gen(function* () {
      const sandboxed = Effect.gen(function* () {
        const [sql, reader] = [yield* writer, yield* Db.reader]
        expect(yield* copy(given(["a", 1]))).toBe(1)
        yield* copyFailure(copy(given(["b", "x"])))
        expect(yield* failure(reader.copyFrom("item", ["name"], given(["c"])))).toMatchObject({
          _tag: "ReadOnlyViolation"
        })
        for (const client of [sql, reader]) {
          expect((yield* failure(client`COPY item TO STDOUT`)).message).toContain("use sql.copyTo")
          expect(yield* textOf(client.copyTo(sql`SELECT name FROM item`))).toBe("a\n")
        }
        expect((yield* failure(sql`COPY item FROM STDIN`)).message).toContain("use sql.copyFrom")
        expect(yield* copy(given(["d", 1]))).toBe(1)
      })
      yield* Effect.scoped(
        Effect.flatMap(Layer.build(TestDatabase.layer(Db)), (sandbox) => Effect.provide(sandboxed, sandbox))
      )
      expect(yield* stored).toEqual([])
    }).pipe(Effect.provide(fresh()))
  )
})

describe.skipIf(!hasBouncer)(behindBouncer, () => {
  it.scopedLive("COPY works behind a pooler in both directions, and refused data leaves the pool usable", () =>
    Effect.gen(function* () {
      const place = yield* freshTable
      const { url } = yield* makeBouncer(place.writer, { default_pool_size: 1 })
      const context = yield* Layer.build(
        Layer.merge(
          Db.layer({ writer: at(Redacted.value(url), place.name), mode: "transactionPooler" }),
          Layer.succeed(Place, place)
        )
      )
      yield* Effect.gen(function* () {
        const sql = yield* writer
        expect(yield* copy(Stream.take(endless, 20_000))).toBe(20_000)
        expect(
          yield* Effect.flip(
            copy(Stream.concat(Stream.drop(Stream.take(endless, 40_000), 20_000), Stream.fail("no more")))
          )
        ).toBe("no more")
        yield* copyFailure(copy(given(["a", "x"])))
        expect((yield* failure(sql`COPY item FROM STDIN`)).message).toContain("use sql.copyFrom")
        expect((yield* textOf(sql.copyTo(sql`TABLE item`))).split("\n")).toHaveLength(20_001)
        expect(yield* sql`SELECT count(*)::int AS n FROM item`).toEqual([{ n: 20_000 }])
      }).pipe(Effect.provide(context))
    })
  )
})

describe("COPY for plain code", () => {
  const runtimeOf = (place: { readonly writer: Redacted.Redacted<string> }) =>
    Effect.acquireRelease(
      Effect.promise(async () => {
        const runtime = DatabaseRuntime.make({ db: Db }, Db.layer({ writer: place.writer, maxConnections: 2 }))
        await runtime.open()
        return runtime
      }),
      (runtime) => Effect.promise(() => runtime.close())
    )

  it.scopedLive(
    "COPY for plain code stores rows of iterables, and returns blocks to iterate over, in the transaction of the code",
    () =>
      Effect.gen(function* () {
        const place = yield* Place
        const { databases } = yield* runtimeOf(place)
        const { reader, withTransaction, writer: sql } = databases.db
        const program = async () => {
          async function* rows() {
            for (let n = 0; n < 1000; n++) yield [`n${n}`, n]
          }
          const seen: Array<Copy.Progress> = []
          expect(
            await sql.copyFrom("item", ["name", "amount"], rows(), {
              onProgress: async (progress) => void seen.push(progress)
            })
          ).toBe(1000)
          expect(seen.at(-1)?.rows).toBe(1000)
          expect(await sql.copyFrom("item", ["name", "amount"], [{ name: "a", amount: 1 }])).toBe(1)
          expect(await sql.copyFrom("item", ["name", "amount"], "b\t1\n")).toBe(1)
          await expect(
            withTransaction(async () => {
              await sql.copyFrom("item", ["name"], new Set([["c"]]))
              let text = ""
              for await (const block of sql.copyTo(sql`SELECT name FROM item WHERE name = ${"c"}`))
                text += String(block)
              throw new Error(text)
            })
          ).rejects.toThrow("c\n")
          for await (const _ of reader.copyTo(sql`TABLE item`)) break
          return sql`SELECT count(*)::int AS n FROM item`
        }
        expect(yield* Effect.promise(program)).toEqual([{ n: 1002 }])
      }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive(
    "COPY for plain code rejects with what the rows throw, or with what the server refuses, and stores nothing",
    () =>
      Effect.gen(function* () {
        const { databases } = yield* runtimeOf(yield* Place)
        const sql = databases.db.writer
        const thrown = new Error("no more")
        let isClosed = false
        const program = async () => {
          async function* rows(last: unknown) {
            try {
              yield ["a", 1]
              if (last instanceof Error) throw last
              yield ["b", last]
              await new Promise(() => {})
            } finally {
              isClosed = true
            }
          }
          await expect(sql.copyFrom("item", ["name", "amount"], rows(thrown))).rejects.toBe(thrown)
          await expect(
            sql.copyFrom(
              "item",
              ["name", "amount"],
              [
                ["a", 1],
                ["b", "x"]
              ]
            )
          ).rejects.toMatchObject({
            _tag: "CopyFailed",
            line: 2
          })
          await expect(
            sql.copyFrom("item", ["name", "amount"], [["a", 1]], {
              onProgress: () => {
                throw thrown
              }
            })
          ).rejects.toThrow("no more")
        }
        yield* Effect.promise(program)
        expect(isClosed).toBe(true)
        expect(yield* stored).toEqual([])
      }).pipe(Effect.provide(fresh()))
  )
})
