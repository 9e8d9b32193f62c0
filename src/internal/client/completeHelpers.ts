/**
 * Replacements for helpers of `@effect/sql`: segments that every compiler writes correctly.
 *
 * `@effect/sql` takes the columns of `insert` and `updateValues` from the first row, so that a
 * column that only another row has is lost without an error. It also stores NULL for a value that
 * is a fragment or helper. This module replaces the affected helpers by other segments, and keeps
 * all others.
 */
import * as Statement from "@effect/sql/Statement"
import { identity } from "effect/Function"
import { isObject, Unsendable } from "../protocol/parameterEncoder.js"

type Segment = Statement.Segment
type Segments = ReadonlyArray<Segment>
type Row = Readonly<Record<string, unknown>>

const literal = (value: string): Segment => ({ _tag: "Literal", value })
const identifier = (value: string): Segment => ({ _tag: "Identifier", value })
const parameter = (value: unknown): Segment => ({ _tag: "Parameter", value })

/**
 * Returns segments that make a statement fail with `reason` when it is sent, because a compiler
 * cannot fail.
 */
const refused = (reason: string): Segments => [parameter(new Unsendable(reason))]

const tags = new Set<unknown>([
  "Identifier",
  "ArrayHelper",
  "RecordInsertHelper",
  "RecordUpdateHelper",
  "RecordUpdateHelperSingle"
])

/**
 * Checks if a value is a helper of @effect/sql. The classes of helpers are not exported; a plain
 * object of a program is no helper.
 */
const isHelper = (value: object): value is Statement.Helper =>
  "_tag" in value && tags.has(value._tag) && Object.getPrototypeOf(value) !== Object.prototype

/**
 * Checks if a value is a fragment or helper. A fragment of a single parameter does not count,
 * because compilers handle it.
 */
const isPart = (value: unknown): boolean => {
  if (!isObject(value)) return false
  if (!Statement.isFragment(value)) return isHelper(value)
  const [only] = value.segments
  return value.segments.length !== 1 || (only?._tag !== "Parameter" && only?._tag !== "Custom")
}

/** Returns the segments of a value. */
const ofValue = (value: unknown): Segments => {
  if (!isObject(value)) return [parameter(value ?? null)]
  if (Statement.isFragment(value)) return withReplacements(value.segments)
  return isHelper(value) ? withReplacements([value]) : [parameter(value)]
}

/** Joins lists of segments with commas. */
const list = (parts: ReadonlyArray<Segments>): Segments => {
  const comma = literal(",")
  return parts.flatMap((part, i) => (i === 0 ? part : [comma, ...part]))
}

const columnsOf = (keys: ReadonlyArray<string>): Segments => [
  literal("("),
  ...list(keys.map((key) => [identifier(key)])),
  literal(")")
]

const valuesOf = (rows: ReadonlyArray<Row>, keys: ReadonlyArray<string>): Segments => {
  const byDefault = [literal("DEFAULT")]
  return list(
    rows.map((row) => [
      literal("("),
      ...list(keys.map((key) => (Object.hasOwn(row, key) ? ofValue(row[key]) : byDefault))),
      literal(")")
    ])
  )
}

/** Returns the RETURNING clause of a helper. The type of a helper hides that member. */
const returning = (helper: object): Segments => {
  const given =
    "returningIdentifier" in helper
      ? (helper.returningIdentifier as string | Statement.Fragment | undefined)
      : undefined
  if (given === undefined) return []
  return typeof given === "string"
    ? [literal(` RETURNING ${given}`)]
    : [literal(" RETURNING "), ...withReplacements(given.segments)]
}

/** Shape of rows. */
interface Shape {
  /** The columns of all rows: those of the first row, then those that later rows add. */
  readonly keys: ReadonlyArray<string>
  /** The number, from 1, of the first row whose columns differ from those of row 1. */
  readonly other: number | undefined
  /** True if a value is a fragment or helper. */
  readonly hasParts: boolean
}

/** Returns the shape of rows, or the reason why they are invalid. */
const shapeOf = (helper: string, rows: ReadonlyArray<Row>): Shape | string => {
  if (rows.length === 0) return `${helper} was given no rows: skip the statement if there are none`
  let keys: ReadonlyArray<string> = []
  let known: Set<string> | undefined
  let other: number | undefined
  let hasParts = false
  for (let i = 0; i < rows.length; i++) {
    const row = rows[i]
    // a program without types may pass any value
    if (!isObject(row) || Array.isArray(row)) return `row ${i + 1} of ${helper} is not an object of columns`
    const own = Object.keys(row)
    hasParts ||= own.some((key) => isPart(row[key]))
    if (i === 0) keys = own
    else if (own.length !== keys.length || own.some((key, at) => key !== keys[at])) {
      known ??= new Set(keys)
      const before = known.size
      for (const key of own) known.add(key)
      if (known.size > before || own.length < before) other ??= i + 1
    }
  }
  return { keys: known === undefined ? keys : [...known], other, hasParts }
}

const insert = (helper: Statement.RecordInsertHelper): Segments | undefined => {
  const rows = helper.value
  const shape = shapeOf("sql.insert", rows)
  if (typeof shape === "string") return refused(shape)
  if (shape.keys.length === 0) {
    return rows.length === 1
      ? [literal("DEFAULT VALUES"), ...returning(helper)]
      : refused("sql.insert was given several rows and none of them has a column: insert them one by one")
  }
  if (shape.other === undefined && !shape.hasParts) return undefined
  return [...columnsOf(shape.keys), literal(" VALUES "), ...valuesOf(rows, shape.keys), ...returning(helper)]
}

const updateValues = (helper: Statement.RecordUpdateHelper): Segments | undefined => {
  const { alias, value: rows } = helper
  const shape = shapeOf("sql.updateValues", rows)
  if (typeof shape === "string") return refused(shape)
  if (shape.keys.length === 0) return refused("sql.updateValues was given a row without columns")
  if (shape.other !== undefined) {
    return refused(
      `row ${shape.other} of sql.updateValues has other columns than row 1: give all rows the same columns, because DEFAULT is not possible here`
    )
  }
  if (!shape.hasParts) return undefined
  return [
    literal("(values "),
    ...valuesOf(rows, shape.keys),
    literal(`) AS ${alias}`),
    ...columnsOf(shape.keys),
    ...returning(helper)
  ]
}

const update = (helper: Statement.RecordUpdateHelperSingle): Segments | undefined => {
  const { omit, value: row } = helper
  if (!isObject(row) || Array.isArray(row)) return refused("sql.update was not given an object of columns")
  const keys = Object.keys(row).filter((key) => !omit.includes(key))
  if (keys.length === 0) return refused("sql.update was given no column to set")
  if (!keys.some((key) => isPart(row[key]))) return undefined
  return [...list(keys.map((key) => [identifier(key), literal(" = "), ...ofValue(row[key])])), ...returning(helper)]
}

const array = ({ value: values }: Statement.ArrayHelper): Segments | undefined =>
  values.some(isPart) ? [literal("("), ...list(values.map(ofValue)), literal(")")] : undefined

/** Returns the segments that replace a segment, or `undefined` if it is kept. */
const replacement = (segment: Segment): Segments | undefined => {
  switch (segment._tag) {
    case "RecordInsertHelper":
      return insert(segment)
    case "RecordUpdateHelper":
      return updateValues(segment)
    case "RecordUpdateHelperSingle":
      return update(segment)
    case "ArrayHelper":
      return array(segment)
    default:
      return undefined
  }
}

/** Replaces the affected helpers among segments. Returns the same array if there are none. */
const withReplacements = (segments: Segments): Segments => {
  let all: Array<Segment> | undefined
  // this runs for every statement, so nothing is allocated if nothing is replaced
  for (let i = 0; i < segments.length; i++) {
    const segment = segments[i]
    if (segment === undefined) continue
    const other = replacement(segment)
    if (other !== undefined) all ??= segments.slice(0, i)
    if (all !== undefined) for (const one of other ?? [segment]) all.push(one)
  }
  return all ?? segments
}

/** Returns a statement with the affected helpers replaced. */
export const completeHelpers = (statement: Statement.Fragment): Statement.Fragment => {
  const { segments } = statement
  const all = withReplacements(segments)
  return all === segments ? statement : { [Statement.FragmentId]: identity, segments: all }
}
