/**
 * A program that stores rows in two databases, by units of work in two phases, until it is killed. Its
 * arguments are the URL of the second database, the id of the first row and `resolveWithin`. With the
 * id 0 it stores nothing: it looks for what others have left, until its standard input has a line. It
 * prints the observations about prepared transactions.
 */
import { NodeRuntime } from "@effect/platform-node"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { Database, UnitOfWork } from "effect-db"
import { input } from "./input.js"

class One extends Database.Service<One>()("one") {}
class Two extends Database.Service<Two>()("two") {}

const [, , second = "", start = "0", millis = "100"] = process.argv

const options = { outcome: "marker", twoPhase: true, resolveWithin: Number(millis) } as const

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

const report = Stream.runForEach(Stream.merge(One.observations, Two.observations), (fact) =>
  Effect.sync(() => {
    if (fact._tag === "PreparedLeft" || fact._tag === "PreparedRecovered") console.log(fact._tag, fact.gid)
  })
)

const program = Effect.gen(function* () {
  yield* Effect.fork(report)
  // subscribes before the first line
  yield* Effect.yieldNow()
  console.log("under way")
  if (Number(start) === 0) return yield* input
  for (let id = Number(start); ; id++) yield* UnitOfWork.run(insert(id), { atomic: "twoPhase", retry: true })
})

NodeRuntime.runMain(Effect.provide(program, live))
