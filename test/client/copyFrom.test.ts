import { assert, describe, expect, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { Consistency, type Copy, DatabaseError } from "effect-db"
import { copy, copyFailure, endless, given, one, textOf, writer } from "../support/copying.js"
import { active, Db, fresh, look, Place, pid, stored } from "../support/databases.js"
import { eventually } from "../support/eventually.js"
import { failure } from "../support/failures.js"
import { randoms } from "../support/random.js"
import { query, terminateBackends } from "../support/server.js"

describe("copyFrom", () => {
  it.scopedLive("copyFrom stores rows as arrays, objects, text and bytes, and returns the number of stored rows", () =>
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

  it.scopedLive("copyFrom stores each value as a parameter of a statement is stored, in every format", () =>
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

  it.scopedLive("copyFrom stores bytes in another encoding, with a header, however they are split", () =>
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
        // a mark in or after a row of values, in text format or in another encoding is data
        yield* look("TRUNCATE item")
        yield* copy(given([`${mark}row`, 1], `${mark}after,2\n`), { format: "csv" })
        yield* copy(given(`${mark}text\t3\n`))
        yield* copy(given(Buffer.from("\xEF\xBB\xBFlatin,4\n", "latin1")), { format: "csv", encoding: "LATIN1" })
        yield* copy(given(Buffer.from([0xef]), Buffer.from([0xbc, 0xa1]), ",5\n"), { format: "csv" })
        expect([...(yield* stored)].sort()).toEqual(
          [`${mark}row`, `${mark}after`, `${mark}text`, "ï»¿latin", "\uFF21"].sort()
        )
        // an incomplete mark is data as well, and not valid UTF-8
        expect((yield* failure(copy(given(Buffer.from([0xef, 0xbb])), { format: "csv" })))._tag).toBe("CopyFailed")
      }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom joins the transaction that is open, and otherwise runs in one of its own", () =>
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

  it.scopedLive("copyFrom fails with the server's error, and with the line and column if the server names them", () =>
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
      // a foreign key is checked after the last row, without a line
      expect((yield* failure(copy(given(["a", 1, 7]), {}, ["name", "amount", "other"])))._tag).toBe(
        "ForeignKeyViolation"
      )
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom refuses a row that does not fit the columns, and names its number", () =>
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
      expect(yield* refusal(7 as never)).toEqual([2, undefined, expect.stringContaining("it is a number, not a row")])
      expect(yield* stored).toEqual([])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom quotes names as identifiers and options as literals, whatever they contain", () =>
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
      // any text is permitted for NULL
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

  it.scopedLive("copyFrom reads no more rows while the server takes none", () =>
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
            "SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
          ).pipe(eventually(([row]) => row?.n === 1))
          // the buffers of the network are soon full
          let before = -1
          yield* look("SELECT 1").pipe(
            eventually(() => {
              const isStill = read === before
              before = read
              return isStill && read > 0
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
    ["waits for a trigger at its end", "SELECT pg_advisory_xact_lock(7)"]
  ] as const) {
    it.scopedLive(`copyFrom that is interrupted while it ${waits} is cancelled, and keeps its connection`, () =>
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
              ).pipe(eventually((rows) => rows.length === 1))
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

  it.scopedLive("copyFrom reports its progress in order, up to the last row", () =>
    Effect.gen(function* () {
      const seen: Array<Copy.Progress> = []
      const rows = Stream.map(Stream.range(1, 30_000), (n) => [`n${n}`, n])
      yield* copy(rows, { onProgress: (progress) => Effect.sync(() => void seen.push(progress)) })
      expect(seen.length).toBeGreaterThan(3)
      const bytes = Array.from({ length: 30_000 }, (_, i) => `n${i + 1}\t${i + 1}\n`).join("").length
      expect(seen.at(-1)).toEqual({ rows: 30_000, bytes })
      for (const key of ["rows", "bytes"] as const) {
        const all = seen.map((progress) => progress[key])
        expect(all).toEqual([...new Set(all)].sort((a, b) => a - b))
      }
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom fails as Disconnected when its session is terminated, and stores nothing", () =>
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

  it.scopedLive("copyFrom fails as StatementTimeout when it is cancelled on the server, and keeps its connection", () =>
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
    "copyFrom has its own statementTimeout or that of the database, which includes the waits for its rows",
    () =>
      Effect.gen(function* () {
        // the pause of the rows exceeds the statementTimeout of the database by more than a second
        const slow = Stream.concat(given(["a", 1]), Stream.drain(Stream.fromEffect(Effect.sleep("1600 millis"))))
        expect(yield* copy(Stream.concat(slow, given(["b", 2])), { statementTimeout: "1 minute" })).toBe(2)
        const error = yield* failure(copy(Stream.concat(slow, Stream.take(endless, 20_000))))
        expect(error._tag).toBe("StatementTimeout")
      }).pipe(Effect.provide(fresh({ statementTimeout: "300 millis" })))
  )

  it.scopedLive("copyFrom of rows from the same transaction fails as TransactionBusy, and stores nothing", () =>
    Effect.gen(function* () {
      const sql = yield* writer
      yield* copy(given(["a", 1]))
      const rows = Stream.map(sql<{ name: string }>`SELECT name FROM item`.stream, ({ name }) => [`${name} again`, 1])
      expect(yield* copy(rows)).toBe(1)
      expect((yield* failure(Db.withTransaction(copy(rows))))._tag).toBe("TransactionBusy")
      expect(yield* stored).toEqual(["a", "a again"])
    }).pipe(Effect.provide(fresh({ acquireTimeout: "300 millis" })))
  )

  it.scopedLive("copyFrom records a token in its causal session", () =>
    Effect.gen(function* () {
      const session = Consistency.makeSession()
      const [before] = yield* look<{ lsn: string }>("SELECT pg_current_wal_insert_lsn()::text AS lsn")
      yield* copy(given(["a", 1])).pipe(Consistency.withSession(session))
      const token = session.known.get("app")
      assert(token instanceof Consistency.Token)
      // the position is behind that of the rows
      const { lsn } = yield* Schema.encode(Consistency.Token)(token)
      expect(yield* look(`SELECT '${lsn}'::pg_lsn > '${before?.lsn}' AS is_later`)).toEqual([{ is_later: true }])
    }).pipe(Effect.provide(fresh()))
  )

  it.scopedLive("copyFrom transforms column names as the program's other statements do", () =>
    Effect.gen(function* () {
      yield* look("CREATE TABLE odd_name (first_column int, second_column int)")
      const sql = yield* writer
      const rows = given({ firstColumn: 1, secondColumn: 2 }, { firstColumn: 3, secondColumn: "x" })
      const error = yield* copyFailure(sql.copyFrom("oddName", ["firstColumn", "secondColumn"], rows))
      expect(error).toMatchObject({ table: "oddName", line: 2, column: "secondColumn" })
      const good = given({ firstColumn: 1, secondColumn: 2 })
      expect(yield* sql.copyFrom("oddName", ["firstColumn", "secondColumn"], good)).toBe(1)
      const plain = sql.withoutTransforms()
      expect(yield* plain.copyFrom("odd_name", ["first_column"], given({ first_column: 3 }))).toBe(1)
      expect(yield* look("SELECT * FROM odd_name ORDER BY 1")).toEqual([
        { first_column: 1, second_column: 2 },
        { first_column: 3, second_column: null }
      ])
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
