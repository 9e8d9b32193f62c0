/**
 * Parsers of types by their names. A server numbers the types of a program as it makes them, so that one name has other numbers elsewhere
 * and, dropped and made anew, another one here: names are looked up when a number is met for the first time.
 */

import type { Field } from "./pgDriver.js"
import { readTextArray } from "./pgDriver.js"

type Parser = (text: string) => unknown

/** Parsers by the names of types, alone or with their schema. */
export type ParsersByName = Readonly<Record<string, Parser>>

/** Whether parsers are given by name, and not by number in node-postgres' own way. */
export const isByName = (types: object | undefined): types is ParsersByName =>
  types !== undefined && !("getTypeParser" in types)

/** What is asked about numbers; all parameters and results are text. */
export const lookupSql = `SELECT t.oid, t.typname, tn.nspname, e.typname, en.nspname
FROM pg_catalog.pg_type t
JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_type e ON e.typarray = t.oid AND e.typdelim = ','
LEFT JOIN pg_catalog.pg_namespace en ON en.oid = e.typnamespace
WHERE t.oid = ANY ($1::pg_catalog.oid[])`

/** A row of the lookup, as the server writes it. */
export type TypeRow = ReadonlyArray<string | null>

/** Reads `text[]`, whose number is the same on every server; the published list of numbers has no arrays. */

/** What is in an array, and in the arrays in it. */
const parseElements = (value: unknown, parse: Parser): unknown =>
  Array.isArray(value)
    ? value.map((one) => parseElements(one, parse))
    : typeof value === "string"
      ? parse(value)
      : value

const parseArray =
  (parse: Parser): Parser =>
  (text) =>
    parseElements(readTextArray(text), parse)

/** The types of one server that were met so far. */
export class TypeNames {
  /** By number; `undefined` for one that has no parser by name. */
  private readonly known = new Map<number, Parser | undefined>()

  constructor(private readonly byName: ParsersByName) {}

  /** Returns the numbers of these columns that were not met before. */
  unknown(fields: ReadonlyArray<Field>): ReadonlyArray<number> {
    return fields.map((field) => field.dataTypeID).filter((oid) => !this.known.has(oid))
  }

  /** Returns the parser of a number, if it has one by name. */
  parser(oid: number): Parser | undefined {
    return this.known.get(oid)
  }

  /** Learns what the lookup of some numbers has found; one that was not found is dropped by now, and has none. */
  addLookup(asked: ReadonlyArray<number>, found: ReadonlyArray<TypeRow>): void {
    for (const oid of asked) this.known.set(oid, undefined)
    for (const [oid, name, schema, element, elementSchema] of found) {
      const own = this.byTypeName(name, schema)
      const ofElement = own === undefined ? this.byTypeName(element, elementSchema) : undefined
      this.known.set(Number(oid), ofElement === undefined ? own : parseArray(ofElement))
    }
  }

  /** Forgets all: names may mean other types from now on. */
  clear(): void {
    this.known.clear()
  }

  private byTypeName(name: string | null | undefined, schema: string | null | undefined): Parser | undefined {
    if (name === null || name === undefined) return undefined
    const key = [`${schema}.${name}`, name].find((_) => Object.hasOwn(this.byName, _))
    return key === undefined ? undefined : this.byName[key]
  }
}

const servers = new WeakMap<ParsersByName, Map<string, TypeNames>>()

/** Returns what is known of the types of a server, by its name, which all connections to it share. */
export const typeNames = (byName: ParsersByName, server: string): TypeNames => {
  const all = servers.get(byName) ?? new Map<string, TypeNames>()
  servers.set(byName, all)
  const known = all.get(server) ?? new TypeNames(byName)
  all.set(server, known)
  return known
}
