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
  /** The number of replicas; `undefined` for the default. */
  readonly replicas: number | undefined
  /** True if the unattended job kills the primary and promotes a replica. */
  readonly failover: boolean
}

const mostReplicas = 5
const failoverReplicas = 2

export const help = `effect-db example service: todos, airports and an audit trail in two named databases

  npm start                    servers of its own, import, HTTP service; Ctrl-C ends all of it
  npm start -- --once          the unattended job: import, 200 requests, connections killed half way, check, exit
  npm start -- --once --failover
                               the same with the primary killed half way and a replica promoted
  npm start -- --replicas N    with 0 to ${mostReplicas} replicas; the default is 1, and ${failoverReplicas} with --failover
  npm start -- --csv FILE      imports this file instead (columns iata,name,city,state,country,latitude,longitude)

  Settings, for servers that are there already:
    DATABASE_URL               postgres://user:password@host:5432/database, of the primary
    DATABASE_READER_URLS       its replicas, with commas between them; none by default
    AUDIT_DATABASE_URL         the second database
    PORT                       3000; 0 picks a free one (so does --once)
    HOST                       127.0.0.1
    ALLOWED_HOSTS              names that lead here, with commas between them; localhost and addresses always do

  There its tables stay: todo, record, event, app_migrations, audit_migrations. An import replaces rows of the same iata.`

/** Returns the path of the airports of vega-datasets: 3,376 rows. The package exports no files, so its folder is derived from its main module. */
export const airports = (): string =>
  join(dirname(createRequire(import.meta.url).resolve("vega-datasets")), "..", "data", "airports.csv")

const replicasOf = (text: string | undefined): number | undefined => {
  if (text === undefined) return undefined
  if (/^\d$/.test(text) && Number(text) <= mostReplicas) return Number(text)
  throw new Error(`--replicas is ${JSON.stringify(text)}: expected a whole number from 0 to ${mostReplicas}`)
}

export const parse = (argv: ReadonlyArray<string>): Effect.Effect<Args, UsageError> =>
  Effect.try({
    try: () => {
      const { values } = parseArgs({
        args: [...argv],
        options: {
          help: { type: "boolean", short: "h" },
          once: { type: "boolean" },
          csv: { type: "string" },
          replicas: { type: "string" },
          failover: { type: "boolean" }
        }
      })
      const { csv, failover = false, help = false, once = false } = values
      const replicas = replicasOf(values.replicas)
      if (failover && !once) throw new Error("--failover is a part of the unattended job: give --once as well")
      if (failover && replicas !== undefined && replicas < failoverReplicas) {
        throw new Error("--failover needs 2 replicas: one is promoted, and commits wait for the other")
      }
      return { help, once, csv, failover, replicas: failover ? (replicas ?? failoverReplicas) : replicas }
    },
    catch: (cause) => {
      const reason = cause instanceof Error ? cause.message.split(". ")[0] : String(cause)
      return new UsageError({ message: `${reason}; --help shows what there is` })
    }
  })
