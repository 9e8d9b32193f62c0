import type { IncomingMessage } from "node:http"
import { isIP } from "node:net"
import { type Headers, HttpApiSchema, type HttpApp, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { NodeHttpServerRequest } from "@effect/platform-node"
import { Config, Effect, Schema } from "effect"

const mostBytes = 1_000_000

export class TooLong extends Schema.TaggedError<TooLong>()(
  "TooLong",
  { message: Schema.String },
  HttpApiSchema.annotations({ status: 413, description: `The body is longer than ${mostBytes} bytes` })
) {}

export class CrossSite extends Schema.TaggedError<CrossSite>()(
  "CrossSite",
  { message: Schema.String },
  HttpApiSchema.annotations({ status: 403, description: "A page of another site asks for a change" })
) {}

const respond = (status: number, error: TooLong | CrossSite) =>
  Effect.succeed(HttpServerResponse.unsafeJson({ _tag: error._tag, message: error.message }, { status }))

/** The methods whose handlers read a body. */
const takeBodies = new Set(["POST", "PUT", "PATCH"])

const tooLong = respond(413, new TooLong({ message: `the body is longer than ${mostBytes} bytes` }))

/** Reads a body up to the limit. What is left of a longer one is discarded as it comes, so that the client reads the answer. */
const readBody = (source: IncomingMessage) =>
  Effect.async<Buffer, "TooLong">((resume) => {
    const pieces: Array<Buffer> = []
    let size = 0
    const take = (piece: Buffer) => {
      size += piece.length
      pieces.push(piece)
      if (size > mostBytes) end(Effect.fail("TooLong"))
    }
    const all = () => end(Effect.sync(() => Buffer.concat(pieces)))
    // a client that goes away interrupts the request
    const gone = () => end(Effect.never)
    const discard = () => void source.off("data", take).off("end", all).resume()
    const end = (result: Effect.Effect<Buffer, "TooLong">) => {
      discard()
      resume(result)
    }
    source.on("data", take).on("end", all).on("error", gone)
    return Effect.sync(discard)
  })

/** Refuses what is too long: by its length before it is read, else when it is too long, with an answer instead of the end of its connection. */
export const notTooLong = (app: HttpApp.Default): HttpApp.Default =>
  Effect.flatMap(HttpServerRequest.HttpServerRequest, (request) => {
    const { headers, method, url } = request
    if (Number(headers["content-length"] ?? 0) > mostBytes) return tooLong
    if (headers["transfer-encoding"] === undefined || !takeBodies.has(method)) return app
    return Effect.matchEffect(readBody(NodeHttpServerRequest.toIncomingMessage(request)), {
      onFailure: () => tooLong,
      onSuccess: (body) => {
        const read = HttpServerRequest.fromWeb(new Request("http://localhost", { method, body }))
        return Effect.provideService(app, HttpServerRequest.HttpServerRequest, read.modify({ headers, url }))
      }
    })
  })

/** Nothing here takes files, which would be written down before anything else is known of them. */
export const notInParts = (app: HttpApp.Default) =>
  Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ headers }) =>
    /^\s*multipart\//i.test(headers["content-type"] ?? "")
      ? HttpServerResponse.json({ _tag: "NotJson", message: "the body must be JSON" }, { status: 415 }).pipe(
          Effect.orDie
        )
      : app
  )

const names = Config.string("ALLOWED_HOSTS").pipe(
  Config.withDefault(""),
  Config.map((list) =>
    list
      .toLowerCase()
      .split(",")
      .map((name) => name.trim())
  )
)

/**
 * Checks if a name is one of this service. Any site may have a name of its own lead to this address, and to a browser its page is then one of
 * ours; but an address is no name, and no one can take the name `localhost`.
 */
const isOurs = (host: string, allowed: ReadonlyArray<string>): boolean => {
  const [, name = ""] = /^(\[[^\]]*\]|[^:]*)(?::\d+)?$/.exec(host.toLowerCase()) ?? []
  const isLocal = name === "localhost" || name.endsWith(".localhost")
  return isLocal || isIP(name.replace(/^\[(.*)\]$/, "$1")) !== 0 || (name !== "" && allowed.includes(name))
}

/** Browsers say where a request comes from, older ones with its origin alone; what is no browser says nothing, and is not tricked. */
const isOwn = (headers: Headers.Headers): boolean => {
  const site = headers["sec-fetch-site"]
  if (site !== undefined) return site === "same-origin" || site === "none"
  const { host, origin } = headers
  return origin === undefined || origin === `http://${host}` || origin === `https://${host}`
}

const reads = new Set(["GET", "HEAD", "OPTIONS"])

const foreign = (message: string) => respond(403, new CrossSite({ message }))

/** Refuses changes that another site's page has its visitors send. */
export const notCrossSite = (app: HttpApp.Default) =>
  Effect.gen(function* () {
    const { headers, method } = yield* HttpServerRequest.HttpServerRequest
    if (reads.has(method)) return yield* app
    const allowed = yield* Effect.orElseSucceed(names, () => [])
    const { host } = headers
    if (host !== undefined && !isOurs(host, allowed)) {
      return yield* foreign(
        `${JSON.stringify(host)} is no name of this service; those it has are given in ALLOWED_HOSTS`
      )
    }
    return yield* isOwn(headers) ? app : foreign("a page of another site cannot change anything here")
  })
