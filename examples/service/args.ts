import { createRequire } from "node:module"
import { dirname, join } from "node:path"
import { parseArgs } from "node:util"
import { Data, Effect } from "effect"

export class UsageError extends Data.TaggedError("UsageError")<{ readonly message: string }> {}

export interface Args {
  readonly help: boolean
  readonly once: boolean
  /** The file of the option `--csv`. */
  readonly csv: string | undefined
}

export const help = `effect-db example service: todos, airports and an audit trail in two named databases

  npm start                    servers of its own, import, HTTP service; Ctrl-C ends all of it
  npm start -- --once          the unattended job: import, 200 requests, connections killed half way, check, exit
  npm start -- --csv FILE      imports this file instead (columns iata,name,city,state,country,latitude,longitude)

  Settings, for servers that are there already:
    DATABASE_URL               postgres://user:password@host:5432/database, of the primary
    DATABASE_READER_URLS       its replicas, with commas between them; none
    AUDIT_DATABASE_URL         the second database
    PORT                       3000; 0 picks a free one (so does --once)
    HOST                       127.0.0.1
    ALLOWED_HOSTS              names that lead here, with commas between them; localhost and addresses always do

  There its tables stay: todo, record, event, app_migrations, audit_migrations. An import replaces rows of the same iata.`

/** Returns the path of the airports of vega-datasets: 3,376 rows. The package exports no files, so its folder is derived from its main module. */
export const airports = (): string =>
  join(dirname(createRequire(import.meta.url).resolve("vega-datasets")), "..", "data", "airports.csv")

export const parse = (argv: ReadonlyArray<string>): Effect.Effect<Args, UsageError> =>
  Effect.try({
    try: () => {
      const { values } = parseArgs({
        args: [...argv],
        options: { help: { type: "boolean", short: "h" }, once: { type: "boolean" }, csv: { type: "string" } }
      })
      return { help: values.help ?? false, once: values.once ?? false, csv: values.csv }
    },
    catch: (cause) => {
      const reason = cause instanceof Error ? cause.message.split(". ")[0] : String(cause)
      return new UsageError({ message: `${reason}; --help shows what there is` })
    }
  })
