import { Clock, Context, Effect, Layer, Option, Schema, Stream } from "effect"
import type { Observation } from "effect-db"
import { Cluster } from "./cluster.js"
import { Db } from "./databases.js"

export const Happening = Schema.Struct({
  at: Schema.Number.annotations({ description: "Milliseconds since 1970" }),
  text: Schema.String
}).annotations({ identifier: "Happening" })

const most = 12

/** The latest events of the servers, the last one first. */
export class History extends Context.Tag("example/History")<
  History,
  {
    readonly add: (text: string) => Effect.Effect<void>
    readonly latest: Effect.Effect<ReadonlyArray<typeof Happening.Type>>
  }
>() {}

/** Checks if the server of an event is the writer now: a promoted replica stops serving reads, and that is not added to the history. */
const isOfWriter = (event: Observation.Observation) =>
  "server" in event
    ? Effect.map(Db.status, ({ servers }) =>
        servers.some(({ hosts }) => hosts.some(({ isWriter, name }) => isWriter && name === event.server))
      )
    : Effect.succeed(false)

const describe = (event: Observation.Observation, nameOf: (address: string) => string): string | undefined => {
  switch (event._tag) {
    case "WriterChanged": {
      if (event.from === undefined) return undefined
      const seconds = (event.tookMillis / 1000).toFixed(1)
      return `writes go to ${nameOf(event.to)}, found in ${seconds} s, on timeline ${event.timeline ?? "unknown"}`
    }
    case "FellBehind":
      return `${nameOf(event.server)} is too far behind: reads go to others`
    case "CaughtUp":
      return `${nameOf(event.server)} has caught up, and serves reads again`
    case "MarkedDown":
      return `${nameOf(event.server)} is left out of reads`
    case "MarkedUp":
      return `${nameOf(event.server)} serves reads again`
    default:
      return undefined
  }
}

/** Collects the events of the first database, and those that actions add. */
export const layer = Layer.scoped(
  History,
  Effect.gen(function* () {
    const cluster = yield* Cluster
    const names = new Map(
      Option.match(cluster, {
        onNone: () => [],
        onSome: ({ members }) => members.map(({ address, name }) => [address, name] as const)
      })
    )
    let events: ReadonlyArray<typeof Happening.Type> = []
    const add = (text: string) =>
      Effect.map(Clock.currentTimeMillis, (at) => {
        events = [{ at, text }, ...events].slice(0, most)
      })
    yield* Db.observations.pipe(
      Stream.runForEach((event) => {
        const text = describe(event, (address) => names.get(address) ?? address)
        return text === undefined ? Effect.void : Effect.unlessEffect(add(text), isOfWriter(event))
      }),
      Effect.forkScoped
    )
    return { add, latest: Effect.sync(() => events) }
  })
)
