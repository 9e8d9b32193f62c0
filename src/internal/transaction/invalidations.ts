/**
 * Invalidations of `Reactivity` that wait for the end of the transaction or unit of work that they are made in: before that, queries would run
 * again and read what is not there.
 */
import type { Reactivity } from "@effect/experimental/Reactivity"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { currentContext } from "./context.js"
import { withoutSlot } from "./contextSlot.js"

type Service = Reactivity.Service
type Keys = Parameters<Service["unsafeInvalidate"]>[0]

const deferring = new WeakSet<Service>()

/**
 * Has the invalidations of a service wait. The service is changed in place, once: the program's own `Reactivity.mutation` finds the same
 * object, since layers are built once, and there is no other way between the two.
 */
export const deferInvalidations = (service: Service): void => {
  if (deferring.has(service)) return
  deferring.add(service)
  const now = service.unsafeInvalidate
  const invalidateIn = (fiber: Fiber.RuntimeFiber<unknown, unknown>, keys: Keys): void => {
    const isTaken = currentContext(fiber)?.whenStored(() => now(keys)) ?? false
    if (!isTaken) now(keys)
  }
  const invalidate = (keys: Keys) =>
    Effect.withFiberRuntime<void>((fiber) => Effect.sync(() => invalidateIn(fiber, keys)))
  const deferred: Pick<Service, "invalidate" | "mutation" | "unsafeInvalidate"> = {
    unsafeInvalidate: (keys) =>
      Option.match(Fiber.getCurrentFiber(), { onNone: () => now(keys), onSome: (fiber) => invalidateIn(fiber, keys) }),
    invalidate,
    mutation: (keys, effect) => Effect.zipLeft(effect, invalidate(keys))
  }
  Object.assign(service, deferred)
}

/** A query that runs in the transaction in which it was begun for as long as that is open, then outside of it. */
export const outliving = <A, E, R>(query: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.withFiberRuntime((fiber) =>
    currentContext(fiber)?.isOver === true ? Effect.mapInputContext(query, withoutSlot<R>) : query
  )
