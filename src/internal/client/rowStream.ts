/**
 * The rows of a statement as a stream: a portal that they are fetched from, a batch at a time.
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
import { commitUninterruptibly, rollback, sendCommit } from "../transaction/completion.js"
import { currentContext } from "../transaction/context.js"
import { scoped } from "../transaction/contextSlot.js"
import { openPortal, type Portal } from "../transaction/portal.js"
import type { Transaction } from "../transaction/transaction.js"
import type { Executor } from "./executor.js"
import type { TransformRows } from "./sqlConnection.js"
import { reportServer } from "./statementSpan.js"

/** How many rows of a stream are fetched at a time. */
const batch = 128

/**
 * How long the fetch that is under way may still take when the consumer has had enough, in ms. An interruption waits for that and for a
 * COMMIT, which are to be over within a second.
 */
const longestFetch = 400

const toChunk = (flight: Exchange, transformRows: TransformRows): Chunk.Chunk<object> => {
  const rows: ReadonlyArray<object> = flight.result.rows
  return Chunk.unsafeFromArray(transformRows === undefined ? rows : transformRows(rows))
}

/** Whose the transaction of a stream is: its own ends with it. */
type Ownership = "own" | "shared"

/**
 * The rows of a statement in a transaction, a batch at a time; other statements of the transaction may run in between.
 */
const portalStream = (
  engine: Executor,
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
    const open = engine.attempt(
      fiber,
      (done) =>
        openPortal(
          transaction.level,
          request,
          batch,
          (error, opened) => {
            portal = opened
            done(error, opened?.first)
          },
          onSent
        ),
      (flight) => flight,
      isNotSent
    )
    const more = engine.attempt(
      fiber,
      (done) => fetches.next(done),
      (flight) => flight,
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
            Effect.flatMap(portal === undefined ? open : more, (flight) => {
              ended = !flight.suspended
              const chunk = toChunk(flight, transformRows)
              return ended && isOwn ? Effect.as(end, chunk) : Effect.succeed(chunk)
            }),
            Option.some
          )
    )
    const settle = Effect.async<boolean>((resume) => fetches.drain(longestFetch, (_) => resume(Effect.succeed(_))))
    const close = (isOver: boolean) =>
      Effect.async<void>((resume) => {
        if (portal === undefined || ended) return resume(Effect.void)
        portal.close(isOver, () => resume(Effect.void))
      })
    const drop = Effect.suspend(() => (isOwn ? rollback(transaction, undefined) : close(true)))
    /** What was read, and done, is kept as it would be without a stream. */
    const keep = Effect.suspend(() => {
      if (!isOwn) return close(false)
      if (transaction.level.state !== "open") return drop
      return Effect.catchAll(commitUninterruptibly(transaction), (error) =>
        Effect.zipRight(drop, Effect.logError(error.message))
      )
    })
    return Effect.as(
      Effect.addFinalizer((exit) => {
        // the consumer has had enough; one that has had it before the first rows were there is as good as interrupted
        if (Exit.isSuccess(exit) && portal !== undefined)
          return Effect.if(settle, { onTrue: () => keep, onFalse: () => drop })
        fetches.abort()
        return drop
      }),
      Stream.repeatEffectChunkOption(pull)
    )
  })

/** The rows of a statement wherever it belongs. */
export const makeStream =
  (engine: Executor, kind: Role) =>
  (made: Request, transformRows: TransformRows): Stream.Stream<object, SqlError> =>
    Stream.unwrapScoped(
      Effect.withFiberRuntime<Stream.Stream<object, SqlError>, SqlError, Scope.Scope>((fiber) => {
        const asked = hasTracer(fiber) ? reportServer(fiber, made) : made
        const ambient = currentContext(fiber)
        const request = scoped(fiber.currentContext, ambient, engine.database, withComment(asked, ambient?.work(fiber)))
        if (request instanceof SchemaInvalid) return Effect.fail(toSqlError(request))
        const ender = engine.endsSandbox(request)
        if (ender !== undefined) return Effect.fail(toSqlError(ender))
        const found = engine.transactionFor(fiber, ambient, kind)
        if (found !== undefined) {
          if (kind === "writer") engine.witness(fiber, ambient, found)
          if (kind === "writer" || found.readOnly) {
            const part = kind === "writer" ? ambient?.part(found) : undefined
            return portalStream(engine, found, request, transformRows, "shared", () => part?.note(found))
          }
          // a portal cannot be fenced in without stopping the transaction around it, so the rows are read at once
          return Effect.map(
            engine.run(fiber, kind, asked, (flight) => toChunk(flight, transformRows)),
            Stream.fromChunk
          )
        }
        const own = engine.begin(kind, {}, fiber, ambient)
        if (kind === "writer") engine.witness(fiber, ambient, own)
        return portalStream(engine, own, request, transformRows, "own", () => {})
      })
    )
