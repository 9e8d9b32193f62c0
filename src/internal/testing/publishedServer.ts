/**
 * The server that a whole run of tests shares, in an environment variable. The worker processes of
 * a test runner inherit the variable.
 */
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Either from "effect/Either"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import { ConfigInvalid } from "../../DatabaseError.js"
import type { ServerUrl } from "../../ServerConfig.js"

/** The name of the variable. Its value is a connection string, or {@link Published} as JSON. */
export const serverVariable = "EFFECT_DB_TEST_SERVER"

const Published = Schema.parseJson(
  Schema.Struct({
    writer: Schema.String,
    readers: Schema.Array(Schema.String),
    /** The names of the databases on the server, by the names that tests use. */
    databases: Schema.Record({ key: Schema.String, value: Schema.String })
  })
)

/** Server with connection strings, and the databases that were created for the run. */
export type Published = typeof Published.Type

/** Returns the value of the variable. */
export const publish: (server: Published) => string = Schema.encodeSync(Published)

/** Returns the server of a value of the variable. */
const parse = (value: string): Either.Either<Published, unknown> =>
  value.trimStart().startsWith("{")
    ? Schema.decodeEither(Published)(value)
    : Either.right({ writer: value, readers: [], databases: {} })

/** Returns the servers for a named database. */
export const serversFor = (
  name: string,
  database: string | undefined
): Effect.Effect<{ readonly writer: ServerUrl; readonly readers: ReadonlyArray<ServerUrl> }, ConfigInvalid> =>
  Effect.gen(function* () {
    const refuse = (given: string) =>
      new ConfigInvalid({
        database: name,
        setting: serverVariable,
        given,
        expected:
          "the server of the run: TestDatabase.serverSetup in the global setup of the test runner sets it, or give a URL"
      })
    const value = yield* Effect.orElseSucceed(Config.option(Config.nonEmptyString(serverVariable)), Option.none)
    if (Option.isNone(value)) return yield* refuse("not set")
    // the error of the parser would show the password
    const { databases, readers, writer } = yield* Either.mapLeft(parse(value.value), () => refuse("not valid"))
    const chosen = database === undefined ? databases[name] : (databases[database] ?? database)
    const at = (url: string): ServerUrl => ({
      url: Redacted.make(url),
      ...(chosen === undefined ? {} : { database: chosen })
    })
    return { writer: at(writer), readers: readers.map(at) }
  })
