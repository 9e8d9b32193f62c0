/**
 * What the ecosystem calls a connection: our engine, behind its five ways to run a statement.
 */
import type { Connection as SqlConnection } from "@effect/sql/SqlConnection"
import type { SqlError } from "@effect/sql/SqlError"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Flight, Request } from "../Connection.js"
import { toSqlError } from "../DatabaseError.js"
import { isNotSent } from "../RetryPolicy.js"
import { commit, commitSoon, type Transaction, undo } from "../Transaction.js"
import type { CallSite } from "./callSite.js"
import { currentCarrier, type Kind } from "./carrier.js"
import type { Engine } from "./engine.js"
import type { Portal } from "./session.js"
import { withComment } from "./work.js"

type TransformRows = (<A extends object>(rows: ReadonlyArray<A>) => ReadonlyArray<A>) | undefined

/** How a statement is run, whatever runs it: a pool, a transaction, one reserved connection. */
export type Run = <A>(request: Request, read: (flight: Flight) => A) => Effect.Effect<A, SqlError>

/** Several commands in one text go by the simple protocol; a statement with a semicolon in a string may, too. */
const isSimple = (kind: Kind, sql: string, values: ReadonlyArray<unknown>): boolean => {
  if (kind === "reader" || values.length > 0) return false
  const first = sql.indexOf(";")
  return first >= 0 && sql.slice(first + 1).trim() !== ""
}

/** A class, so that its kind is not made where garbage is seldom collected: see `cancellable`. */
class PlainRequest implements Request {
  readonly simple: boolean

  constructor(
    kind: Kind,
    readonly text: string,
    readonly values: ReadonlyArray<unknown>,
    readonly prepare: boolean,
    readonly rows: "object" | "array",
    readonly site?: CallSite | undefined
  ) {
    this.simple = isSimple(kind, text, values)
  }
}

const several = (flight: Flight): boolean => flight.results.length > 1

const only = (flight: Flight) => flight.results[0] ?? flight.result

// The rows' type is the caller's own claim, as it is everywhere in @effect/sql: `any` in its Connection interface.
const rowsOf = (flight: Flight): ReadonlyArray<never> =>
  (several(flight) ? flight.results.map((result) => result.rows) : only(flight).rows) as unknown as ReadonlyArray<never>

const rawOf = (flight: Flight): unknown => (several(flight) ? flight.results : only(flight))

/** The request for the rows of a statement, and how they are read. */
export const makeRows = (kind: Kind, transformRows: TransformRows) => {
  const read =
    transformRows === undefined ? rowsOf : (flight: Flight) => transformRows(rowsOf(flight)) as ReadonlyArray<never>
  return {
    read,
    request: (sql: string, params: ReadonlyArray<unknown>, site: CallSite | undefined) =>
      new PlainRequest(kind, sql, params, true, "object", site)
  }
}

/** The ecosystem's connection over a way to run. */
export const makeStatements = (
  kind: Kind,
  run: Run,
  stream: (request: Request, transformRows: TransformRows) => Stream.Stream<object, SqlError>
): SqlConnection => ({
  execute: (sql, params, transformRows) => {
    const read =
      transformRows === undefined ? rowsOf : (flight: Flight) => transformRows(rowsOf(flight)) as ReadonlyArray<never>
    return run(new PlainRequest(kind, sql, params, true, "object"), read)
  },
  executeRaw: (sql, params) => run(new PlainRequest(kind, sql, params, true, "object"), rawOf),
  executeValues: (sql, params) => run(new PlainRequest(kind, sql, params, true, "array"), rowsOf),
  executeUnprepared: (sql, params, transformRows) => {
    const read =
      transformRows === undefined ? rowsOf : (flight: Flight) => transformRows(rowsOf(flight)) as ReadonlyArray<never>
    return run(new PlainRequest(kind, sql, params, false, "object"), read)
  },
  executeStream: (sql, params, transformRows) =>
    stream({ text: sql, values: params, rows: "object", prepare: false, simple: false }, transformRows)
})

/** How many rows of a stream are fetched at a time. */
const batch = 128

const toChunk = (flight: Flight, transformRows: TransformRows): Chunk.Chunk<object> => {
  const rows: ReadonlyArray<object> = flight.result.rows
  return Chunk.unsafeFromArray(transformRows === undefined ? rows : transformRows(rows))
}

/**
 * The rows of a statement in a transaction, a batch at a time; other statements of the transaction may run in between.
 */
const portalStream = (
  engine: Engine,
  transaction: Transaction,
  request: Request,
  transformRows: TransformRows,
  /** Commits a transaction that is the stream's own. */
  onEnd: Effect.Effect<void, SqlError> | undefined
): Effect.Effect<Stream.Stream<object, SqlError>, SqlError, Scope.Scope> =>
  Effect.withFiberRuntime((fiber) => {
    let portal: Portal | undefined
    let ended = false
    const isOwn = onEnd !== undefined
    const open = engine.attempt(
      fiber,
      (done) =>
        transaction.level.openPortal(request, batch, (error, opened) => {
          portal = opened
          done(error, opened?.first)
        }),
      (flight) => flight,
      isNotSent
    )
    const close = (isOver: boolean) =>
      Effect.async<void>((resume) => {
        if (portal === undefined || ended || isOwn) return resume(Effect.void)
        portal.close(isOver, () => resume(Effect.void))
      })
    const next = Effect.suspend(() =>
      portal === undefined
        ? open
        : engine.attempt(
            fiber,
            (done) => portal?.next(done) ?? (() => {}),
            (flight) => flight,
            () => false
          )
    )
    const pull: Effect.Effect<Chunk.Chunk<object>, Option.Option<SqlError>> = Effect.suspend(() =>
      ended
        ? Effect.fail(Option.none())
        : Effect.mapError(
            Effect.flatMap(next, (flight) => {
              ended = !flight.suspended
              const chunk = toChunk(flight, transformRows)
              return ended && onEnd !== undefined ? Effect.as(onEnd, chunk) : Effect.succeed(chunk)
            }),
            Option.some
          )
    )
    return Effect.as(
      Effect.addFinalizer((exit) => close(Exit.isFailure(exit))),
      Stream.repeatEffectChunkOption(pull)
    )
  })

/** The rows of a statement wherever it belongs. */
export const makeStream =
  (engine: Engine, kind: Kind) =>
  (asked: Request, transformRows: TransformRows): Stream.Stream<object, SqlError> =>
    Stream.unwrapScoped(
      Effect.withFiberRuntime<Stream.Stream<object, SqlError>, SqlError, Scope.Scope>((fiber) => {
        const carrier = currentCarrier(fiber)
        const request = withComment(asked, carrier?.work(fiber))
        const found = engine.transactionFor(fiber, carrier, kind)
        if (found !== undefined) {
          if (kind === "writer" || found.readOnly) {
            return portalStream(engine, found, request, transformRows, undefined)
          }
          // a portal cannot be fenced in without stopping the transaction around it, so the rows are read at once
          return Effect.map(
            engine.run(fiber, kind, asked, (flight) => toChunk(flight, transformRows)),
            Stream.fromChunk
          )
        }
        const own = engine.begin(kind, {}, fiber, carrier)
        const end = Effect.mapError(commit(own), toSqlError)
        return Effect.zipRight(
          Effect.addFinalizer((exit) =>
            Exit.isSuccess(exit) && own.level.state === "open"
              ? // the consumer has had enough: what was read, and done, is kept as it would be without a stream
                Effect.catchAll(commitSoon(own), (error) =>
                  Effect.zipRight(undo(own, undefined), Effect.logError(error.message))
                )
              : undo(own, undefined)
          ),
          portalStream(engine, own, request, transformRows, end)
        )
      })
    )
