/**
 * The rows of a statement as a stream that fetches them from a portal, batch by batch.
 */

import type { SqlError } from "@effect/sql/SqlError"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { SchemaInvalid, toSqlError } from "../../DatabaseError.js"
import { isNotSent } from "../../RetryPolicy.js"
import type { Role } from "../../Topology.js"
import type { Exchange, Request } from "../connection/connection.js"
import { hasTracer } from "../observability/transactionSpan.js"
import { PortalFetcher } from "../statement/portalFetcher.js"
import { withComment } from "../statement/workLabel.js"
import { scoped } from "../transaction/ambientScopes.js"
import { commitUninterruptibly, rollback, sendCommit } from "../transaction/completion.js"
import { currentContext } from "../transaction/context.js"
import { openPortal, type Portal } from "../transaction/portal.js"
import type { Transaction } from "../transaction/transaction.js"
import type { Executor } from "./executor.js"
import { sandboxRefusal } from "./sandboxRefusal.js"
import { reportServer } from "./serverOfSpan.js"
import type { TransformRows } from "./sqlConnection.js"

/** The number of rows of a fetch. */
const batch = 128

/**
 * The timeout, in ms, of the fetch in progress when the consumer stops early. The close of the
 * stream waits for this fetch and then for a COMMIT, which together must end within a second.
 */
const lastFetchTimeout = 400

const toChunk = (exchange: Exchange, transformRows: TransformRows): Chunk.Chunk<object> => {
  const rows: ReadonlyArray<object> = exchange.result.rows
  return Chunk.unsafeFromArray(transformRows === undefined ? rows : transformRows(rows))
}

/**
 * Ownership of the transaction of a stream: the stream ends its `own` transaction, but not a
 * `shared` one.
 */
type Ownership = "own" | "shared"

/**
 * Returns the rows of a statement in a transaction, batch by batch; other statements of the
 * transaction may run in between.
 */
const portalStream = (
  executor: Executor,
  transaction: Transaction,
  request: Request,
  transformRows: TransformRows,
  ownership: Ownership,
  onSent: () => void
): Effect.Effect<Stream.Stream<object, SqlError>, SqlError, Scope.Scope> =>
  Effect.withFiberRuntime((fiber) => {
    let portal: Portal | undefined
    let ended = false
    const isOwn = ownership === "own"
    const fetches = new PortalFetcher((done) => portal?.next(done) ?? (() => {}))
    const open = executor.retry.attempt(
      fiber,
      (done) =>
        openPortal(
          transaction.level,
          request,
          batch,
          (failure, opened) => {
            portal = opened
            done(failure, opened?.first)
          },
          onSent
        ),
      (exchange) => exchange,
      isNotSent
    )
    const more = executor.retry.attempt(
      fiber,
      (done) => fetches.next(done),
      (exchange) => exchange,
      () => false
    )
    const end = Effect.mapError(
      Effect.uninterruptibleMask((restore) => sendCommit(transaction, restore)),
      toSqlError
    )
    const pull: Effect.Effect<Chunk.Chunk<object>, Option.Option<SqlError>> = Effect.suspend(() =>
      ended
        ? Effect.fail(Option.none())
        : Effect.mapError(
            Effect.flatMap(portal === undefined ? open : more, (exchange) => {
              ended = !exchange.isSuspended
              const chunk = toChunk(exchange, transformRows)
              return ended && isOwn ? Effect.as(end, chunk) : Effect.succeed(chunk)
            }),
            Option.some
          )
    )
    const settle = Effect.async<boolean>((resume) => fetches.drain(lastFetchTimeout, (_) => resume(Effect.succeed(_))))
    const close = (isOver: boolean) =>
      Effect.async<void>((resume) => {
        if (portal === undefined || ended) return resume(Effect.void)
        portal.close(isOver, () => resume(Effect.void))
      })
    const drop = Effect.suspend(() => (isOwn ? rollback(transaction, undefined) : close(true)))
    /**
     * Commits an own transaction, or closes the portal in a shared one, so that the writes of the
     * statement are kept.
     */
    const keep = Effect.suspend(() => {
      if (!isOwn) return close(false)
      if (transaction.level.state !== "open") return drop
      return Effect.catchAll(commitUninterruptibly(transaction), (error) =>
        Effect.zipRight(drop, Effect.logError(error.message))
      )
    })
    return Effect.as(
      Effect.addFinalizer((exit) => {
        // after a success before the last row, the consumer has stopped early; before the first
        // rows, that counts as an interruption
        if (Exit.isSuccess(exit) && portal !== undefined)
          return Effect.if(settle, { onTrue: () => keep, onFalse: () => drop })
        fetches.abort()
        return drop
      }),
      Stream.repeatEffectChunkOption(pull)
    )
  })

/** Function that makes the stream of a statement. */
export type MakeStream = (made: Request, transformRows: TransformRows) => Stream.Stream<object, SqlError>

/**
 * Makes the streams of statements. Each runs in the transaction around it, or in a transaction of
 * its own.
 */
export const makeStream =
  (executor: Executor, kind: Role): MakeStream =>
  (made, transformRows) =>
    Stream.unwrapScoped(
      Effect.withFiberRuntime<Stream.Stream<object, SqlError>, SqlError, Scope.Scope>((fiber) => {
        const reported = hasTracer(fiber) ? reportServer(fiber, made) : made
        const ambient = currentContext(fiber)
        const request = scoped(
          fiber.currentContext,
          ambient,
          executor.database,
          withComment(reported, ambient?.work(fiber))
        )
        if (request instanceof SchemaInvalid) return Effect.fail(toSqlError(request))
        const refusal = sandboxRefusal(executor, request)
        if (refusal !== undefined) return Effect.fail(toSqlError(refusal))
        const found = executor.transactionFor(fiber, ambient, kind)
        if (found !== undefined) {
          if (kind === "writer") executor.recordCausalSession(fiber, ambient, found)
          if (kind === "writer" || found.readOnly) {
            const part = kind === "writer" ? ambient?.part(found) : undefined
            return portalStream(executor, found, request, transformRows, "shared", () => part?.recordSent(found))
          }
          // the read gets a read-only savepoint, during which no other statement of the transaction
          // can run, so all rows are read at once
          return Effect.map(
            executor.run(fiber, kind, reported, (exchange) => toChunk(exchange, transformRows)),
            Stream.fromChunk
          )
        }
        const own = executor.begin(kind, {}, fiber, ambient)
        if (kind === "writer") executor.recordCausalSession(fiber, ambient, own)
        return portalStream(executor, own, request, transformRows, "own", () => {})
      })
    )
