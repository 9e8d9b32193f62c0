/**
 * The compilers that turn a statement into its text and parameters. They compile as @effect/sql-pg
 * does, after `completeHelpers` has replaced the helpers that lose columns or values.
 */
import * as Statement from "@effect/sql/Statement"
import { identity } from "effect/Function"
import { Inlined, plain } from "../protocol/inlinedText.js"
import { Json } from "../protocol/parameterEncoder.js"
import { completeHelpers } from "./completeHelpers.js"

type PgJson = Statement.Custom<"PgJson", unknown>

// the constructor of @effect/sql-pg is not exported, but compilers recognise a fragment by its kind
const pgJson = Statement.custom<PgJson>("PgJson")

/**
 * Returns a fragment that sends a value as JSON. Its `toPostgres` encodes it as an element of an
 * array.
 */
export const json = (value: unknown): Statement.Fragment =>
  Object.assign(pgJson(value, undefined, undefined), {
    toPostgres: () => new Json(value, undefined).toPostgres(),
    toJSON: () => value
  })

const escape = Statement.defaultEscape('"')

/** Makes a compiler for PostgreSQL that replaces no helpers. */
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
    // the cast: the type requires `this`, and no class extends this one
    return new Compiler(this.plain.withoutTransform) as this
  }
}

/**
 * Makes the compiler of a client. `rename` applies to identifiers and, unless `transformJson` is
 * false, to the keys of JSON.
 */
export const makeCompiler = (
  rename?: ((name: string) => string) | undefined,
  transformJson = true
): Statement.Compiler => new Compiler(makePlain(rename, transformJson ? rename : undefined))

/**
 * Makes a compiler for statements that take no parameters: `write` turns each value into a part of
 * the text. The compiler throws if the text contains NUL, or if a literal fragment has parameters
 * of its own, because their places in its text are unknown.
 */
export const makeInliner = (
  rename: ((name: string) => string) | undefined,
  transformJson: boolean,
  write: (value: unknown) => string
) => {
  // a statement must not contain NUL, so the text between two of them is the number of a
  // placeholder
  const compiler = makePlain(rename, transformJson ? rename : undefined, (index) => `\0${index}\0`)
  return ({ segments }: Statement.Fragment): Inlined => {
    if (segments.some((one) => one._tag === "Literal" && one.params !== undefined && one.params.length > 0)) {
      throw new Error("sql.unsafe with parameters cannot be a part of a COPY: write it as a template")
    }
    // a fragment caches the text of the compiler that ran first, so this compiles a new object
    const [text, values] = compiler.compile(completeHelpers({ [Statement.FragmentId]: identity, segments }), false)
    const pieces = text.split("\0")
    if (pieces.length !== 2 * values.length + 1) throw new Error("the statement contains a NUL character")
    return new Inlined(
      pieces.map((piece, i) =>
        i % 2 === 0 ? plain(piece) : { sent: write(values[Number(piece) - 1]), shown: `$${piece}` }
      )
    )
  }
}
