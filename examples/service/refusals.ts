import {
  FileSystem,
  type Headers,
  HttpApiSchema,
  type HttpApp,
  HttpIncomingMessage,
  HttpServerRequest,
  HttpServerResponse
} from "@effect/platform"
import { Effect, Option, Schema } from "effect"

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

/** Refuses what is too long before it is read; what does not say how long it is ends when it is too long. */
export const notTooLong = (app: HttpApp.Default) =>
  Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ headers }) =>
    Number(headers["content-length"] ?? 0) > mostBytes
      ? respond(413, new TooLong({ message: `the body is longer than ${mostBytes} bytes` }))
      : Effect.provideService(app, HttpIncomingMessage.MaxBodySize, Option.some(FileSystem.Size(mostBytes)))
  )

/** Browsers say where a request comes from, older ones with its origin alone; what is no browser says nothing, and is not tricked. */
const isOwn = (headers: Headers.Headers): boolean => {
  const site = headers["sec-fetch-site"]
  if (site !== undefined) return site === "same-origin" || site === "none"
  const { host, origin } = headers
  return origin === undefined || origin === `http://${host}` || origin === `https://${host}`
}

const reads = new Set(["GET", "HEAD", "OPTIONS"])

/** Refuses changes that another site's page has its visitors send. */
export const notCrossSite = (app: HttpApp.Default) =>
  Effect.flatMap(HttpServerRequest.HttpServerRequest, ({ headers, method }) =>
    reads.has(method) || isOwn(headers)
      ? app
      : respond(403, new CrossSite({ message: "a page of another site cannot change anything here" }))
  )
