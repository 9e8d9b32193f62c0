/**
 * Rows under other names: those of columns and, where that is asked for, the keys of JSON at every depth, as they are renamed on the way in.
 */
import { isPlain, renamed } from "../protocol/parameterEncoder.js"
import type { TransformRows } from "./sqlConnection.js"

type Rename = (name: string) => string

const value =
  (rename: Rename) =>
  (given: unknown): unknown => {
    if (Array.isArray(given)) return given.map(value(rename))
    return isPlain(given) ? renamed(given, rename, value(rename)) : given
  }

const itself = (given: unknown): unknown => given

/** Returns what renames rows; several commands in one text have a list of rows for each. */
export const renameRows = (rename: Rename, isDeep: boolean): NonNullable<TransformRows> => {
  const inside = isDeep ? value(rename) : itself
  const row = (given: unknown): unknown =>
    Array.isArray(given) ? given.map(row) : renamed(given as Readonly<Record<string, unknown>>, rename, inside)
  // the names of the rows' type are the program's own claim, as everywhere in @effect/sql
  return <A extends object>(rows: ReadonlyArray<A>) => rows.map(row) as ReadonlyArray<A>
}
