/**
 * The middleware that makes a causal session for each client. Later requests of the client read its
 * writes.
 */

import * as HttpApp from "@effect/platform/HttpApp"
import { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { withSession } from "../../Consistency.js"
import { addTokens } from "./requestAttempt.js"
import { type SessionTokenOptions, SessionTokens, sessionOf } from "./sessionTokens.js"

/** Makes the middleware of the sessions of clients. */
export const makeSessionMiddleware = (
  options: SessionTokenOptions
): (<E, R>(app: HttpApp.Default<E, R>) => HttpApp.Default<E, R>) => {
  const tokens = new SessionTokens(options)
  return <E, R>(app: HttpApp.Default<E, R>): HttpApp.Default<E, R> =>
    Effect.withFiberRuntime((fiber) => {
      // a middleware around this one has made the session, and sends its tokens
      if (sessionOf(fiber) !== undefined) return app
      const { headers } = Context.unsafeGet(fiber.currentContext, HttpServerRequest)
      const session = tokens.session((name) => headers[name])
      return Effect.zipRight(
        // a response to a failure gets the tokens, too, because the app may have stored something
        HttpApp.appendPreResponseHandler((_, response) => Effect.sync(() => addTokens(session, response))),
        withSession(app, session)
      )
    })
}
