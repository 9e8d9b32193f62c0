/** An HTTP client of a site, and the rows that its requests have stored. */
import * as http from "node:http"
import * as net from "node:net"
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { events } from "../../audit.js"
import { idle as returned } from "../../databases.js"
import { sends } from "../../proxy.js"
import { query } from "../../server.js"
import { Site } from "./site.js"

/** The content type of the answer to a request whose commit has failed. */
export const problem = "application/problem+json"

export const post = (path: string, headers: Readonly<Record<string, string>> = {}) =>
  Effect.flatMap(Site, ({ port }) =>
    Effect.promise((signal) =>
      fetch(`http://127.0.0.1:${port}${path}`, { method: "POST", redirect: "manual", headers, signal })
    )
  )

export const textOf = (response: Response) => Effect.promise(() => response.text())

export const listOf = (response: Response) =>
  Effect.map(textOf(response), (text) => {
    const list: unknown = JSON.parse(text)
    return Array.isArray(list) ? list : []
  })

/** Returns the rows that a handler has stored, as another session sees them. */
export const stored = (handler: string) =>
  Effect.flatMap(Site, ({ writer }) =>
    Effect.map(
      query<{ name: string }>(writer, "SELECT name FROM item WHERE name LIKE $1 ORDER BY name", [`${handler}%`]),
      (rows) => rows.map(({ name }) => name)
    )
  )

export const noted = Effect.flatMap(Site, ({ run }) => run(Effect.orDie(events)))

/** Waits until no connection of the handlers is checked out. */
export const idle = Effect.flatMap(Site, ({ run }) => run(returned))

/** An answer that was received in full. */
interface Answered {
  readonly status: number | undefined
  readonly headers: http.IncomingHttpHeaders
  readonly body: Buffer
  /** True if the connection had served another request before. */
  readonly reused: boolean
}

/** Sends a request by `node:http`, for features that `fetch` hides. */
export const send = (
  options: http.RequestOptions,
  prepare: (request: http.ClientRequest) => void = (request) => request.end()
): Effect.Effect<Answered, never, Site> =>
  Effect.flatMap(Site, ({ port }) =>
    Effect.promise(
      () =>
        new Promise<Answered>((resolve, reject) => {
          const request = http.request({ host: "127.0.0.1", port, method: "POST", ...options })
          request.once("error", reject)
          request.once("response", (response) => {
            const parts: Array<Buffer> = []
            response.once("error", reject)
            response.on("data", (part: Buffer) => parts.push(part))
            response.once("end", () =>
              resolve({
                status: response.statusCode,
                headers: response.headers,
                body: Buffer.concat(parts),
                reused: request.reusedSocket
              })
            )
          })
          prepare(request)
        })
    )
  )

/**
 * Sends a request, and holds back its COMMIT: asserts that until then nothing of the answer arrives
 * and no row of the handler is stored.
 */
export const sendAfterCommit = (handler: string, options: http.RequestOptions = {}) =>
  Effect.gen(function* () {
    const { front } = yield* Site
    const committing = yield* front.when(sends("COMMIT"), "freeze")
    let hasBegun = false
    const sending = yield* Effect.fork(
      send({ path: `/${handler}`, ...options }, (request) => {
        request.once("response", () => {
          hasBegun = true
        })
        request.end()
      })
    )
    yield* committing
    assert.deepStrictEqual(yield* stored(handler), [])
    assert.isFalse(hasBegun)
    yield* front.thaw
    return yield* Fiber.join(sending)
  })

/** Sends a request without waiting for the answer; the effect inside disconnects. */
export const come = (handler: string): Effect.Effect<Effect.Effect<void>, never, Site> =>
  Effect.map(Site, ({ port }) => {
    const request = http.request({ host: "127.0.0.1", port, method: "POST", path: `/checked/${handler}` })
    request.on("error", () => {})
    request.end()
    return Effect.sync(() => void request.destroy())
  })

/**
 * Writes several requests on one connection without waiting for answers; returns the statuses of
 * the answers.
 */
export const atOnce = (paths: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<number>, never, Site> =>
  Effect.flatMap(Site, ({ port }) =>
    Effect.async((resume) => {
      let text = ""
      const socket = net.connect(port, "127.0.0.1")
      socket.setEncoding("latin1").on("data", (part: string) => {
        text += part
      })
      socket.once("error", (error) => resume(Effect.die(error)))
      socket.once("close", () =>
        resume(Effect.succeed([...text.matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, status]) => Number(status))))
      )
      const head = (path: string) => `POST ${path} HTTP/1.1\r\nhost: here\r\ncontent-length: 0\r\n`
      socket.write(`${paths.map(head).join("\r\n")}connection: close\r\n\r\n`)
      return Effect.sync(() => socket.destroy())
    })
  )
