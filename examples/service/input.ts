import { Schema } from "effect"

/** The message for an invalid value of any kind. */
export const expected = (what: string) => ({ message: () => ({ message: `expected ${what}`, override: true }) })

/** Text that PostgreSQL can store and return unchanged. */
export const plainText = (most: number) =>
  Schema.String.annotations(expected("a text")).pipe(
    Schema.filter((text) =>
      /[\0\p{Surrogate}]/u.test(text) ? "it contains NUL or half a character, which PostgreSQL cannot store" : undefined
    ),
    Schema.maxLength(most, { message: () => `it is longer than ${most} characters` })
  )

/** Text that does not consist of blanks only. */
export const required = (most: number) =>
  plainText(most).pipe(Schema.filter((text) => (text.trim() === "" ? "it is empty" : undefined)))

/** Annotations of a struct that refuses unknown fields, which may be misspelt, and reports all problems at once. */
export const strict = { parseOptions: { onExcessProperty: "error", errors: "all" } } as const
