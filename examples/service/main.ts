import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Cause, Chunk, ConfigError, Console, Effect, Exit } from "effect"
import * as Args from "./args.js"
import * as Csv from "./csv.js"
import * as Once from "./once.js"
import * as Service from "./service.js"

/** Returns the message of a failure, in one or two lines; only a defect has its stack trace. */
const explain = (cause: Cause.Cause<unknown>): string => {
  const [failure] = Chunk.toReadonlyArray(Cause.failures(cause))
  if (failure === undefined) return Cause.pretty(cause)
  if (ConfigError.isConfigError(failure)) return `${setting(failure)}; --help lists the settings`
  return failure instanceof Error ? failure.message : String(failure)
}

const setting = (error: ConfigError.ConfigError): string => {
  if (ConfigError.isAnd(error)) return setting(error.left)
  if (ConfigError.isMissingData(error)) return `${error.path.join("_")} is not set`
  return ConfigError.isInvalidData(error) ? `${error.path.join("_")}: ${error.message}` : String(error)
}

let interrupted = 0

const main = Effect.gen(function* () {
  const args = yield* Args.parse(process.argv.slice(2))
  if (args.help) return yield* Console.log(Args.help)
  // the interruption of a service is its normal end; an interrupted job has proved nothing, so it fails
  if (args.once) interrupted = 130
  if (args.csv !== undefined) yield* Csv.check(args.csv)
  const file = args.csv ?? Args.airports()
  yield* args.once ? Once.run(file, args) : Service.run(file, args)
})

// the terminal sends a signal to all processes, and npm sends it again: the second signal must not end the shutdown
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => {})
// a closed terminal or pipe ends the program as Ctrl-C does
process.once("SIGHUP", () => process.emit("SIGTERM"))
process.stdout.on("error", () => process.emit("SIGTERM"))

main.pipe(
  Effect.tapErrorCause((cause) =>
    Cause.isInterruptedOnly(cause) ? Effect.void : Effect.sync(() => process.stderr.write(`error: ${explain(cause)}\n`))
  ),
  NodeRuntime.runMain({
    disableErrorReporting: true,
    disablePrettyLogger: true,
    teardown: (exit, done) => {
      if (Exit.isSuccess(exit)) return done(0)
      if (Cause.isInterruptedOnly(exit.cause)) return done(interrupted)
      const [failure] = Chunk.toReadonlyArray(Cause.failures(exit.cause))
      done(failure instanceof Args.UsageError ? 2 : 1)
    }
  })
)
