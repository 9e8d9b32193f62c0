/** The reports of a pool: its figures, and its observations. */
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import type { Database, Observation } from "effect-db"
import { Db } from "../../databases.js"
import { eventually } from "../../eventually.js"

const noFigures = {
  ...{ min: 0, max: 0, maxOverflow: 0, total: -1, active: -1, idle: -1, connecting: -1, waiting: -1 },
  ...{ overloaded: false, lastConnectFailure: undefined }
}

/** The figures of the writer's pool. */
export const figures = Effect.map(Db.status, ({ servers }) => servers[0]?.writes ?? noFigures)

/** Waits until the figures of the writer's pool are the expected ones. */
export const settled = (expected: Partial<Database.Status["servers"][number]["reads"]>) =>
  eventually(figures, (seen) => Object.entries(expected).every(([key, value]) => Reflect.get(seen, key) === value))

/** Records all later observations of `Db`. */
export const watch = Effect.gen(function* () {
  const facts: Array<Observation.Observation> = []
  let isWatching = false
  // an invalidation of no connection shows that the recorder listens
  const isSign = (fact: Observation.Observation) => fact._tag === "Invalidated" && fact.connections === 0
  yield* Effect.forkScoped(
    Stream.runForEach(Db.observations, (fact) =>
      Effect.sync(() => {
        isWatching = true
        if (!isSign(fact)) facts.push(fact)
      })
    )
  )
  yield* eventually(
    Effect.map(Db.invalidate({ processId: -1 }), () => isWatching),
    (seen) => seen
  )
  return facts
})

type Fact<Tag extends Observation.Observation["_tag"]> = Extract<Observation.Observation, { readonly _tag: Tag }>

/** Returns the observations of one kind. */
export const only = <Tag extends Observation.Observation["_tag"]>(
  facts: ReadonlyArray<Observation.Observation>,
  tag: Tag
): ReadonlyArray<Fact<Tag>> => facts.filter((fact): fact is Fact<Tag> => fact._tag === tag)

/** Waits until observations of one kind were made `times` times, and returns them. */
export const told = <Tag extends Observation.Observation["_tag"]>(
  facts: ReadonlyArray<Observation.Observation>,
  tag: Tag,
  times = 1
): Effect.Effect<ReadonlyArray<Fact<Tag>>> =>
  eventually(
    Effect.sync(() => only(facts, tag)),
    (some) => some.length >= times
  )
