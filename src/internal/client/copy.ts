/**
 * COPY as effects: `copyFrom` sends rows to the server, and `copyTo` streams the rows of a query.
 */

import type { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Copy, Options, Row } from "../../Copy.js"
import { CopyFailed, type DatabaseError, fromSqlError, QueryFailed, toSqlError } from "../../DatabaseError.js"
import type { Role } from "../../Topology.js"
import type { Request } from "../connection/connection.js"
import { callSite } from "../observability/callSite.js"
import { CopyIn, CopyOut } from "../protocol/copyData.js"
import { RowInvalid, RowWriter } from "../protocol/copyRowWriter.js"
import { isServerError } from "../protocol/pgDriver.js"
import { copyFromSql, copyToSql, errorPositionIn, inlined } from "../sql/copy.js"
import { makeInliner } from "./compiler.js"
import { endsWithin, endTimeout, outcomeOf, type RunningCopy, startCopy, stopCopy } from "./copyTransaction.js"
import type { Executor } from "./executor.js"
import { locationOf } from "./statementRetry.js"

/** Function that builds the error of refused data, with its line and column. */
type Refuse = (cause: unknown, line: number, column: string | undefined, server?: string) => SqlError

const escape = Statement.defaultEscape('"')

/** The tags of failures that are not caused by a row of the data. */
const notAboutData = new Set<DatabaseError["_tag"]>([
  "DeadlockDetected",
  "Disconnected",
  "IdleTransactionTimeout",
  "LockTimeout",
  "ReadOnlyViolation",
  "SerializationFailure",
  "StatementTimeout"
])

/** Makes the members of a client for COPY. `rename` turns a name of the program into one of the database. */
export const makeCopy = (
  executor: Executor,
  kind: Role,
  rename: ((name: string) => string) | undefined,
  transformJson: boolean
): Copy => {
  const { database } = executor
  const named = rename ?? ((name: string) => name)
  const inline = makeInliner(rename, transformJson, inlined)

  const misused = (cause: unknown): SqlError => toSqlError(new QueryFailed({ database, server: "", cause }))

  /** Makes the request of a COPY. */
  const requestOf = (statement: Pick<Request, "text" | "shown" | "site" | "simple">): Request => ({
    ...statement,
    kind,
    values: [],
    rows: "raw",
    prepare: false
  })

  /** Returns the function that builds the errors of refused data. */
  const refusing =
    (fiber: Fiber.RuntimeFiber<unknown, unknown>, { site, text: sql }: Request, table: string): Refuse =>
    (cause, line, column, server = "") => {
      const location = site?.location ?? locationOf(fiber)
      return toSqlError(
        new CopyFailed({
          database,
          server,
          table,
          line,
          cause,
          sql,
          ...(location === undefined ? {} : { location }),
          ...(column === undefined ? {} : { column })
        })
      )
    }

  /**
   * Returns a function that turns a failure into a `CopyFailed` with its line and column, if the
   * server names the line and a row has caused the failure.
   */
  const located = (table: string, columns: ReadonlyArray<string>, refuse: Refuse) => (error: SqlError) => {
    const refusal = fromSqlError(error)
    const { cause } = refusal as { readonly cause?: unknown }
    const context = cause instanceof Error && isServerError(cause) ? cause.where : undefined
    if (context === undefined || notAboutData.has(refusal._tag)) return error
    const renamed = columns.map(named)
    const spot = errorPositionIn(context, named(table).split(".").at(-1) ?? "", renamed)
    if (spot === undefined) return error
    const column = spot.column === undefined ? undefined : (columns[renamed.indexOf(spot.column)] ?? spot.column)
    return refuse(refusal, spot.line, column, "server" in refusal ? refusal.server : "")
  }

  /** Sends rows as fast as the server reads them, and then the end of the data. */
  const feed = <E, R>(
    data: CopyIn,
    columns: ReadonlyArray<string>,
    rows: Stream.Stream<Row, E, R>,
    options: Options,
    refuse: Refuse
  ): Effect.Effect<void, E | SqlError, R> =>
    Effect.suspend(() => {
      const header = options.header === true || options.header === "match" ? columns.map(named) : undefined
      const writer = new RowWriter(columns, options, header)
      let bytes = 0
      const taken = Effect.async<void>((resume) => Effect.sync(data.whenWritable(() => resume(Effect.void))))
      const flush = Effect.suspend(() => {
        const block = writer.drain()
        if (block.length === 0) return Effect.void
        bytes += block.length
        data.write(block)
        const { onProgress } = options
        return onProgress === undefined
          ? taken
          : Effect.zipRight(
              taken,
              Effect.suspend(() => onProgress({ bytes, rows: writer.rows }))
            )
      })
      const add = (row: Row): Effect.Effect<void, SqlError> => {
        try {
          writer.add(row)
        } catch (cause) {
          if (!(cause instanceof RowInvalid)) return Effect.die(cause)
          return Effect.fail(refuse(cause, cause.row, cause.column))
        }
        return writer.isFull ? flush : Effect.void
      }
      const opened = Effect.async<void>((resume) => Effect.sync(data.whenOpen(() => resume(Effect.void))))
      return opened.pipe(
        Effect.zipRight(Stream.runForEachChunk(rows, (chunk) => Effect.forEach(chunk, add, { discard: true }))),
        Effect.zipRight(flush),
        Effect.zipRight(Effect.sync(() => data.finish()))
      )
    })

  const copyFrom: Copy["copyFrom"] = (table, columns, rows, options = {}) => {
    const site = callSite()
    return Effect.uninterruptibleMask((restore) =>
      Effect.gen(function* () {
        const text = yield* Effect.try({
          try: () => copyFromSql(escape(named(table)), columns.map(named), options),
          catch: misused
        })
        const data = new CopyIn()
        const request = requestOf({ text, site, simple: true })
        const [running, refuse] = yield* Effect.withFiberRuntime<readonly [RunningCopy, Refuse], SqlError>((fiber) =>
          Effect.map(startCopy(executor, kind, fiber, request, data, options), (running) => [
            running,
            refusing(fiber, request, table)
          ])
        )
        const ended = Effect.mapError(outcomeOf(running.copying), located(table, columns, refuse))
        const work = Effect.raceFirst(Effect.zipRight(feed(data, columns, rows, options, refuse), ended), ended)
        const stored = yield* Effect.catchAllCause(restore(work), (cause) =>
          Effect.zipRight(
            stopCopy(running, data, Cause.isInterrupted(cause) ? undefined : restore),
            Effect.failCause(cause)
          )
        )
        yield* running.keep(restore)
        return stored
      })
    )
  }

  /**
   * Makes the pull of a `copyTo` and its finalizer. The pull returns the blocks, and ends the
   * transaction after the last one.
   */
  const blocks = (running: RunningCopy, data: CopyOut, options: Options) => {
    let bytes = 0
    let isOver = false
    const next = Effect.async<Buffer | undefined>((resume) =>
      Effect.sync(data.read((block) => resume(Effect.succeed(block))))
    )
    const end = Effect.zipRight(outcomeOf(running.copying), Effect.uninterruptibleMask(running.keep)).pipe(
      Effect.tap(() => {
        isOver = true
      }),
      Effect.mapError(Option.some),
      Effect.zipRight(Effect.fail(Option.none()))
    )
    const { onProgress } = options
    const pull: Effect.Effect<Chunk.Chunk<Uint8Array>, Option.Option<SqlError>> = Effect.flatMap(next, (block) => {
      if (block === undefined) return isOver ? Effect.fail(Option.none()) : end
      bytes += block.length
      const chunk = Chunk.of<Uint8Array>(block)
      return onProgress === undefined ? Effect.succeed(chunk) : Effect.as(onProgress({ bytes, rows: 0 }), chunk)
    })
    const close = (exit: Exit.Exit<unknown, unknown>) =>
      Effect.suspend(() => {
        if (isOver) return Effect.void
        const { copying, transaction } = running
        if (!data.isSent || Exit.isFailure(exit)) return stopCopy(running, data, undefined)
        // the consumer has stopped early: if the remaining blocks arrive within `endTimeout`, the
        // writes of the query are committed and the connection can be reused
        data.discard()
        return Effect.flatMap(endsWithin(copying, endTimeout), (hasEnded) =>
          hasEnded && transaction.level.state === "open" && copying.unsafePoll()?._tag === "Success"
            ? Effect.catchAll(running.keep(undefined), (error) => Effect.logError(error.message))
            : stopCopy(running, data, undefined)
        )
      })
    return { pull, close }
  }

  const copyTo: Copy["copyTo"] = (query, options = {}) => {
    const site = callSite()
    return Stream.unwrapScoped(
      Effect.uninterruptible(
        Effect.withFiberRuntime<Stream.Stream<Uint8Array, SqlError>, SqlError, Scope.Scope>((fiber) =>
          Effect.gen(function* () {
            const shown = yield* Effect.try({ try: () => copyToSql(inline(query), options), catch: misused })
            const data = new CopyOut()
            const request = requestOf({ text: shown.sent, shown, site, simple: false })
            const running = yield* startCopy(executor, kind, fiber, request, data, options)
            running.copying.addObserver(() => data.end())
            const { close, pull } = blocks(running, data, options)
            yield* Effect.addFinalizer(close)
            return Stream.repeatEffectChunkOption(pull)
          })
        )
      )
    )
  }

  return { copyFrom, copyTo }
}
