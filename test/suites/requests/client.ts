/** Who sends requests to a site, and looks at what they have left. */
import * as http from "node:http"
import * as Effect from "effect/Effect"
import { events } from "../../fixtures/audit.js"
import { active, soon } from "../../fixtures/databases.js"
import { query } from "../../fixtures/server.js"
import { Site } from "./site.js"

/** What is sent where a commit has failed. */
export const problem = "application/problem+json"

export const post = (path: string) =>
  Effect.flatMap(Site, ({ port }) =>
    Effect.promise((signal) => fetch(`http://127.0.0.1:${port}${path}`, { method: "POST", redirect: "manual", signal }))
  )

export const textOf = (response: Response) => Effect.promise(() => response.text())

export const listOf = (response: Response) =>
  Effect.map(textOf(response), (text) => {
    const list: unknown = JSON.parse(text)
    return Array.isArray(list) ? list : []
  })

/** The rows that a handler has left, as somebody else sees them. */
export const stored = (handler: string) =>
  Effect.flatMap(Site, ({ writer }) =>
    Effect.map(
      query<{ name: string }>(writer, "SELECT name FROM item WHERE name LIKE $1 ORDER BY name", [`${handler}%`]),
      (rows) => rows.map(({ name }) => name)
    )
  )

export const noted = Effect.flatMap(Site, ({ run }) => run(Effect.orDie(events)))

/** Nothing is checked out any more. */
export const idle = Effect.flatMap(Site, ({ run }) =>
  Effect.repeat(run(active), { schedule: soon, until: (n) => n === 0 })
)

/** What came back. */
interface Answered {
  readonly status: number | undefined
  readonly headers: http.IncomingHttpHeaders
  readonly body: Buffer
  /** Whether its connection had served another request before. */
  readonly reused: boolean
}

/** Sends a request by hand, for what `fetch` does for itself. */
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

/** Sends a request that nobody waits for; the effect inside goes away. */
export const come = (handler: string): Effect.Effect<Effect.Effect<void>, never, Site> =>
  Effect.map(Site, ({ port }) => {
    const request = http.request({ host: "127.0.0.1", port, method: "POST", path: `/checked/${handler}` })
    request.on("error", () => {})
    request.end()
    return Effect.sync(() => void request.destroy())
  })
