import { Schema } from "effect"

/** Text as Postgres can store it, and give back as it was. */
export const plainText = Schema.String.pipe(
  Schema.filter((text) =>
    /[\0\p{Surrogate}]/u.test(text) ? "it holds NUL, or half a character, which no database can keep" : undefined
  )
)

/** For structs whose fields are all there is: a misspelt one is refused, not ignored. All that is wrong is said at once. */
export const strict = { parseOptions: { onExcessProperty: "error", errors: "all" } } as const
