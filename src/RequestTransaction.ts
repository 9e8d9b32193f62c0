/**
 * A unit of work per HTTP request.
 *
 * @since 0.1.0
 */
import * as HttpApp from "@effect/platform/HttpApp"
import * as HttpServerResponse from "@effect/platform/HttpServerResponse"
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FiberRef from "effect/FiberRef"
import type { DatabaseError } from "./DatabaseError.js"
import { currentCarrier } from "./internal/carrier.js"
import { isReplayable } from "./RetryPolicy.js"
import * as UnitOfWork from "./UnitOfWork.js"

/**
 * @since 0.1.0
 * @category models
 */
export interface Options {
  /** How a response ends the unit of work. Default: a status below 400 commits, any other rolls back. */
  readonly outcome?: ((response: HttpServerResponse.HttpServerResponse) => UnitOfWork.Outcome) | undefined
  /** The response that is sent where the commit failed. Default: {@link commitFailed}. */
  readonly onCommitFailed?: ((error: DatabaseError) => HttpServerResponse.HttpServerResponse) | undefined
}

/**
 * The response where a commit failed: 409 where the request may simply be sent again, 503 where the database was lost, else 500. What the
 * database said is logged, not sent.
 *
 * @since 0.1.0
 * @category responses
 */
export const commitFailed = (error: DatabaseError): HttpServerResponse.HttpServerResponse => {
  const lost = error._tag === "CommitOutcomeUnknown" || error._tag === "Disconnected"
  const [status, title] =
    isReplayable(error) && !lost
      ? [409, "The request collided with another one and was not stored; send it again"]
      : lost
        ? [503, "The database was lost while the request was stored; look whether it is there before you send it again"]
        : [500, "The request could not be stored"]
  return HttpServerResponse.unsafeJson(
    { type: "about:blank", title, status },
    { status, contentType: "application/problem+json" }
  )
}

const byStatus = (response: HttpServerResponse.HttpServerResponse): UnitOfWork.Outcome =>
  response.status < 400 ? "commit" : "rollback"

/**
 * Runs each request as one unit of work: one lazy transaction per database touched. A response below 400 commits; 400 and above, a failure,
 * a defect and an interruption roll back. The response is sent after the commit, never before, and a commit that fails turns it into an
 * error. A streaming body runs after the commit, outside of it.
 *
 * It may stand anywhere: around a router's handlers, or around the whole server. Inside of another unit of work it joins.
 *
 * @example
 * import { HttpRouter, HttpServerResponse } from "@effect/platform"
 * import { Effect } from "effect"
 * import { Database, RequestTransaction } from "effect-db"
 *
 * class Db extends Database.Service<Db>()("app") {}
 *
 * export const router = HttpRouter.empty.pipe(
 *   HttpRouter.post(
 *     "/todos",
 *     Effect.flatMap(Db.writer, (sql) => sql`INSERT INTO todo (title) VALUES ('milk')`).pipe(
 *       Effect.as(HttpServerResponse.empty({ status: 201 }))
 *     )
 *   ),
 *   HttpRouter.use(RequestTransaction.middleware())
 * )
 *
 * @since 0.1.0
 * @category middleware
 */
export const middleware = (options: Options = {}): (<E, R>(app: HttpApp.Default<E, R>) => HttpApp.Default<E, R>) => {
  const outcome = options.outcome ?? byStatus
  const onCommitFailed = options.onCommitFailed ?? commitFailed
  return (app) =>
    Effect.uninterruptibleMask((restore) =>
      Effect.withFiberRuntime((fiber) => {
        const outside = fiber.currentContext
        const carrier = currentCarrier(fiber)
        if (carrier?.unit !== undefined) return restore(app)
        const unit = UnitOfWork.open(carrier, true)
        // a rollback does not fail
        const rollback = Effect.ignore(unit.end("rollback", undefined))
        const end = (response: HttpServerResponse.HttpServerResponse) =>
          unit.hasEnded()
            ? Effect.succeed(response)
            : Effect.sync(() => outcome(response)).pipe(
                Effect.onError(() => rollback),
                Effect.flatMap((decided) => unit.end(decided, restore)),
                Effect.as(response),
                Effect.catchAll((error) => Effect.as(Effect.logError(error.message), onCommitFailed(error)))
              )
        const enter = FiberRef.set(
          FiberRef.currentContext,
          Context.add(outside, TransactionConnection, unit.carrier.slot)
        )
        const leave = FiberRef.set(FiberRef.currentContext, outside)
        // around a whole server the response is sent inside of `app`: there the handler before the response ends the unit
        return Effect.zipRight(
          Effect.zipRight(
            HttpApp.appendPreResponseHandler((_, response) => end(response)),
            enter
          ),
          Effect.matchCauseEffect(restore(app), {
            onFailure: (cause) => Effect.zipRight(Effect.zipRight(leave, rollback), Effect.failCause(cause)),
            onSuccess: (response) => Effect.zipRight(leave, end(response))
          })
        )
      })
    )
}
