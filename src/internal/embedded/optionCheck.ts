/**
 * The check of the options of a cluster. A program without types may pass any value.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as ParseResult from "effect/ParseResult"
import * as Schema from "effect/Schema"
import { OperationFailed } from "./operationFailed.js"

/** Builds the failure of an option that is not valid. */
export const misconfigured = (reason: string): OperationFailed =>
  new OperationFailed({ operation: "configure", reason, logs: [] })

/** Makes the schema of an optional option. `expected` describes the valid values in errors. */
const optional = <A, I>(schema: Schema.Schema<A, I>, expected: string) =>
  Schema.optional(schema.annotations({ message: () => ({ message: expected, override: true }) }))

const isDuration = (input: unknown): input is Duration.DurationInput =>
  Option.match(Duration.decodeUnknown(input), {
    onNone: () => false,
    onSome: (duration) => Duration.isFinite(duration) && Duration.toMillis(duration) > 0
  })

const Options = Schema.Struct({
  replicas: optional(Schema.NonNegativeInt, "a whole number from 0"),
  databases: optional(Schema.Array(Schema.String), "an array of names"),
  settings: optional(
    Schema.Record({ key: Schema.String, value: Schema.Union(Schema.String, Schema.Number, Schema.Boolean) }),
    "strings, numbers and booleans by name"
  ),
  synchronous: optional(Schema.NonNegativeInt, "a whole number from 0 to the number of replicas"),
  port: optional(Schema.Int.pipe(Schema.between(1, 65_535)), "a whole number from 1 to 65535"),
  startTimeout: optional(Schema.declare(isDuration), 'a finite duration above 0, such as "30 seconds"'),
  directory: optional(Schema.NonEmptyString, "the path of a folder")
})

const names = Object.keys(Options.fields).join(", ")

/** Checks the names and the values of options. */
export const checkOptions = (options: object): Effect.Effect<void, OperationFailed> =>
  Schema.decodeUnknown(Options, { onExcessProperty: "error" })(options).pipe(
    Effect.mapError((error) => {
      const [issue] = ParseResult.ArrayFormatter.formatErrorSync(error)
      const name = String(issue?.path[0] ?? "")
      if (issue === undefined || name === "") return misconfigured("the options are not an object")
      if (!Object.hasOwn(Options.fields, name))
        return misconfigured(`${name} is not an option: the options are ${names}`)
      const given: unknown = Reflect.get(options, name)
      return misconfigured(
        `${name} is ${typeof given === "string" ? JSON.stringify(given) : String(given)}: expected ${issue.message}`
      )
    }),
    Effect.asVoid
  )
