/**
 * Parsers of types by name. A server assigns an OID when it creates a type. So the OID of a type
 * differs between servers, and changes if the type is dropped and created again. The name of an OID
 * is looked up when the OID occurs for the first time.
 */

import type { Field } from "./pgDriver.js"
import { readTextArray } from "./pgDriver.js"

type Parser = (text: string) => unknown

/** Parsers by the names of types, with or without the schema. */
export type ParsersByName = Readonly<Record<string, Parser>>

/** Checks that parsers are given by name, and not by OID in the form of node-postgres. */
export const isByName = (types: object | undefined): types is ParsersByName =>
  types !== undefined && !("getTypeParser" in types)

/** The lookup of OIDs; all parameters and results are text. */
export const lookupSql = `SELECT t.oid, t.typname, tn.nspname, e.typname, en.nspname
FROM pg_catalog.pg_type t
JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_type e ON e.typarray = t.oid AND e.typdelim = ','
LEFT JOIN pg_catalog.pg_namespace en ON en.oid = e.typnamespace
WHERE t.oid = ANY ($1::pg_catalog.oid[])`

/** Row of the lookup, as texts. */
export type TypeRow = ReadonlyArray<string | null>

/** Parses the elements of an array and of its nested arrays. */
const parseElements = (value: unknown, parse: Parser): unknown =>
  Array.isArray(value)
    ? value.map((element) => parseElements(element, parse))
    : typeof value === "string"
      ? parse(value)
      : value

const parseArray =
  (parse: Parser): Parser =>
  (text) =>
    parseElements(readTextArray(text), parse)

/** Types of one server that have occurred so far. */
export class TypeNames {
  /** Parsers by OID; `undefined` for a type without a parser by name. */
  private readonly known = new Map<number, Parser | undefined>()

  constructor(private readonly byName: ParsersByName) {}

  /** Returns the type OIDs of these columns that have not been looked up. */
  unknownIn(fields: ReadonlyArray<Field>): ReadonlyArray<number> {
    return fields.map((field) => field.dataTypeID).filter((oid) => !this.known.has(oid))
  }

  /** Returns the parser of an OID, if there is one by name. */
  parser(oid: number): Parser | undefined {
    return this.known.get(oid)
  }

  /**
   * Adds the result of a lookup. A type that was not found has been dropped, so it has no parser.
   */
  addLookup(oids: ReadonlyArray<number>, rows: ReadonlyArray<TypeRow>): void {
    for (const oid of oids) this.known.set(oid, undefined)
    for (const [oid, name, schema, element, elementSchema] of rows) {
      const own = this.byTypeName(name, schema)
      const ofElement = own === undefined ? this.byTypeName(element, elementSchema) : undefined
      this.known.set(Number(oid), ofElement === undefined ? own : parseArray(ofElement))
    }
  }

  /** Removes all types: an OID may belong to another type from now on. */
  clear(): void {
    this.known.clear()
  }

  private byTypeName(name: string | null | undefined, schema: string | null | undefined): Parser | undefined {
    if (name === null || name === undefined) return undefined
    const key = [`${schema}.${name}`, name].find((candidate) => Object.hasOwn(this.byName, candidate))
    return key === undefined ? undefined : this.byName[key]
  }
}

const servers = new WeakMap<ParsersByName, Map<string, TypeNames>>()

/** Returns the types of the server of this name, which all connections to it share. */
export const typeNamesOf = (byName: ParsersByName, server: string): TypeNames => {
  const all = servers.get(byName) ?? new Map<string, TypeNames>()
  servers.set(byName, all)
  const known = all.get(server) ?? new TypeNames(byName)
  all.set(server, known)
  return known
}
