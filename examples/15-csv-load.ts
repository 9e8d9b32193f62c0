/** Loads a CSV file with the application's models, in a program of its own: all of the file, or nothing. */
import { pipeline } from "node:stream"
import { fileURLToPath } from "node:url"
import * as NodeStream from "@effect/platform-node/NodeStream"
import { parse } from "csv-parse"
import { Console, Effect, ParseResult, Schema, Stream } from "effect"
import type { Copy } from "effect-db"
import { DatabasesLive, Db } from "./databases.js"
import { runMain } from "./main.js"
import { openToRead } from "./openToRead.js"
import * as Todos from "./todos.js"

const file = process.argv[2] ?? fileURLToPath(new URL("todos.csv", import.meta.url))

/** The application's model for a line of the file, in which each field is a text. */
const Line = Schema.Struct({
  ...Todos.NewTodo.fields,
  done: Schema.BooleanFromString.annotations({ message: () => ({ message: "expected true or false", override: true }) })
})

const decode = Schema.decodeUnknown(Line)
const asError = (cause: unknown): Error => (cause instanceof Error ? cause : new Error(String(cause)))

const lines = Stream.suspend(() => {
  const parser = parse({ bom: true, columns: true, info: true })
  // an error of the file is reported by the parser
  pipeline(openToRead(file), parser, () => {})
  // an async iteration would not end before the next line, which a pipe may never have
  return NodeStream.fromReadable<Error, { info: { lines: number }; record: unknown }>(() => parser, asError)
})

const todos = Stream.mapEffect(lines, ({ info, record }) =>
  Effect.mapError(decode(record), (error) => {
    const [first] = ParseResult.ArrayFormatter.formatErrorSync(error)
    return new Error(`${file}, line ${info.lines}: ${first?.path.join()}: ${first?.message}; nothing of it is stored`)
  })
)

/** Prints the progress if stderr is a terminal. */
const progress = ({ rows }: Copy.Progress) =>
  Effect.sync(() => process.stderr.isTTY && process.stderr.write(`${rows} todos so far\n`))

/** Stores the file with one COPY, in one transaction. The file is read as fast as the server accepts the rows. */
const load = Effect.flatMap(Db.writer, (sql) =>
  sql.copyFrom("todo", ["title", "done"], todos, { onProgress: progress })
).pipe(
  Effect.filterOrFail(
    (count) => count > 0,
    () => new Error(`${file}, line 1: expected a header, and todos below; nothing of it is stored`)
  )
)

const program = Effect.gen(function* () {
  yield* Console.log(`loaded: ${yield* load} todos`)
  const done = (yield* Todos.list).filter(({ done }) => done)
  yield* Console.log(`done: ${done.map(({ title }) => title).join(", ")}`)
})

runMain(Effect.provide(program, DatabasesLive))
