/**
 * The renaming of rows: of the columns and, if requested, of the keys of JSON at every depth. It
 * follows the rules for parameters.
 */
import { isPlain, renameKeys } from "../protocol/parameterEncoder.js"
import type { TransformRows } from "./sqlConnection.js"

type Rename = (name: string) => string

const value =
  (rename: Rename) =>
  (given: unknown): unknown => {
    if (Array.isArray(given)) return given.map(value(rename))
    return isPlain(given) ? renameKeys(given, rename, value(rename)) : given
  }

const itself = (given: unknown): unknown => given

/**
 * Returns a function that renames rows. The result of a text with several commands has a list of
 * rows for each command.
 */
export const renameRows = (rename: Rename, isDeep: boolean): NonNullable<TransformRows> => {
  const inside = isDeep ? value(rename) : itself
  const row = (given: unknown): unknown =>
    Array.isArray(given) ? given.map(row) : renameKeys(given as Readonly<Record<string, unknown>>, rename, inside)
  // the cast: the program states the type of its rows, as everywhere in @effect/sql
  return <A extends object>(rows: ReadonlyArray<A>) => rows.map(row) as ReadonlyArray<A>
}
