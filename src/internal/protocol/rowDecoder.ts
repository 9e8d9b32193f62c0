/**
 * How rows are read: the columns of a statement and the parsers of their types, made once per prepared statement.
 */
import type { Client, Field } from "./pgDriver.js"
import type { TypeNames } from "./typeNames.js"

/** A row by column names. */
export type ObjectRow = Record<string, unknown>

/** The columns of a result. */
export interface RowDecoder {
  readonly fields: ReadonlyArray<Field>
  readonly object: (values: ReadonlyArray<string | null>) => ObjectRow
  readonly array: (values: ReadonlyArray<string | null>) => ReadonlyArray<unknown>
}

/** The shape of a result with these columns, read with the parsers of their types' names or else with those of this client. */
export const makeRowDecoder = (
  client: Client,
  fields: ReadonlyArray<Field>,
  types?: TypeNames | undefined
): RowDecoder => {
  const names = fields.map((field) => field.name)
  const parsers = fields.map(({ dataTypeID }) => types?.parser(dataTypeID) ?? client.getTypeParser(dataTypeID, "text"))
  const size = fields.length
  // made in a way in which a column "__proto__" is a column; an object without a prototype would be a dictionary, and so slower to copy
  const blank: ObjectRow = Object.fromEntries(names.map((name) => [name, null]))
  const parse = (values: ReadonlyArray<string | null>, i: number): unknown => {
    const value = values[i]
    return value === null || value === undefined ? null : parsers[i]?.(value)
  }
  return {
    fields,
    object: (values) => {
      // every column is there before it is assigned: one hidden class for all rows
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

/** The shape of what has no rows. */
export const noColumns: RowDecoder = { fields: [], object: () => ({}), array: () => [] }
