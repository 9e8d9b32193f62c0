/**
 * The server of a whole run of tests: an embedded one, or one that is given by its URL.
 */
import * as Reactivity from "@effect/experimental/Reactivity"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as DatabaseConfig from "../../DatabaseConfig.js"
import { ConfigInvalid, type DatabaseError } from "../../DatabaseError.js"
import * as EmbeddedPostgres from "../../EmbeddedPostgres.js"
import { Router } from "../../Router.js"
import { NamedClass } from "../client/databaseNames.js"
import { memoryDirectory } from "../embedded/memoryDirectory.js"
import { type Published, publish, serverVariable } from "./publishedServer.js"
import { openRun } from "./testRun.js"

/** The settings of an embedded server for the connections of many workers. */
const settings = { max_connections: 300, max_prepared_transactions: 100 }

/** Starts an embedded server. */
const embeddedServer = (
  options: EmbeddedPostgres.EmbeddedPostgres.Options
): Effect.Effect<Published, EmbeddedPostgres.EmbeddedPostgresError, Scope.Scope> =>
  Effect.gen(function* () {
    const postgres = yield* EmbeddedPostgres.make({
      ...options,
      directory: options.directory ?? memoryDirectory(),
      settings: { ...settings, ...options.settings }
    })
    const { readers, writer } = postgres.settings("postgres")
    return {
      writer: Redacted.value(writer),
      readers: readers.map(Redacted.value),
      databases: Object.fromEntries((options.databases ?? []).map((name) => [name, name]))
    }
  })

/** Server that is running already. */
interface GivenServer {
  readonly url: string
  readonly readers: ReadonlyArray<string>
  readonly databases: ReadonlyArray<string>
}

/**
 * Creates the databases of a run on a server. They have names of their own, so that several runs can
 * use the server, and they are dropped at the end, or by the next run if the process is killed.
 */
const givenServer = ({ databases, readers, url }: GivenServer): Effect.Effect<Published, DatabaseError, Scope.Scope> =>
  Effect.gen(function* () {
    const owner = new NamedClass("TestDatabase")
    const config = yield* DatabaseConfig.make(owner.name, {
      writer: Redacted.make(url),
      readers: readers.map((reader) => Redacted.make(reader))
    })
    const twice = databases.find((name, index) => databases.indexOf(name) !== index)
    if (twice !== undefined) {
      return yield* new ConfigInvalid({
        database: "",
        setting: "databases",
        given: `${JSON.stringify(twice)} twice`,
        expected: "a name of its own for each database"
      })
    }
    if (databases.length === 0) return { writer: url, readers, databases: {} }
    const run = yield* openRun({ config, owner, choose: yield* Router })
    const created = yield* Effect.forEach(databases, (name) => {
      const created = run.names.next()
      return Effect.as(run.create(created), [name, created] as const)
    })
    return { writer: url, readers, databases: Object.fromEntries(created) }
  }).pipe(Effect.provideServiceEffect(Reactivity.Reactivity, Reactivity.make))

type Secret = string | Redacted.Redacted<string>

/** Options of `TestDatabase.serverSetup`. */
interface SetupOptions extends EmbeddedPostgres.EmbeddedPostgres.Options {
  readonly url?: Secret | undefined
  readonly readers?: ReadonlyArray<Secret> | undefined
}

const revealed = (secret: Secret): string => (typeof secret === "string" ? secret : Redacted.value(secret))

const start = (
  { readers = [], url, ...options }: SetupOptions,
  outer: string | undefined
): Effect.Effect<Published, EmbeddedPostgres.EmbeddedPostgresError | DatabaseError, Scope.Scope> => {
  const given = url === undefined ? outer : revealed(url)
  return given === undefined || given === ""
    ? embeddedServer(options)
    : givenServer({ url: given, readers: readers.map(revealed), databases: options.databases ?? [] })
}

/**
 * Starts the server of a run, and publishes it in the environment. The returned function ends it.
 */
export const setUpServer = async (options: SetupOptions): Promise<() => Promise<void>> => {
  const outer = process.env[serverVariable]
  const scope = Effect.runSync(Scope.make())
  const end = async () => {
    if (outer === undefined) delete process.env[serverVariable]
    else process.env[serverVariable] = outer
    await Effect.runPromise(Scope.close(scope, Exit.void))
  }
  // not a rejection of runPromise, which would wrap the error
  const started = await Effect.runPromiseExit(Scope.extend(start(options, outer), scope))
  if (Exit.isSuccess(started)) {
    process.env[serverVariable] = publish(started.value)
    return end
  }
  await end()
  throw Cause.squash(started.cause)
}
