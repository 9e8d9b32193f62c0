/** Input that the example service refuses. */
import * as Http1 from "node:http"
import { describe, expect, type Vitest } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { EmbeddedPostgres } from "effect-db/EmbeddedPostgres"
import { Service, send, todo } from "../../service.js"

export const wrongInput = (it: Vitest.MethodsNonLive<EmbeddedPostgres | Service, true>): void => {
  describe("wrong input", () => {
    const cases: ReadonlyArray<readonly [string, string, string, unknown, string]> = [
      ["a todo without a title", "POST", "/todos", {}, "title: is missing"],
      ["a title of another type", "POST", "/todos", { title: 1 }, "title: expected a text"],
      ["an empty title", "POST", "/todos", { title: " " }, "title: it is empty"],
      [
        "a title that is too long",
        "POST",
        "/todos",
        { title: "x".repeat(201) },
        "title: it is longer than 200 characters"
      ],
      [
        "a title with NUL",
        "POST",
        "/todos",
        { title: "a\0b" },
        "title: it contains NUL or half a character, which PostgreSQL cannot store"
      ],
      [
        "a title with half a character",
        "POST",
        "/todos",
        { title: "\ud800" },
        "title: it contains NUL or half a character, which PostgreSQL cannot store"
      ],
      ["a misspelt field", "POST", "/todos", { title: "a", don: true }, 'don: is unexpected, expected: "id" | "title"'],
      [
        "an id with a space",
        "POST",
        "/todos",
        { id: "a b", title: "a" },
        "id: expected 1 to 64 letters, digits, - or _"
      ],
      [
        "an id of another type",
        "POST",
        "/todos",
        { id: 7, title: "a" },
        "id: expected 1 to 64 letters, digits, - or _"
      ],
      [
        "a todo with two wrong fields",
        "POST",
        "/todos",
        { id: "", title: 1 },
        "id: expected 1 to 64 letters, digits, - or _; title: expected a text"
      ],
      [
        "a todo that is a list",
        "POST",
        "/todos",
        [],
        'the request: expected JSON (content-type: application/json) such as {"title":"Buy milk"}'
      ],
      [
        "a request without a body",
        "POST",
        "/todos",
        undefined,
        'the request: expected JSON (content-type: application/json) such as {"title":"Buy milk"}'
      ],
      [
        "a change that is a list",
        "PATCH",
        "/todos/a",
        [],
        'the request: expected JSON (content-type: application/json) such as {"done":true}'
      ],
      ["an empty change", "PATCH", "/todos/a", {}, "the request: there is nothing to change: give title or done"],
      ["a change of done to a word", "PATCH", "/todos/a", { done: "yes" }, "done: expected true or false"],
      ["an invalid id", "DELETE", "/todos/a%20b", undefined, "id: expected 1 to 64 letters, digits, - or _"],
      ["a filter with an unknown value", "GET", "/todos?done=maybe", undefined, "done: expected true or false"],
      ["a filter that is given twice", "GET", "/todos?done=true&done=true", undefined, "done: expected true or false"],
      ["page 0", "GET", "/records?page=0", undefined, "page: expected a whole number from 1 to 1000000"],
      [
        "a page that is no number",
        "GET",
        "/records?page=two",
        undefined,
        "page: expected a whole number from 1 to 1000000"
      ],
      ["a page that is too long", "GET", "/records?size=101", undefined, "size: expected a whole number from 1 to 100"],
      [
        "a search that is too long",
        "GET",
        `/records?search=${"x".repeat(101)}`,
        undefined,
        "search: it is longer than 100 characters"
      ],
      [
        "a load without a rate",
        "PUT",
        "/load",
        undefined,
        'the request: expected JSON (content-type: application/json) such as {"rate":50}'
      ],
      ["a load of another type", "PUT", "/load", { rate: "50" }, "rate: expected a whole number from 0 to 100"],
      ["a load below zero", "PUT", "/load", { rate: -1 }, "rate: expected a whole number from 0 to 100"],
      ["a load that is too high", "PUT", "/load", { rate: 101 }, "rate: expected a whole number from 0 to 100"],
      ["a load of half a request", "PUT", "/load", { rate: 0.5 }, "rate: expected a whole number from 0 to 100"],
      [
        "a load with an unknown field",
        "PUT",
        "/load",
        { rate: 1, kind: "reads" },
        'kind: is unexpected, expected: "rate"'
      ],
      [
        "a search with an unknown parameter",
        "GET",
        "/records?serach=x",
        undefined,
        'serach: is unexpected, expected: "search" | "page" | "size"'
      ]
    ]
    for (const [name, method, path, body, message] of cases) {
      it.effect(`${name} is 400, and the answer says why`, () =>
        Effect.gen(function* () {
          expect(yield* send(method, path, body)).toMatchObject({ status: 400, body: { message } })
        })
      )
    }

    it.effect("a body that is no JSON is 400, and the answer says so", () =>
      Effect.gen(function* () {
        expect(
          yield* send("POST", "/todos", undefined, {
            body: '{"title"',
            headers: { "content-type": "application/json" }
          })
        ).toMatchObject({
          status: 400,
          body: { message: "the body cannot be read: it must be JSON" }
        })
      })
    )

    for (const [name, type, text = "title=x"] of [
      ["a form without a boundary", "multipart/form-data"],
      ["a form that is not in parts", "multipart/form-data; boundary=x"],
      ["a form in parts", "multipart/form-data; boundary=x", "--x--"],
      ["nonsense", "nonsense"]
    ] as const) {
      it.effect(`a body whose type is ${name} is 400 or 415, and the answer has a message`, () =>
        Effect.gen(function* () {
          const { body, status } = yield* send("POST", "/todos", undefined, {
            body: text,
            headers: { "content-type": type }
          })
          expect([400, 415]).toContain(status)
          expect(body).toMatchObject({ message: expect.stringMatching(/./) })
        })
      )
    }

    it.effect("a body of more than 1 MB is 413", () =>
      Effect.gen(function* () {
        expect(yield* send("POST", "/todos", { title: "x".repeat(1_000_000) })).toMatchObject({ status: 413 })
      })
    )

    describe("a body of unknown length", () => {
      const json = { "content-type": "application/json" }
      const agent = new Http1.Agent({ keepAlive: true, maxSockets: 1 })

      /** Sends a body in pieces, without its length; all pieces are sent, whatever the answer. */
      const inPieces = (pieces: ReadonlyArray<string>, path = "/todos", method = "POST") =>
        Effect.flatMap(Service, ({ url }) =>
          Effect.async<{ readonly status: number | undefined; readonly body: unknown; readonly port: number }>(
            (resume) => {
              const request = Http1.request(`${url}${path}`, { agent, method, headers: json }, (response) => {
                const port = response.socket.localPort ?? 0
                let text = ""
                response.setEncoding("utf8").on("data", (piece: string) => {
                  text += piece
                })
                response.on("end", () => {
                  resume(Effect.succeed({ status: response.statusCode, body: JSON.parse(text), port }))
                })
              })
              request.on("error", (error) => resume(Effect.die(error)))
              for (const piece of pieces) request.write(piece)
              request.end()
            }
          )
        )

      it.effect("a body of unknown length that is too long is 413 in JSON, and its connection is kept", () =>
        Effect.gen(function* () {
          const long = ['{"title":"', ...Array.from({ length: 40 }, () => "x".repeat(100_000)), '"}']
          const refused = yield* inPieces(long)
          expect(refused).toMatchObject({
            status: 413,
            body: { _tag: "TooLong", message: "the body is longer than 1000000 bytes" }
          })
          const next = yield* inPieces(['{"id":"pieces-1","tit', 'le":"in pieces, ', 'ü"}'])
          expect(next).toMatchObject({ status: 201, body: { title: "in pieces, ü" }, port: refused.port })
          expect(yield* todo("pieces-1")).toEqual([{ title: "in pieces, ü", done: false }])
          expect(yield* inPieces(["{}"], "/todos/pieces-1", "PATCH")).toMatchObject({ status: 400 })
        })
      )

      it.effect("a body of unknown length is accepted up to the limit of 1,000,000 bytes, and refused beyond it", () =>
        Effect.gen(function* () {
          const of = (bytes: number) => [`{"title":"a"}${" ".repeat(bytes - 13)}`]
          expect(yield* inPieces(of(1_000_000))).toMatchObject({ status: 201 })
          expect(yield* inPieces(of(1_000_001))).toMatchObject({ status: 413 })
        })
      )
    })
  })
}
