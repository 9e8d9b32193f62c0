import { Deferred, Effect, FiberId, Schedule } from "effect"
import { Unavailable } from "./failures.js"
import { type Attempt, Ledger } from "./ledger.js"
import { header } from "./served.js"
import * as Tasks from "./tasks.js"

export const concurrency = 8

const mostAttempts = 20
const pause = Schedule.intersect(Schedule.spaced("100 millis"), Schedule.recurs(mostAttempts))

/** Returns the outcome of a change after an error, by the answer of the service; `refused` if another attempt would be refused, too. */
const meaning = (error: Tasks.Failure): Unavailable["stored"] | "refused" =>
  error instanceof Unavailable
    ? error.stored
    : // without an answer, the change may be stored or not
      error._tag === "RequestError"
      ? "unknown"
      : "refused"

/**
 * Sends the requests of the plan, eight at a time, as a careful client does: a request that is not
 * stored is sent again, and if its outcome is unknown the row is looked up first. `interfere` runs
 * half way, while other requests are in flight.
 */
export const run = <E, R>(options: {
  readonly baseUrl: string
  readonly name: string
  readonly interfere: Effect.Effect<unknown, E, R>
}) =>
  Effect.gen(function* () {
    const { lookUp, tasks } = yield* Tasks.plan(options.baseUrl, options.name)
    const ledger = new Ledger()

    const isStored = (change: Tasks.Change) =>
      lookUp(change.id).pipe(
        Effect.retry({ while: (error) => meaning(error) !== "refused", schedule: pause }),
        Effect.map(change.isStored)
      )

    /** Sends one attempt and returns its outcome. Fails if the service refuses the request: another attempt would be refused, too. */
    const attempt = (task: Tasks.Task, request: string) =>
      task.send(request).pipe(
        Effect.map(([, response]): Attempt["outcome"] => {
          ledger.serve(response.headers[header])
          if (task.change !== undefined) ledger.change(performance.now())
          return "acknowledged"
        }),
        Effect.catchAll((error) => {
          ledger.error(error instanceof Unavailable ? error.reason : error._tag)
          const means = meaning(error)
          if (means === "refused") return Effect.fail(error)
          if (means === "no" || task.change === undefined) return Effect.succeed("not stored" as const)
          if (means === "partly") return Effect.succeed("stored partly" as const)
          return Effect.map(isStored(task.change), (stored) => (stored ? "found stored" : "found not stored"))
        })
      )

    const perform = (task: Tasks.Task, index: number) =>
      Effect.gen(function* () {
        for (let n = 1; n <= mostAttempts; n++) {
          const request = `${options.name}-${index}.${n}`
          const outcome = yield* attempt(task, request)
          ledger.attempts.push({
            request,
            change: task.change && { what: task.change.what, subject: task.change.id },
            outcome
          })
          if (outcome === "acknowledged" || outcome === "found stored") {
            if (task.change !== undefined) ledger.todos.set(task.change.id, task.change.state)
            ledger.succeeded++
            return
          }
          yield* Effect.sleep("100 millis")
        }
        ledger.failures.push(`request ${index} had no success in ${mostAttempts} attempts`)
      }).pipe(
        Effect.catchAll((error) =>
          Effect.sync(() => ledger.failures.push(`request ${index} was answered ${error._tag}: ${error.message}`))
        )
      )

    // changes of one todo follow each other
    const last = new Map<string, Deferred.Deferred<void>>()
    const steps = tasks.map((task, index) => {
      if (task.change === undefined) return perform(task, index)
      const ended = Deferred.unsafeMake<void>(FiberId.none)
      const before = last.get(task.change.id)
      last.set(task.change.id, ended)
      const turn = before === undefined ? Effect.void : Deferred.await(before)
      return turn.pipe(Effect.zipRight(perform(task, index)), Effect.ensuring(Deferred.succeed(ended, undefined)))
    })

    yield* Effect.forEach(
      steps,
      (step, index) => (index === steps.length / 2 ? Effect.zipRight(options.interfere, step) : step),
      { concurrency, discard: true }
    )
    return ledger
  })
