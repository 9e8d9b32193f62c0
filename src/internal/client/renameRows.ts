/**
 * Rows with the names that a program has for the columns of its database.
 */

type Rename = (name: string) => string

const isPlain = (value: unknown): value is Readonly<Record<string, unknown>> => {
  if (typeof value !== "object" || value === null) return false
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === Object.prototype || prototype === null
}

/** Sets a property. What is stored may have any key, and one of them would be taken for the prototype. */
const set = (object: Record<string, unknown>, key: string, value: unknown): void => {
  if (key === "__proto__") {
    Object.defineProperty(object, key, { value, enumerable: true, configurable: true, writable: true })
  } else object[key] = value
}

const renamed = (
  object: Readonly<Record<string, unknown>>,
  rename: Rename,
  valueOf: (value: unknown) => unknown
): Record<string, unknown> => {
  const result: Record<string, unknown> = {}
  for (const key of Object.keys(object)) set(result, rename(key), valueOf(object[key]))
  return result
}

/** Makes the function that renames the columns of rows and, with `nested`, the keys of the JSON in them, at every depth. */
export const makeRenameRows = (rename: Rename, nested: boolean) => {
  const json = (value: unknown): unknown => {
    if (Array.isArray(value)) return value.map(json)
    return isPlain(value) ? renamed(value, rename, json) : value
  }
  const plain = (value: unknown) => value
  const rows = (all: ReadonlyArray<object>): ReadonlyArray<object> =>
    all.map((row) =>
      // several commands in one text have several lists of rows
      Array.isArray(row) ? rows(row) : renamed(row as Record<string, unknown>, rename, nested ? json : plain)
    )
  // the rows keep the type that the program has claimed for them
  return rows as <A extends object>(all: ReadonlyArray<A>) => ReadonlyArray<A>
}
