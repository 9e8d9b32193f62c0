import { stat } from "node:fs/promises"
import { basename } from "node:path"
import { Chunk, Effect, Stream } from "effect"
import { UnitOfWork } from "effect-db"
import * as Audit from "./audit.js"
import type { Row } from "./csv.js"
import { Db } from "./databases.js"
import * as Progress from "./progress.js"

const size = (file: string) =>
  Effect.tryPromise(() => stat(file)).pipe(
    Effect.map((found) => found.size),
    // what is no file is found out by reading it
    Effect.orElseSucceed(() => 0)
  )

/**
 * Stores the rows in one unit of work: all, or none. A row whose key is there already takes the file's values, so an import may be run
 * again; rows of other files stay.
 */
export const run = <E, R>(file: string, rows: Stream.Stream<Row, E, R>) =>
  Effect.gen(function* () {
    const name = basename(file)
    const bytes = yield* size(file)
    const progress = yield* Progress.make(`importing ${name}`, process.stdout)
    yield* Audit.record("records.imported", name)
    const sql = yield* Db.writer
    return yield* rows.pipe(
      Stream.grouped(250),
      Stream.runFoldEffect(0, (before, batch) =>
        Effect.gen(function* () {
          yield* sql`
            INSERT INTO record ${sql.insert(Chunk.toArray(Chunk.map(batch, (row) => row.airport)))}
            ON CONFLICT (iata) DO UPDATE SET name = excluded.name, city = excluded.city, state = excluded.state,
              country = excluded.country, latitude = excluded.latitude, longitude = excluded.longitude
            WHERE record IS DISTINCT FROM excluded`
          const stored = before + batch.length
          yield* progress.advance(stored, bytes === 0 ? 0 : Chunk.unsafeLast(batch).bytes / bytes)
          return stored
        })
      )
    )
  }).pipe(Effect.scoped, UnitOfWork.run())
