/** The rows that tests of COPY send and read. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import { type Copy, DatabaseError } from "effect-db"
import { Db, fresh } from "./databases.js"
import { failure } from "./failures.js"

export const writer = Db.writer

export const copy = <E, R>(rows: Stream.Stream<Copy.Row, E, R>, options?: Copy.Options, columns = ["name", "amount"]) =>
  Effect.flatMap(writer, (sql) => sql.copyFrom("item", columns, rows, options))

export const given = (...rows: ReadonlyArray<Copy.Row>) => Stream.fromIterable(rows)

export const copyFailure = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.map(failure(self), (error) =>
    error instanceof DatabaseError.CopyFailed ? error : assert.fail(`not CopyFailed: ${error}`)
  )

export const textOf = <E, R>(blocks: Stream.Stream<Uint8Array, E, R>) => Stream.mkString(Stream.decodeText(blocks))

/**
 * Opens a database with one connection. A statement after COPY shows that the connection was
 * checked in.
 */
export const one = () => fresh({ maxConnections: 1, readers: [] })

/** An endless stream of rows. */
export const endless = Stream.map(
  Stream.iterate(1, (n) => n + 1),
  (n) => [`n${n}`, n]
)
