/**
 * A program that stores rows in two databases, by units of work in two phases, until it is killed. Its
 * arguments are the URL of the second database and the id of the first row. With the id 0 it stores
 * nothing: it looks for what others have left, until its standard input has a line.
 */
import { NodeRuntime } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { Database, UnitOfWork } from "effect-db"
import { input } from "./input.js"

class One extends Database.Service<One>()("one") {}
class Two extends Database.Service<Two>()("two") {}

const [, , second = "", start = "0"] = process.argv

const options = { outcome: "marker", twoPhase: true, resolveWithin: "100 millis" } as const

const live = Layer.merge(
  One.layer({ writer: Redacted.make(process.env.DATABASE_URL ?? ""), ...options }),
  Two.layer({ writer: Redacted.make(second), ...options })
)

const insert = (id: number) =>
  Effect.gen(function* () {
    const one = yield* One.writer
    const two = yield* Two.writer
    yield* one`INSERT INTO moved VALUES (${id})`
    yield* two`INSERT INTO moved VALUES (${id})`
  })

const program = Effect.gen(function* () {
  console.log("under way")
  if (Number(start) === 0) return yield* input
  for (let id = Number(start); ; id++) yield* UnitOfWork.run(insert(id), { atomic: "twoPhase", retry: true })
})

NodeRuntime.runMain(Effect.provide(program, live))
