import { randomBytes } from "node:crypto"
import { basename } from "node:path"
import { FetchHttpClient } from "@effect/platform"
import { Console, Data, Duration, Effect, Layer, Logger, Ref, Stream } from "effect"
import type { Args } from "./args.js"
import * as Banner from "./banner.js"
import * as Check from "./check.js"
import * as Csv from "./csv.js"
import * as Databases from "./databases.js"
import * as Failover from "./failover.js"
import * as Http from "./http.js"
import * as Import from "./import.js"
import type { Ledger } from "./ledger.js"
import * as Listen from "./listen.js"
import * as Load from "./load.js"
import * as Migrations from "./migrations.js"
import type { Airport } from "./records.js"
import { Servers } from "./servers.js"
import * as Tasks from "./tasks.js"

/** Error of a job that found lost, doubled or wrong rows, or failed requests. */
class OnceFailed extends Data.TaggedError("OnceFailed")<{ readonly problems: ReadonlyArray<string> }> {
  override get message(): string {
    const shown = this.problems.slice(0, 20).map((problem) => `\n  ${problem}`)
    return `the job failed: ${this.problems.length} problems${shown.join("")}`
  }
}

/** Makes a logger that stores the log of the service. The last lines are printed if the job fails; each killed connection logs a line. */
const kept = () => {
  const lines: Array<string> = []
  return { lines, logger: Logger.make(({ message }) => void lines.push([message].flat().map(String).join(" "))) }
}

const listed = (counts: ReadonlyMap<string, number>) =>
  [...counts].map(([name, count]) => `${count} ${name}`).join(", ")

const report = (
  ledger: Ledger,
  disturbed: ReadonlyArray<string>,
  took: Duration.Duration,
  findings: ReadonlyArray<Check.Finding>
) => {
  const again = ledger.attempts.length - Tasks.total
  const found = ledger.attempts.filter(({ outcome }) => outcome === "found stored").length
  return [
    `requests   ${ledger.succeeded} of ${Tasks.total} succeeded, ${Load.concurrency} at a time, in ${Duration.toSeconds(took).toFixed(1)} s`,
    ...disturbed,
    `errors     ${listed(ledger.errors) || "none"}; ${again} requests sent again, ${found} looked up and found stored`,
    ...findings.map((finding) => finding.line),
    ...[...ledger.served].sort().map(([server, count]) => `served     ${count} requests by the ${server}`)
  ].join("\n")
}

/** Ends every connection, and returns the line of a report about it. */
const killConnections = Effect.flatMap(Servers, ({ killBackends }) =>
  Effect.match(killBackends, {
    onFailure: ({ message }) => [`killed     nothing, because it is not permitted: ${message}`],
    onSuccess: (count) => [`killed     ${count} connections, all there were, after ${Tasks.total / 2} requests`]
  })
)

const job = (file: string, failover: boolean) =>
  Effect.gen(function* () {
    const servers = yield* Servers
    yield* Migrations.run
    const rows: Array<Airport> = []
    const imported = yield* Import.run(
      file,
      Stream.tap(Csv.rows(file), ({ airport }) => Effect.sync(() => rows.push(airport)))
    )
    yield* Console.log(`imported   ${imported.toLocaleString("en")} rows of ${basename(file)}`)
    yield* servers.caughtUp
    yield* Layer.build(Http.layer)
    yield* Listen.drained

    const name = `once-${randomBytes(4).toString("hex")}`
    const retries = yield* Failover.countRetries
    const disturbed = yield* Ref.make<ReadonlyArray<string>>([])
    const fault = Effect.if(failover, { onTrue: () => Failover.run, onFalse: () => killConnections })
    const interfere = Effect.flatMap(fault, (lines) => Ref.set(disturbed, lines))
    const [took, ledger] = yield* Effect.timed(Load.run({ baseUrl: yield* Banner.baseUrl, name, interfere }))
    const caughtUp = yield* servers.caughtUp
    const findings = yield* Check.all(name, ledger, rows)
    const effects = failover ? [yield* retries, ...(yield* Failover.effects(ledger))] : []
    yield* Console.log(report(ledger, [...(yield* disturbed), ...effects], took, findings))
    const problems = [
      ...ledger.failures,
      ...findings.flatMap((finding) => finding.problems),
      ...(caughtUp ? [] : ["a replica did not catch up within 10 s"])
    ]
    if (problems.length > 0) return yield* new OnceFailed({ problems })
    yield* Console.log("result     nothing lost, nothing doubled")
  })

export const run = (file: string, { failover, replicas }: Pick<Args, "failover" | "replicas">) => {
  const log = kept()
  return job(file, failover).pipe(
    Effect.scoped,
    Effect.timeoutFail({
      duration: "2 minutes",
      onTimeout: () => new OnceFailed({ problems: ["the job did not end within two minutes"] })
    }),
    Effect.provide([
      Layer.merge(Databases.layer({ replicas, synchronous: failover }), Listen.layer(0)),
      FetchHttpClient.layer
    ]),
    Effect.tapErrorCause(() => Effect.forEach(log.lines.slice(-20), (line) => Console.error(`log: ${line}`))),
    Effect.provide(Logger.replace(Logger.defaultLogger, log.logger))
  )
}
