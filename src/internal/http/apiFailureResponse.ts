/**
 * The responses that encode the failures of an `HttpApi`. The builder of the API encodes failures
 * outside of all middleware, so a middleware gets the failure and not the response.
 */
import type { Api, HttpApi } from "@effect/platform/HttpApi"
import * as HttpApiSchema from "@effect/platform/HttpApiSchema"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import * as Cause from "effect/Cause"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"

/** Function that encodes a failure, if the API declares it. */
type Encode = (failure: unknown) => Effect.Effect<HttpServerResponse.HttpServerResponse, unknown>

/**
 * The key of the service. Importing the service or the builder would load an HTTP client and a
 * server.
 */
const key: (typeof Api)["key"] = "@effect/platform/HttpApi/Api"

const encoders = new WeakMap<object, ReadonlyArray<Encode>>()

/** Makes the response of an encoded failure by the annotations of its schema. */
const respond = (schema: Schema.Schema.Any, encoded: unknown) => {
  const status = HttpApiSchema.getStatusErrorAST(schema.ast)
  if (HttpApiSchema.isVoid(schema.ast)) return Effect.succeed(HttpServerResponse.empty({ status }))
  const { contentType, kind } = HttpApiSchema.getEncoding(schema.ast)
  const options = { status, contentType }
  // the casts: `withEncoding` accepts a kind only if the encoded type of the schema matches it
  switch (kind) {
    case "Json":
      return HttpServerResponse.json(encoded, options)
    case "Text":
      return Effect.succeed(HttpServerResponse.text(encoded as string, options))
    case "Uint8Array":
      return Effect.succeed(HttpServerResponse.uint8Array(encoded as Uint8Array, options))
    case "UrlParams":
      return Effect.succeed(HttpServerResponse.urlParams(encoded as Record<string, string>, options))
  }
}

/** Returns the encoders of all errors that an API declares. */
const encodersOf = ({ api, context }: Api["Type"]): ReadonlyArray<Encode> => {
  const schemas = new Set<Schema.Schema.Any>()
  // the cast: the type of the service does not have the errors
  const { errorSchema, groups } = api as unknown as HttpApi.AnyWithProps
  HttpApiSchema.deunionize(schemas, errorSchema)
  for (const { endpoints, errorSchema } of Object.values(groups)) {
    HttpApiSchema.deunionize(schemas, errorSchema)
    for (const endpoint of Object.values(endpoints)) HttpApiSchema.deunionize(schemas, endpoint.errorSchema)
  }
  return [...schemas].map((schema): Encode => {
    // the cast: the context of the API has the services of its schemas
    const encode = Schema.encodeUnknown(schema as Schema.Schema<unknown, unknown>)
    return (failure) =>
      Effect.provide(
        Effect.flatMap(encode(failure), (encoded) => respond(schema, encoded)),
        context
      )
  })
}

/**
 * Returns the response that encodes a failure. Returns `undefined` after an interruption, if no
 * `HttpApi` is around, or if the API does not declare the failure.
 */
export const responseOf = (
  around: Context.Context<never>,
  cause: Cause.Cause<unknown>
): Effect.Effect<HttpServerResponse.HttpServerResponse | undefined> | undefined => {
  const service: Api["Type"] | undefined = around.unsafeMap.get(key)
  if (service === undefined || Cause.isInterruptedOnly(cause)) return undefined
  let known = encoders.get(service)
  if (known === undefined) {
    known = encodersOf(service)
    encoders.set(service, known)
  }
  const failure = Cause.squash(cause)
  const attempts = known.map((encode) => Effect.suspend(() => encode(failure)))
  return Effect.orElseSucceed(Effect.firstSuccessOf(attempts), () => undefined)
}
