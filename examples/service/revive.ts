import { Effect, Layer, Option } from "effect"
import { type Actions, Cluster, type Member } from "./cluster.js"

const revive = (actions: Actions, member: Member) =>
  Effect.gen(function* () {
    const { name } = member.server
    yield* actions.ended(member)
    yield* Effect.logWarning(`the embedded ${name} has ended; it is started again`)
    yield* actions.revive(member)
    yield* Effect.logInfo(`the embedded ${name} runs again`)
  }).pipe(
    Effect.forever,
    Effect.catchAll(({ message }) => Effect.logError(`${message}\n  the server stays down: restart the service`))
  )

/**
 * Restarts the embedded servers if they end while the service runs, for example because the system was out of memory. A server that a
 * visitor has killed stays down.
 */
export const layer = Layer.scopedDiscard(
  Effect.flatMap(
    Cluster,
    Option.match({
      onNone: () => Effect.void,
      onSome: (actions) => Effect.forEach(actions.members, (member) => Effect.forkScoped(revive(actions, member)))
    })
  )
)
