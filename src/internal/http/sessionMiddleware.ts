/**
 * The middleware that gives each client a session: reads of its later requests see its writes.
 */

import * as HttpApp from "@effect/platform/HttpApp"
import { HttpServerRequest } from "@effect/platform/HttpServerRequest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { withSession } from "../../Consistency.js"
import { addTokens } from "./requestAttempt.js"
import { type SessionTokenOptions, SessionTokens, sessionOf } from "./sessionCookie.js"

/** Makes the middleware of the sessions of clients. */
export const makeSessionMiddleware = (
  options: SessionTokenOptions
): (<E, R>(app: HttpApp.Default<E, R>) => HttpApp.Default<E, R>) => {
  const tokens = new SessionTokens(options)
  return <E, R>(app: HttpApp.Default<E, R>): HttpApp.Default<E, R> =>
    Effect.withFiberRuntime((fiber) => {
      // the middleware around this one returns the tokens
      if (sessionOf(fiber) !== undefined) return app
      const { headers } = Context.unsafeGet(fiber.currentContext, HttpServerRequest)
      const session = tokens.session((name) => headers[name])
      return Effect.zipRight(
        // also if the app fails and another response is sent, because the app may have stored
        // something before
        HttpApp.appendPreResponseHandler((_, response) => Effect.sync(() => addTokens(session, response))),
        withSession(app, session)
      )
    })
}
