import { basename } from "node:path"
import { Console, Effect, Layer, Logger } from "effect"
import type { Args } from "./args.js"
import * as Banner from "./banner.js"
import * as Csv from "./csv.js"
import * as Databases from "./databases.js"
import * as Http from "./http.js"
import * as Import from "./import.js"
import * as Listen from "./listen.js"
import * as Migrations from "./migrations.js"

const lineOnStderr = Logger.make(({ logLevel, message }) => {
  process.stderr.write(`${logLevel.label.toLowerCase()}: ${[message].flat().map(String).join(" ")}\n`)
})

/** Imports a file and serves until it is interrupted. Resources are released in reverse order, so requests are drained before pools close. */
export const run = (file: string, { replicas }: Pick<Args, "replicas">) =>
  Effect.gen(function* () {
    yield* Migrations.run
    const rows = yield* Import.run(file, Csv.rows(file))
    yield* Console.log(`imported ${rows.toLocaleString("en")} rows of ${basename(file)}`)
    yield* Layer.build(Http.layer)
    yield* Listen.drained
    yield* Banner.show
    yield* Effect.never
  }).pipe(
    Effect.onInterrupt(() => Console.log("\nstopping")),
    Effect.scoped,
    Effect.provide(Layer.merge(Databases.layer({ replicas, synchronous: false }), Listen.layer(3000))),
    Effect.provide(Logger.replace(Logger.defaultLogger, lineOnStderr))
  )
