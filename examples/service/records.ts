import { Effect, Schema } from "effect"
import { Db } from "./databases.js"
import { plainText, required } from "./input.js"

const degrees = (most: number) =>
  Schema.Number.pipe(Schema.between(-most, most, { message: () => `expected degrees from -${most} to ${most}` }))

/** One airport, as the API shows it. */
export const Airport = Schema.Struct({
  iata: required(16),
  name: required(200),
  city: plainText(200),
  state: plainText(200),
  country: plainText(200),
  latitude: degrees(90),
  longitude: degrees(180)
}).annotations({ identifier: "Airport" })

export type Airport = typeof Airport.Type

export const Page = Schema.Struct({
  total: Schema.Number,
  page: Schema.Number,
  pages: Schema.Number,
  records: Schema.Array(Airport)
}).annotations({ identifier: "Page" })

/** Returns one page of the airports whose code, name, city, state or country contains a text; read from a replica. */
export const page = (ask: { readonly search: string; readonly page: number; readonly size: number }) =>
  Effect.gen(function* () {
    const sql = yield* Db.reader
    const pattern = `%${ask.search.replace(/[\\%_]/g, "\\$&")}%`
    const found =
      ask.search === ""
        ? sql.literal("true")
        : sql`concat_ws(chr(10), iata, name, city, state, country) ILIKE ${pattern}`
    const [counted] = yield* sql<{ total: number }>`SELECT count(*)::int AS total FROM record WHERE ${found}`
    const total = counted?.total ?? 0
    const records = yield* sql<Airport>`
      SELECT iata, name, city, state, country, latitude, longitude FROM record WHERE ${found}
      ORDER BY iata LIMIT ${ask.size} OFFSET ${(ask.page - 1) * ask.size}`
    return { total, page: ask.page, pages: Math.ceil(total / ask.size), records }
  })
