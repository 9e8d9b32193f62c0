import { execFileSync, spawn } from "node:child_process"
import * as fs from "node:fs"
import * as os from "node:os"
import * as path from "node:path"
import { describe, expect, it } from "@effect/vitest"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as Csv from "../../examples/service/csv.js"
import { emptyFolder } from "../support/directory.js"
import { query } from "../support/server.js"
import * as Program from "./program.js"

const header = "iata,name,city,state,country,latitude,longitude"
const row = (iata: string) => `${iata},Name,City,ST,USA,1.5,-2.5`

const file = (text: string | Uint8Array) =>
  Effect.map(emptyFolder, (folder) => {
    const name = path.join(folder, "some.csv")
    fs.writeFileSync(name, text)
    return name
  })

const read = (text: string | Uint8Array) =>
  Effect.gen(function* () {
    const rows = yield* Stream.runCollect(Csv.rows(yield* file(text)))
    return Chunk.toReadonlyArray(rows).map(({ airport }) => airport)
  })

const problems = (text: string | Uint8Array) => Effect.map(Effect.flip(read(text)), (error) => error.problems)

const lines = (...all: ReadonlyArray<string>) => `${all.join("\n")}\n`

describe("the CSV reader", () => {
  it.scopedLive("quoted commas, quotes and line breaks belong to their field", () =>
    Effect.gen(function* () {
      const text = `${header}\nA1,"Union County, Troy ""Shelton""","Two\nlines",SC,USA,34.5,-81.25\n`
      expect(yield* read(text)).toEqual([
        {
          iata: "A1",
          name: 'Union County, Troy "Shelton"',
          city: "Two\nlines",
          state: "SC",
          country: "USA",
          latitude: 34.5,
          longitude: -81.25
        }
      ])
    })
  )

  for (const [name, end] of [
    ["CRLF", "\r\n"],
    ["LF", "\n"],
    ["CR", "\r"]
  ] as const) {
    it.scopedLive(`${name} ends lines, with and without a line end after the last`, () =>
      Effect.gen(function* () {
        const text = [header, row("A1"), row("A2")].join(end)
        const expected = [
          expect.objectContaining({ iata: "A1", longitude: -2.5 }),
          expect.objectContaining({ iata: "A2" })
        ]
        expect(yield* read(text)).toEqual(expected)
        expect(yield* read(text + end)).toEqual(expected)
      })
    )
  }

  it.scopedLive("line ends may be mixed, and blank lines and a byte order mark do not count", () =>
    Effect.gen(function* () {
      const text = `\uFEFF${header}\n${row("A1")}\r\n\r\n${row("A2")}\n\n`
      expect((yield* read(text)).map(({ iata, longitude }) => [iata, longitude])).toEqual([
        ["A1", -2.5],
        ["A2", -2.5]
      ])
    })
  )

  it.scopedLive("columns are found by their names, in any order", () =>
    Effect.gen(function* () {
      const text = lines("longitude,latitude,country,state,city,name,iata", "-2.5,1.5,USA,ST,City,Name,A1")
      expect(yield* read(text)).toEqual(yield* read(lines(header, row("A1"))))
    })
  )

  it.scopedLive("a file with nothing but the header has no rows", () =>
    Effect.gen(function* () {
      expect(yield* read(lines(header))).toEqual([])
    })
  )

  const wrong: ReadonlyArray<readonly [string, string | Uint8Array, ReadonlyArray<string>]> = [
    ["an empty file", "", [`it is empty; expected the columns ${header}`]],
    [
      "a missing column",
      lines("iata,name,city,state,country,latitude", "A1,a,b,c,d,1"),
      ["line 1: the column longitude is missing"]
    ],
    ["an unknown column", lines(`${header},elevation`, `${row("A1")},7`), ['line 1: there is no column "elevation"']],
    ["a column that occurs twice", lines(`${header},iata`, `${row("A1")},A1`), ["line 1: a column is there twice"]],
    ["a line with too few fields", lines(header, row("A1"), "A2,a,b"), ["line 3: it has 3 fields, expected 7"]],
    [
      "a line with too many fields",
      lines(header, row("A1"), `${row("A2")},x`),
      ["line 3: it has 8 fields, expected 7"]
    ],
    [
      "a number that is not one",
      lines(header, "A1,a,b,c,d,north,1"),
      ['line 2: latitude is "north": expected a number like 12.5']
    ],
    ["an empty number", lines(header, "A1,a,b,c,d,1,"), ['line 2: longitude is "": expected a number like 12.5']],
    [
      "degrees out of range",
      lines(header, "A1,a,b,c,d,1,181"),
      ['line 2: longitude is "181": expected degrees from -180 to 180']
    ],
    ["an empty key", lines(header, row("")), ['line 2: iata is "": it is empty']],
    [
      "a key that occurs twice",
      lines(header, row("A1"), row("A2"), row("A1")),
      ['line 4: iata "A1" is on line 2 already']
    ],
    [
      "a quote that is never closed",
      lines(header, row("A1"), 'A2,"a,b,c,d,1,1', row("A3")),
      ["line 3: a quote is opened and never closed"]
    ],
    [
      "a quote in the wrong place",
      lines(header, row("A1"), 'A2,"a"b,c,c,d,1,1', row("A3")),
      ["line 3: a quote is in the wrong place"]
    ],
    [
      "text that is not UTF-8",
      Buffer.from(lines(header, "A1,Z\u00fcrich,b,c,d,1,1"), "latin1"),
      ["line 2: it is not UTF-8"]
    ],
    [
      "NUL",
      lines(header, "A1,a\0b,b,c,d,1,1"),
      ['line 2: name is "a\\u0000b": it contains NUL or half a character, which PostgreSQL cannot store']
    ]
  ]
  for (const [name, text, expected] of wrong) {
    it.scopedLive(`${name} is refused with its line`, () =>
      Effect.gen(function* () {
        expect(yield* problems(text)).toEqual(expected)
      })
    )
  }

  it.scopedLive("line numbers are those of an editor, also after fields with line breaks and blank lines", () =>
    Effect.gen(function* () {
      const text = lines(
        header,
        'A1,"two\nlines",b,c,d,1,1',
        "",
        "A2,a,b,c,d,x,1",
        'A3,"three\r\nmore\nlines",b,c,d,y,1'
      )
      expect(yield* problems(text)).toEqual([
        'line 5: latitude is "x": expected a number like 12.5',
        'line 6: latitude is "y": expected a number like 12.5'
      ])
    })
  )

  it.scopedLive("all problems of a file are reported at once, and no row follows the first problem", () =>
    Effect.gen(function* () {
      const rows: Array<string> = []
      const name = yield* file(lines(header, row("A1"), row(""), row("A3"), "A4"))
      const error = yield* Csv.rows(name).pipe(
        Stream.runForEach(({ airport }) => Effect.sync(() => rows.push(airport.iata))),
        Effect.flip
      )
      expect(rows).toEqual(["A1"])
      expect(error.problems).toHaveLength(2)
    })
  )
})

describe("a file with endless wrong lines", () => {
  it.scopedLive("a file with endless wrong lines is refused after 1000 of them, with few words for each", () =>
    Effect.gen(function* () {
      const pipe = `${yield* file("")}.pipe`
      execFileSync("mkfifo", [pipe])
      const wrong = `A1,a,b,c,d,${"y".repeat(100_000)},z`
      yield* Effect.acquireRelease(
        Effect.sync(() => spawn("sh", ["-c", '(echo "$1"; yes "$2") >"$3"', "sh", header, wrong, pipe])),
        (writer) => Effect.sync(() => writer.kill())
      )
      const error = yield* Effect.flip(Stream.runDrain(Csv.rows(pipe)))
      expect(error.problems).toHaveLength(1000)
      expect(Math.max(...error.problems.map((problem) => problem.length))).toBeLessThan(300)
      expect(error.message).toMatch(/and 990 more, and the rest has not been read$/)
    })
  )
})

describe("--csv", () => {
  const stored = (env: { readonly app: Parameters<typeof query>[0] }) =>
    query<{ iata: string; name: string }>(env.app, "SELECT iata, name FROM record ORDER BY iata")

  it.scopedLive("--csv imports another file with the same columns, and a later file changes and adds rows", () =>
    Effect.gen(function* () {
      const { env, ...urls } = yield* Program.databases
      const first = yield* file(`${header}\r\nA1,"one, first",b,c,d,1,1\r\n${row("A2")}\r\n`)
      const second = yield* file(lines(header, "A1,changed,b,c,d,1,1", row("A3")))
      for (const name of [first, first, second]) {
        const service = yield* Program.start(["--csv", name], env)
        expect(yield* service.line(/imported (\d+) rows/)).toBe("2")
        yield* service.url
        yield* service.signal("SIGINT")
        expect(yield* service.ended).toMatchObject({ code: 0, stderr: "" })
        if (name === first) {
          expect(yield* stored(urls)).toEqual([
            { iata: "A1", name: "one, first" },
            { iata: "A2", name: "Name" }
          ])
        }
      }
      expect((yield* stored(urls)).map(({ iata, name }) => [iata, name])).toEqual([
        ["A1", "changed"],
        ["A2", "Name"],
        ["A3", "Name"]
      ])
      expect(yield* query(urls.audit, "SELECT what, subject FROM event")).toEqual(
        Array(3).fill({ what: "records.imported", subject: "some.csv" })
      )
    })
  )

  it.scopedLive("a malformed line at the end of a pipe is named, and leaves nothing in either database", () =>
    Effect.gen(function* () {
      const { env, ...urls } = yield* Program.databases
      const many = Array.from({ length: 1000 }, (_, i) => row(`R${i}`))
      const name = yield* file(lines(header, ...many, "broken,line"))
      const pipe = `${name}.pipe`
      execFileSync("mkfifo", [pipe])
      yield* Effect.acquireRelease(
        Effect.sync(() => spawn("sh", ["-c", 'cat "$1" >"$2"', "sh", name, pipe])),
        (writer) => Effect.sync(() => writer.kill())
      )
      const { code, stderr } = yield* Program.run(["--csv", pipe], env)
      expect(code).toBe(1)
      expect(stderr).toBe(
        `error: ${pipe} cannot be imported, and nothing of it is stored:\n  line 1002: it has 2 fields, expected 7\n`
      )
      expect(yield* stored(urls)).toEqual([])
      expect(yield* query(urls.audit, "SELECT * FROM event")).toEqual([])
    })
  )

  it.scopedLive("an unreadable or wrong file ends with 1 and one clear error, before anything is started", () =>
    Effect.gen(function* () {
      const { env, ...urls } = yield* Program.databases
      const cases = [
        [yield* file(""), `it is empty; expected the columns ${header}`],
        [
          yield* file(lines("iata,name", "A1,a")),
          "line 1: the column city, state, country, latitude, longitude is missing"
        ],
        [yield* file(lines(header, row("A1"), row("A1"))), 'line 3: iata "A1" is on line 2 already'],
        ["/nowhere/some.csv", "there is no such file"],
        [os.tmpdir(), "it is a folder"]
      ] as const
      yield* Effect.forEach(
        cases,
        ([name, problem]) =>
          Effect.gen(function* () {
            expect(yield* Program.run(["--csv", name], env)).toEqual({
              code: 1,
              stdout: "",
              stderr: `error: ${name} cannot be imported, and nothing of it is stored:\n  ${problem}\n`
            })
          }),
        { concurrency: 2 }
      )
      for (const url of [urls.app, urls.audit]) {
        expect(yield* query(url, "SELECT relname FROM pg_stat_user_tables")).toEqual([])
      }
    })
  )
})
