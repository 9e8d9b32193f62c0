/**
 * COPY as effects: a savepoint or a transaction around it, and the two sides of it, each in a fiber of its own.
 */

import type { SqlError } from "@effect/sql/SqlError"
import * as Statement from "@effect/sql/Statement"
import * as Cause from "effect/Cause"
import * as Chunk from "effect/Chunk"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import type { Copy, Options, Row } from "../../Copy.js"
import {
  CopyFailed,
  type DatabaseError,
  fromSqlError,
  QueryFailed,
  SchemaInvalid,
  toSqlError
} from "../../DatabaseError.js"
import { isNotSent } from "../../RetryPolicy.js"
import type { Role } from "../../Topology.js"
import type { Options as TransactionOptions } from "../../Transaction.js"
import * as clock from "../concurrency/clock.js"
import type { KnownNames } from "../config/knownNames.js"
import { unknownOption } from "../config/unknownOption.js"
import type { Request } from "../connection/connection.js"
import type { Restore } from "../edge/cancellable.js"
import { callSite } from "../observability/callSite.js"
import { CopyIn, CopyOut, type Copy as Data } from "../protocol/copyData.js"
import { RowInvalid, RowWriter } from "../protocol/copyRows.js"
import { isServerError } from "../protocol/pgDriver.js"
import { copyFromSql, copyToSql, errorPosition, inlined } from "../sql/copy.js"
import { withComment } from "../statement/workLabel.js"
import { commitUninterruptibly, isSavepoint, rollback, sendCommit } from "../transaction/completion.js"
import { currentContext, type TransactionContext } from "../transaction/context.js"
import { scoped } from "../transaction/contextSlot.js"
import { runCopy } from "../transaction/levelStatement.js"
import { nest, type Transaction } from "../transaction/transaction.js"
import { makeInliner } from "./compiler.js"
import { type Executor, locationOf } from "./executor.js"

type AnyFiber = Fiber.RuntimeFiber<unknown, unknown>

/** A COPY that is under way: its transaction, and the fiber that waits for the server. */
interface UnderWay {
  readonly transaction: Transaction
  readonly copying: Fiber.RuntimeFiber<number, SqlError>
  /** Ends the transaction as a success, in a hurry where `restore` is not given. */
  readonly keep: (restore: Restore | undefined) => Effect.Effect<void, SqlError>
}

/** Builds the failure of data that is refused, with its place. */
type Refuse = (cause: unknown, line: number, column: string | undefined, server?: string) => SqlError

/** The time for the rest when the consumer of a COPY has had enough, and for the answer to the end of its data, in ms. */
const longestRest = 400

const escape = Statement.defaultEscape('"')

/** Refusals for the moment, which have no place in the data. */
const aboutMoment = new Set<DatabaseError["_tag"]>([
  "DeadlockDetected",
  "Disconnected",
  "IdleTransactionTimeout",
  "LockTimeout",
  "ReadOnlyViolation",
  "SerializationFailure",
  "StatementTimeout"
])

/** Waits until a fiber has ended, for so many ms; returns whether it has. */
const endsWithin = (fiber: Fiber.RuntimeFiber<unknown, unknown>, millis: number): Effect.Effect<boolean> =>
  Effect.async((resume) => {
    const stop = clock.later(millis, () => resume(Effect.succeed(false)))
    fiber.addObserver(() => {
      stop()
      resume(Effect.succeed(true))
    })
  })

/** Returns the outcome of a fiber as an effect. */
const outcomeOf = <A, E>(fiber: Fiber.RuntimeFiber<A, E>): Effect.Effect<A, E> => Effect.flatten(Fiber.await(fiber))

const known: KnownNames<Options> = {
  format: true,
  delimiter: true,
  null: true,
  header: true,
  quote: true,
  escape: true,
  encoding: true,
  statementTimeout: true,
  onProgress: true
}

/** Makes the members of a client for COPY. `rename` turns a name of the program into one of the database. */
export const makeCopy = (
  engine: Executor,
  kind: Role,
  rename: ((name: string) => string) | undefined,
  transformJson: boolean
): Copy => {
  const { database } = engine
  const named = rename ?? ((name: string) => name)
  const inline = makeInliner(rename, transformJson, inlined)

  const misused = (cause: unknown): SqlError => toSqlError(new QueryFailed({ database, server: "", cause }))

  /** Begins a savepoint of the open transaction, or a transaction of its own. A reader's is read-only, also in a writer's. */
  const begin = (
    fiber: AnyFiber,
    ambient: TransactionContext | undefined,
    around: Transaction | undefined,
    options: Options
  ) => {
    const { statementTimeout } = options
    const asked: TransactionOptions = {
      ...(statementTimeout === undefined ? {} : { statementTimeout }),
      ...(kind === "reader" ? { access: "read only" } : {})
    }
    if (around !== undefined) return nest(engine, around, kind, around, asked)
    const memory = ambient?.readAffinity(engine)
    if (memory !== undefined && kind === "writer") memory.written = true
    return engine.begin(kind, asked, fiber, ambient)
  }

  /**
   * Stores what a COPY has done, or leaves it to the transaction around it; undoes it if that fails. A `copyFrom` whose caller leaves meanwhile
   * is taken for undone; the rows of a `copyTo` are all read by then.
   */
  const commit = (transaction: Transaction, data: Data, restore: Restore | undefined): Effect.Effect<void, SqlError> =>
    Effect.catchAllCause(
      restore === undefined
        ? commitUninterruptibly(transaction)
        : sendCommit(transaction, restore, data._tag === "in" && isSavepoint(transaction)),
      (cause) =>
        Effect.zipRight(
          rollback(transaction, Cause.isInterrupted(cause) ? undefined : restore),
          Effect.failCause(Cause.map(cause, toSqlError))
        )
    )

  /** Makes the request of a COPY. */
  const requestOf = (asked: Pick<Request, "text" | "shown" | "site" | "simple">): Request => ({
    ...asked,
    kind,
    values: [],
    rows: "raw",
    prepare: false
  })

  /** Starts a COPY, in a fiber that is interrupted by `stop` and by nothing else. */
  const start = (fiber: AnyFiber, asked: Request, data: Data, options: Options): Effect.Effect<UnderWay, SqlError> => {
    const unknown = unknownOption(database, options, known)
    if (unknown !== undefined) return Effect.fail(toSqlError(unknown))
    const ambient = currentContext(fiber)
    const request = scoped(fiber.currentContext, ambient, database, withComment(asked, ambient?.work(fiber)))
    if (request instanceof SchemaInvalid) return Effect.fail(toSqlError(request))
    const around = engine.transactionFor(fiber, ambient, kind)
    const transaction = begin(fiber, ambient, around, options)
    if (kind === "writer") engine.witness(fiber, ambient, transaction)
    const attempt = engine.attempt(
      fiber,
      (done) => runCopy(transaction.level, request, data, done),
      (flight) => flight.result.rowCount ?? 0,
      isNotSent
    )
    const noted = Effect.sync(() => {
      if (around !== undefined && kind === "writer" && transaction.level.touched) ambient?.part(around)?.note(around)
    })
    return Effect.map(Effect.forkDaemon(Effect.interruptible(attempt)), (copying) => ({
      transaction,
      copying,
      keep: (restore) =>
        // a reader's settings for its statement are undone with the savepoint
        kind === "reader" && transaction.level.parent !== undefined
          ? rollback(transaction, restore)
          : Effect.zipRight(commit(transaction, data, restore), noted)
    }))
  }

  /**
   * Ends a COPY that is not to be kept. A server that waits for data is told that they end in a failure, which it answers at once. If it does
   * not, or if it is to send or to do something, its statement is interrupted as any other is. ROLLBACK follows.
   */
  const stop = ({ copying, transaction }: UnderWay, data: Data, restore: Restore | undefined) =>
    Effect.suspend(() => {
      const isAnswered = data._tag === "in" && data.isOpen ? endsWithin(copying, longestRest) : Effect.void
      if (data._tag === "in") data.fail("the data ends here, and nothing of it is to be stored")
      else data.discard()
      return isAnswered.pipe(
        Effect.zipRight(Fiber.interrupt(copying)),
        Effect.zipRight(Effect.suspend(() => rollback(transaction, restore)))
      )
    })

  /** Builds the failures of a COPY whose data is refused. */
  const refusing =
    (fiber: AnyFiber, { site, text: sql }: Request, table: string): Refuse =>
    (cause, line, column, server = "") => {
      const location = site?.place ?? locationOf(fiber)
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

  /** Adds to a refusal its place in the data, if the server names it. */
  const located = (table: string, columns: ReadonlyArray<string>, refuse: Refuse) => (error: SqlError) => {
    const refusal = fromSqlError(error)
    const { cause } = refusal as { readonly cause?: unknown }
    const context = cause instanceof Error && isServerError(cause) ? cause.where : undefined
    if (context === undefined || aboutMoment.has(refusal._tag)) return error
    const renamed = columns.map(named)
    const spot = errorPosition(context, named(table).split(".").at(-1) ?? "", renamed)
    if (spot === undefined) return error
    const column = spot.column === undefined ? undefined : (columns[renamed.indexOf(spot.column)] ?? spot.column)
    return refuse(refusal, spot.line, column, "server" in refusal ? refusal.server : "")
  }

  /** Sends rows, as fast as they are taken, and says at the end that they are all. */
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
        const [underWay, refuse] = yield* Effect.withFiberRuntime<readonly [UnderWay, Refuse], SqlError>((fiber) =>
          Effect.map(start(fiber, request, data, options), (underWay) => [underWay, refusing(fiber, request, table)])
        )
        const ended = Effect.mapError(outcomeOf(underWay.copying), located(table, columns, refuse))
        const work = Effect.raceFirst(Effect.zipRight(feed(data, columns, rows, options, refuse), ended), ended)
        const stored = yield* Effect.catchAllCause(restore(work), (cause) =>
          Effect.zipRight(
            stop(underWay, data, Cause.isInterrupted(cause) ? undefined : restore),
            Effect.failCause(cause)
          )
        )
        yield* underWay.keep(restore)
        return stored
      })
    )
  }

  /** Makes the pull of the blocks, with the end of the transaction after the last one, and the finalizer. */
  const blocks = (underWay: UnderWay, data: CopyOut, options: Options) => {
    let bytes = 0
    let isOver = false
    const next = Effect.async<Buffer | undefined>((resume) =>
      Effect.sync(data.read((block) => resume(Effect.succeed(block))))
    )
    const end = Effect.zipRight(outcomeOf(underWay.copying), Effect.uninterruptibleMask(underWay.keep)).pipe(
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
        const { copying, transaction } = underWay
        if (!data.isSent || Exit.isFailure(exit)) return stop(underWay, data, undefined)
        // the consumer has had enough: if the rest comes soon, the connection and the writes of the query are kept
        data.discard()
        return Effect.flatMap(endsWithin(copying, longestRest), (hasEnded) =>
          hasEnded && transaction.level.state === "open" && copying.unsafePoll()?._tag === "Success"
            ? Effect.catchAll(underWay.keep(undefined), (error) => Effect.logError(error.message))
            : stop(underWay, data, undefined)
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
            const underWay = yield* start(fiber, request, data, options)
            underWay.copying.addObserver(() => data.end())
            const { close, pull } = blocks(underWay, data, options)
            yield* Effect.addFinalizer(close)
            return Stream.repeatEffectChunkOption(pull)
          })
        )
      )
    )
  }

  return { copyFrom, copyTo }
}
