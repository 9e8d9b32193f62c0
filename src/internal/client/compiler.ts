/**
 * From a statement to its text and parameters: as @effect/sql-pg compiles, without what that loses.
 */
import * as Statement from "@effect/sql/Statement"
import { identity } from "effect/Function"
import { Inlined, plain } from "../protocol/inlinedText.js"
import { Json } from "../protocol/parameterEncoder.js"
import { completeHelpers } from "./statementHelpers.js"

type PgJson = Statement.Custom<"PgJson", unknown>

// the constructor of @effect/sql-pg is private to it; compilers know the kind
const pgJson = Statement.custom<PgJson>("PgJson")

/**
 * Returns a value as JSON, to be a part of a statement. Inside of an array of parameters it is an element, for which node-postgres looks for
 * `toPostgres`.
 */
export const json = (value: unknown): Statement.Fragment =>
  Object.assign(pgJson(value, undefined, undefined), {
    toPostgres: () => new Json(value, undefined).toPostgres(),
    toJSON: () => value
  })

const escape = Statement.defaultEscape('"')

/** The compiler of PostgreSQL. */
const makePlain = (
  rename: ((name: string) => string) | undefined,
  renameJson: ((key: string) => string) | undefined,
  placeholder = (index: number) => `$${index}`
): Statement.Compiler =>
  Statement.makeCompiler<PgJson>({
    dialect: "pg",
    placeholder,
    onIdentifier: (name, withoutTransform) => escape(rename === undefined || withoutTransform ? name : rename(name)),
    onRecordUpdate: (placeholders, alias, columns, values, returning) => [
      `(values ${placeholders}) AS ${alias}${columns}${returning === undefined ? "" : ` RETURNING ${returning[0]}`}`,
      returning === undefined ? values.flat() : [...values.flat(), ...returning[1]]
    ],
    onCustom: ({ i0: value }, placeholder, withoutTransform) => [
      placeholder(undefined),
      [new Json(value, withoutTransform ? undefined : renameJson)]
    ]
  })

class Compiler implements Statement.Compiler {
  readonly dialect = "pg"
  constructor(private readonly plain: Statement.Compiler) {}

  compile(statement: Statement.Fragment, withoutTransform: boolean) {
    return this.plain.compile(completeHelpers(statement), withoutTransform)
  }

  get withoutTransform(): this {
    // the type asks for `this`, and nothing extends this class
    return new Compiler(this.plain.withoutTransform) as this
  }
}

/** Makes a compiler; the names of columns are renamed and, unless `transformJson` is off, the keys of JSON. */
export const makeCompiler = (
  rename?: ((name: string) => string) | undefined,
  transformJson = true
): Statement.Compiler => new Compiler(makePlain(rename, transformJson ? rename : undefined))

/**
 * Makes a compiler for statements that take no parameters: each value stands in the text, as `write` writes it. Throws where a text has
 * parameters of its own, whose places only the server knows.
 */
export const makeInliner = (
  rename: ((name: string) => string) | undefined,
  transformJson: boolean,
  write: (value: unknown) => string
) => {
  // NUL is in no statement, so what is between two of them is a place
  const compiler = makePlain(rename, transformJson ? rename : undefined, (index) => `\0${index}\0`)
  return ({ segments }: Statement.Fragment): Inlined => {
    if (segments.some((one) => one._tag === "Literal" && one.params !== undefined && one.params.length > 0)) {
      throw new Error("a text with parameters of its own cannot be a part of a COPY: write it as a template")
    }
    // a statement keeps what it was compiled to by another compiler
    const [text, values] = compiler.compile(completeHelpers({ [Statement.FragmentId]: identity, segments }), false)
    const pieces = text.split("\0")
    if (pieces.length !== 2 * values.length + 1) throw new Error("the statement holds a NUL character")
    return new Inlined(
      pieces.map((piece, i) =>
        i % 2 === 0 ? plain(piece) : { sent: write(values[Number(piece) - 1]), shown: `$${piece}` }
      )
    )
  }
}
