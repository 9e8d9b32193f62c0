/**
 * The decoder of rows, with the columns of a statement and the parsers of their types. It is
 * created once per prepared statement.
 */

import type { TypeNames } from "./parsersByName.js"
import type { Client, Field } from "./pgDriver.js"

/** Row by column names. */
export type ObjectRow = Record<string, unknown>

/** Columns of a result, and the functions that decode its rows. */
export interface RowDecoder {
  readonly fields: ReadonlyArray<Field>
  readonly object: (values: ReadonlyArray<string | null>) => ObjectRow
  readonly array: (values: ReadonlyArray<string | null>) => ReadonlyArray<unknown>
}

/**
 * Creates the decoder of rows with these columns. It uses the parsers by the names of types, and
 * the parsers of the client for the other types.
 */
export const makeRowDecoder = (
  client: Client,
  fields: ReadonlyArray<Field>,
  types?: TypeNames | undefined
): RowDecoder => {
  const names = fields.map((field) => field.name)
  const parsers = fields.map(({ dataTypeID }) => types?.parser(dataTypeID) ?? client.getTypeParser(dataTypeID, "text"))
  const size = fields.length
  // `fromEntries` makes a column "__proto__" an own property; V8 keeps an object without a
  // prototype as a dictionary, which is slower to copy
  const blank: ObjectRow = Object.fromEntries(names.map((name) => [name, null]))
  const parse = (values: ReadonlyArray<string | null>, i: number): unknown => {
    const value = values[i]
    return value === null || value === undefined ? null : parsers[i]?.(value)
  }
  return {
    fields,
    object: (values) => {
      // the copy has all columns before the first assignment, so all rows have one hidden class
      const row = { ...blank }
      for (let i = 0; i < size; i++) {
        const name = names[i]
        if (name !== undefined) row[name] = parse(values, i)
      }
      return row
    },
    array: (values) => values.map((_, i) => parse(values, i))
  }
}

/** The decoder of a result without rows. */
export const noColumns: RowDecoder = { fields: [], object: () => ({}), array: () => [] }
