import { stat } from "node:fs/promises"
import { basename } from "node:path"
import { Effect, Stream } from "effect"
import { UnitOfWork } from "effect-db"
import * as Audit from "./audit.js"
import type { Row } from "./csv.js"
import { Audit as AuditDb, Db } from "./databases.js"
import * as Progress from "./progress.js"
import { Airport } from "./records.js"

const size = (file: string) =>
  Effect.tryPromise(() => stat(file)).pipe(
    Effect.map((found) => found.size),
    // 0 if there is no such file: the later read fails with the reason
    Effect.orElseSucceed(() => 0)
  )

/** Settings with a longer timeout than for requests, because the COPY of a long file is one statement. */
const transaction = { statementTimeout: "10 minutes" } as const

/**
 * Stores the rows in one unit of work: all, or none. A stored row with the same key gets the file's values, so an import may be run again;
 * rows of other files are not changed. COPY can only insert, so the rows are copied into a temporary table first.
 */
export const run = <E, R>(file: string, rows: Stream.Stream<Row, E, R>) =>
  Effect.gen(function* () {
    const name = basename(file)
    const bytes = yield* size(file)
    const progress = yield* Progress.make(`importing ${name}`, process.stdout)
    const sql = yield* Db.writer
    yield* sql`CREATE TEMPORARY TABLE incoming (LIKE record) ON COMMIT DROP`
    let read = 0
    const airports = Stream.map(rows, (row) => {
      read = row.bytes
      return row.airport
    })
    const copied = yield* sql.copyFrom("incoming", Object.keys(Airport.fields), airports, {
      onProgress: (sent) => progress.advance(sent.rows, bytes === 0 ? 0 : read / bytes)
    })
    yield* sql`
      INSERT INTO record SELECT * FROM incoming
      ON CONFLICT (iata) DO UPDATE SET name = excluded.name, city = excluded.city, state = excluded.state,
        country = excluded.country, latitude = excluded.latitude, longitude = excluded.longitude
      WHERE record IS DISTINCT FROM excluded`
    // recorded last, so that its database has no open transaction during the COPY; `order` still commits it first
    yield* Audit.record("records.imported", name)
    return copied
  }).pipe(Effect.scoped, UnitOfWork.run({ transaction, order: [AuditDb, Db] }))
