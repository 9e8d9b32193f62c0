import { FetchHttpClient, HttpApiClient, type HttpClientResponse } from "@effect/platform"
import { Clock, Effect, FiberHandle, FiberSet, Option, Ref, Schedule } from "effect"
import { Api } from "./api.js"
import * as Banner from "./banner.js"
import { Unavailable } from "./failures.js"
import { Figures, type Kind, type Load } from "./figures.js"
import { header } from "./served.js"

/** The most requests in flight. While the servers are away, requests wait, and further ones are not sent. */
const mostInFlight = 400

/** The number of requests of which one is a write. */
const writeEvery = 3

export interface Traffic {
  /** Sets the number of requests in a second; 0 ends the load, and removes the todos that it has left. */
  readonly set: (rate: number) => Effect.Effect<void>
  readonly figures: Effect.Effect<Load>
}

const serverOf = ({ headers }: HttpClientResponse.HttpClientResponse): string =>
  headers[header]?.split(" ")[1] ?? "unknown"

/**
 * Creates a steady load on the service, off at first: searches of airports, and every third request a change of a todo, which is created,
 * and deleted by a later request. The requests are those of any client, and are sent at a fixed rate, whatever the answers.
 */
export const make = Effect.gen(function* () {
  const client = yield* HttpApiClient.make(Api, { baseUrl: yield* Banner.baseUrl })
  const requests = yield* FiberSet.make()
  const tidying = yield* FiberHandle.make()
  const isOn = yield* Effect.makeLatch(false)
  const rate = yield* Ref.make(0)
  let figures = new Figures(yield* Clock.currentTimeMillis)
  let sent = 0
  let run = 0
  /** The todos that are stored, the oldest first. */
  const stored: Array<string> = []
  /** The todos that may be stored or not, after an answer that was no success. */
  const unknown: Array<string> = []

  /** Keeps a todo for a later request, if the failure says that nothing has changed. */
  const keep = (id: string) => (error: unknown) =>
    Effect.sync(() => {
      if (error instanceof Unavailable && error.stored === "no") stored.push(id)
      else unknown.push(id)
    })

  const create = Effect.suspend(() => {
    const id = `load-${run}-${sent}`
    return client.todos
      .create({ payload: { id, title: "A change by the load" }, headers: {}, withResponse: true })
      .pipe(
        Effect.map(([, response]) => response),
        Effect.tap(() => Effect.sync(() => stored.push(id))),
        Effect.tapError(() => Effect.sync(() => unknown.push(id)))
      )
  })

  const remove = (id: string) =>
    client.todos.remove({ path: { id }, headers: {}, withResponse: true }).pipe(
      Effect.map(([, response]) => Option.some(response)),
      Effect.catchTag("TodoNotFound", () => Effect.succeed(Option.none())),
      Effect.tapError(keep(id))
    )

  const search = Effect.suspend(() =>
    client.records.page({ urlParams: { search: "", page: (sent % 300) + 1, size: 10 }, withResponse: true })
  ).pipe(Effect.map(([, response]) => response))

  const write = Effect.suspend(() => {
    const id = stored.shift()
    return id === undefined ? Effect.map(create, Option.some) : remove(id)
  })

  /** Sends a request, and records its answer in the figures of its own run. */
  const measured = <E>(
    kind: Kind,
    request: Effect.Effect<Option.Option<HttpClientResponse.HttpClientResponse>, E>,
    into: Figures
  ) =>
    Effect.gen(function* () {
      const before = performance.now()
      const answer = yield* Effect.either(request)
      const now = yield* Clock.currentTimeMillis
      if (answer._tag === "Left") into.fail(now)
      else if (Option.isNone(answer.right)) into.lose()
      else into.succeed(kind, serverOf(answer.right.value), performance.now() - before, now)
    })

  const sendNext = Effect.gen(function* () {
    if ((yield* FiberSet.size(requests)) >= mostInFlight) return
    sent++
    const next =
      sent % writeEvery === 0
        ? measured("writes", write, figures)
        : measured("reads", Effect.map(search, Option.some), figures)
    yield* FiberSet.run(requests, next)
  })

  let due = 0
  const tick = Effect.gen(function* () {
    yield* isOn.await
    yield* sendNext
    const now = performance.now()
    // after a pause of the process, what is late by more than 100 ms is left out
    due = Math.max(due + 1000 / Math.max(1, yield* Ref.get(rate)), now - 100)
    yield* Effect.sleep(Math.max(0, due - now))
  })
  yield* Effect.forkScoped(Effect.forever(tick))

  /** Deletes the todos that are left when all requests have ended. A service that cannot do it now is asked again. */
  const tidy = FiberSet.awaitEmpty(requests).pipe(
    Effect.zipRight(
      Effect.suspend(() =>
        Effect.forEach([...stored.splice(0), ...unknown.splice(0)], (id) => Effect.ignore(remove(id)), {
          concurrency: 4,
          discard: true
        })
      )
    ),
    Effect.zipRight(Ref.get(rate)),
    Effect.repeat({
      until: (rate) => rate > 0 || stored.length + unknown.length === 0,
      schedule: Schedule.spaced("1 second")
    })
  )

  const traffic: Traffic = {
    set: (next) =>
      Effect.gen(function* () {
        const before = yield* Ref.getAndSet(rate, next)
        if (before === 0 && next > 0) {
          figures = new Figures(yield* Clock.currentTimeMillis)
          run = yield* Clock.currentTimeMillis
          yield* isOn.open
        }
        if (next > 0 || before === 0) return
        yield* isOn.close
        yield* FiberHandle.run(tidying, tidy)
      }),
    figures: Effect.zipWith(Clock.currentTimeMillis, Ref.get(rate), (now, rate) => figures.at(now, rate))
  }
  return traffic
}).pipe(Effect.provide(FetchHttpClient.layer))
