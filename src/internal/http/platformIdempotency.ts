/**
 * The idempotency keys of requests of @effect/platform.
 */
import type * as Body from "@effect/platform/HttpBody"
import type { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import * as HttpServerRespondable from "@effect/platform/HttpServerRespondable"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Effect from "effect/Effect"
import type { DatabaseError } from "../../DatabaseError.js"
import { type KeyedFacts, type KeyOptions, type KeyProblem, keyIn, requestKeyOf } from "./idempotencyKey.js"
import type { KeptAnswer } from "./keptAnswer.js"
import { type Earlier, type KeyDatabase, KeyedRequest, openKeyDatabase } from "./keyedRequest.js"
import { problemType } from "./problemJson.js"
import { makeReplayable, wasRead } from "./replayableRequest.js"
import { pathOf } from "./requestLabel.js"

type Request = HttpServerRequest
type Response = HttpServerResponse.HttpServerResponse

/** Options of the keys of requests of @effect/platform. */
export type PlatformKeyOptions<Self> = KeyOptions<KeyDatabase<Self>, Request>

const problemOf = (problem: KeyProblem): Response =>
  HttpServerResponse.unsafeJson(problem, { status: problem.status, contentType: problemType })

/** Makes the response of an earlier request. */
export const earlierResponse = (earlier: Earlier): Response => {
  if ("problem" in earlier) return problemOf(earlier.problem)
  const { body, headers, status } = earlier.kept
  const fields = Object.fromEntries(headers)
  return body.byteLength === 0
    ? HttpServerResponse.empty({ status, headers: fields })
    : HttpServerResponse.uint8Array(body, { status, headers: fields, contentType: fields["content-type"] })
}

const bytesOf = (body: Body.HttpBody): Uint8Array | undefined =>
  body._tag === "Empty" ? new Uint8Array() : body._tag === "Uint8Array" ? body.body : undefined

/** Returns a response as an answer to keep, if its body is known as a whole. */
export const answerOf = ({ body, headers, status }: Response): KeptAnswer | undefined => {
  const bytes = bytesOf(body)
  if (bytes === undefined) return undefined
  const type = body._tag === "Uint8Array" ? body.contentType : undefined
  const all = type === undefined ? headers : { ...headers, "content-type": type }
  return { status, headers: Object.entries(all), body: bytes }
}

/** Request that may run, with its key if it has one. */
export interface Admitted {
  readonly keyed: KeyedRequest | undefined
  /** The request to run, whose body can be read although it was read for the key. */
  readonly request: Request
}

const factsOf = ({ headers, method, originalUrl }: Request): KeyedFacts => ({
  method,
  // the address of a web request has the host, which is not a part of the key
  path: pathOf(originalUrl).replace(/^[a-z]+:\/\/[^/]*/i, ""),
  header: (name) => headers[name]
})

/**
 * Checks the key of a request. It returns the response if the request must not run. A body that
 * cannot be kept is not a part of the fingerprint.
 */
export const admit = <Self>(
  options: PlatformKeyOptions<Self>,
  request: Request,
  isRepeatable: boolean,
  refused: (error: DatabaseError) => Effect.Effect<Response>
): Effect.Effect<Admitted | Response, never, Self> => {
  const facts = factsOf(request)
  const key = keyIn(facts, options)
  if (key === undefined) return Effect.succeed({ keyed: undefined, request })
  if (typeof key !== "string") return Effect.succeed(problemOf(key))
  return Effect.gen(function* () {
    const opened = yield* openKeyDatabase(options.database)
    // a body that other code has read cannot be read again
    const isKept = isRepeatable && !wasRead(request)
    const fresh = isKept ? yield* makeReplayable(request) : () => request
    const content = options.fingerprint?.(request) ?? (isKept ? new Uint8Array(yield* fresh().arrayBuffer) : undefined)
    const stored = requestKeyOf(key, facts, options.scope?.(request) ?? "", request.originalUrl, content)
    const keyed = new KeyedRequest(opened, stored, options.keepAnswer)
    const earlier = yield* keyed.earlier
    return earlier === undefined ? { keyed, request: fresh() } : earlierResponse(earlier)
  }).pipe(
    Effect.catchAll((error) =>
      error._tag === "RequestError" ? HttpServerRespondable.toResponse(error) : refused(error)
    )
  )
}
