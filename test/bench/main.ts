/**
 * `npm run bench`: the cost of a statement, of a transaction and of a request, and the behaviour of
 * a pool under overload. It prints figures, and asserts nothing.
 */
import { parseArgs } from "node:util"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { EmbeddedPostgres } from "effect-db"
import { overload } from "./overload.js"
import { rates } from "./rates.js"
import { replicas } from "./replicas.js"
import { requests } from "./requests.js"
import { sandboxes } from "./sandboxes.js"
import { templates } from "./templates.js"

const usage = `npm run bench -- [rates] [options]     all clients side by side on one embedded server, interleaved; ratios of medians
npm run bench -- requests [options]    HTTP servers side by side, with and without a unit of work for each request
npm run bench -- replicas [options]    reads by up to three replicas, by what a read requires
npm run bench -- sandboxes [options]   a test in a sandbox, and the same without
npm run bench -- templates [options]   databases of tests: the start of a server, copies of a template
npm run bench -- overload [options]    effect-db with five times more requests than it can serve

All are measured in one process, with Node's default space for young objects; YOUNG_MB=64 gives them as much as a server should have.

rates, requests, replicas, sandboxes, templates
  --rounds N     the number of turns of each (default 9; requests 25)
rates, requests, replicas
  --ms N         the duration of a turn (default 400; requests 200)
  --only NAME    one client only, to profile it
rates
  --against DIR  another build of effect-db, in DIR/dist, instead of the other clients
  --outcomes     the settings of outcome ("status", "marker", "unknown"), instead of the other clients
overload
  --seconds N    the duration of the overload (default 60)
  --factor N     the load, as a multiple of the capacity (default 5)`

const fail = (message: string): never => {
  console.error(`${message}\n\n${usage}`)
  process.exit(2)
}

const read = () => {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        rounds: { type: "string" },
        ms: { type: "string" },
        only: { type: "string" },
        against: { type: "string" },
        outcomes: { type: "boolean", default: false },
        seconds: { type: "string" },
        factor: { type: "string" },
        help: { type: "boolean", default: false }
      }
    })
  } catch (cause) {
    return fail(cause instanceof Error ? cause.message : String(cause))
  }
}

const { positionals, values } = read()

const number = (name: "rounds" | "ms" | "seconds" | "factor", otherwise: number): number => {
  const value = Number(values[name] ?? otherwise)
  return value > 0 && Number.isFinite(value) ? value : fail(`--${name} takes a number above 0`)
}

const what = positionals[0] ?? "rates"
const subcommands = { rates, requests, replicas, sandboxes, templates, overload }
const isKnown = (name: string): name is keyof typeof subcommands => Object.hasOwn(subcommands, name)
if (positionals.length > 1 || !isKnown(what)) fail(`unknown: ${positionals.join(" ")}`)

if (values.help) console.log(usage)
else {
  const options = {
    rounds: number("rounds", what === "requests" ? 25 : 9),
    ms: number("ms", what === "requests" ? 200 : 400),
    only: values.only,
    against: values.against,
    outcomes: values.outcomes === true,
    seconds: number("seconds", 60),
    factor: number("factor", 5)
  }
  await Effect.gen(function* () {
    const server = yield* EmbeddedPostgres.EmbeddedPostgres
    const { readers, writer } = server.settings("bench")
    const url = Redacted.value(writer)
    if (isKnown(what)) yield* Effect.promise(() => subcommands[what](url, options, readers.map(Redacted.value)))
  }).pipe(
    Effect.provide(
      EmbeddedPostgres.EmbeddedPostgres.layer({ databases: ["bench"], replicas: what === "replicas" ? 3 : 0 })
    ),
    Effect.runPromise
  )
}
