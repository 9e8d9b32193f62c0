import type { IncomingMessage } from "node:http"
import { isIP } from "node:net"
import { type Headers, HttpApiSchema, type HttpApp, HttpServerRequest, HttpServerResponse } from "@effect/platform"
import { NodeHttpServerRequest } from "@effect/platform-node"
import { Config, Effect, Schema } from "effect"

const mostBytes = 1_000_000

class TooLong extends Schema.TaggedError<TooLong>()(
  "TooLong",
  { message: Schema.String },
  HttpApiSchema.annotations({ status: 413, description: `The body is longer than ${mostBytes} bytes` })
) {}

class CrossSite extends Schema.TaggedError<CrossSite>()(
  "CrossSite",
  { message: Schema.String },
  HttpApiSchema.annotations({ status: 403, description: "A page of another site asks for a change" })
) {}

/** The refusals of requests that change something. */
export const Refused = Schema.Union(CrossSite, TooLong)

const respond = (status: number, error: TooLong | CrossSite) =>
  Effect.succeed(HttpServerResponse.unsafeJson({ _tag: error._tag, message: error.message }, { status }))

/** The methods whose handlers read a body. */
const takeBodies = new Set(["POST", "PUT", "PATCH"])

const tooLong = respond(413, new TooLong({ message: `the body is longer than ${mostBytes} bytes` }))

/** Reads a body up to the limit. The rest of a longer one is received and discarded, so that the client reads the answer. */
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

/** Refuses bodies that are too long: by `content-length` before they are read, or, without that header, when the limit is exceeded. */
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

/** Refuses multipart bodies: no endpoint takes files, which would be written to disk before the request is checked. */
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
 * Checks if a host is a name of this service. Another site may point its own name to this address, and browsers then treat its pages as
 * pages of this service. Addresses and `localhost` are accepted, because they cannot be the name of another site.
 */
const isOurs = (host: string, allowed: ReadonlyArray<string>): boolean => {
  const [, name = ""] = /^(\[[^\]]*\]|[^:]*)(?::\d+)?$/.exec(host.toLowerCase()) ?? []
  const isLocal = name === "localhost" || name.endsWith(".localhost")
  return isLocal || isIP(name.replace(/^\[(.*)\]$/, "$1")) !== 0 || (name !== "" && allowed.includes(name))
}

/** Checks the headers with which browsers report the origin of a request. Other clients do not send them, and run no pages of other sites. */
const isOwn = (headers: Headers.Headers): boolean => {
  const site = headers["sec-fetch-site"]
  if (site !== undefined) return site === "same-origin" || site === "none"
  const { host, origin } = headers
  return origin === undefined || origin === `http://${host}` || origin === `https://${host}`
}

const reads = new Set(["GET", "HEAD", "OPTIONS"])

const foreign = (message: string) => respond(403, new CrossSite({ message }))

/** Refuses changes that a page of another site sends from the browser of a visitor. */
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
