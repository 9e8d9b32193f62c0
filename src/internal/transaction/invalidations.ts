/**
 * Invalidations of `Reactivity` that wait for the end of their transaction or unit of work: before
 * that, queries would run again and read the old rows.
 */
import type { Reactivity } from "@effect/experimental/Reactivity"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { currentContext } from "./context.js"
import { withoutSlot } from "./transactionSlot.js"

type Service = Reactivity.Service
type Keys = Parameters<Service["unsafeInvalidate"]>[0]

const deferring = new WeakSet<Service>()

/**
 * Makes the invalidations of a service wait until the work around them is stored. The service is
 * changed in place, once: layers are built once, so `Reactivity.mutation` in the program uses the
 * same object, and its invalidations can be reached in no other way.
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

/**
 * Returns a query that runs in the transaction around it while that is open, and outside of all
 * transactions after that.
 */
export const outliving = <A, E, R>(query: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.withFiberRuntime((fiber) =>
    currentContext(fiber)?.isOver === true ? Effect.mapInputContext(query, withoutSlot<R>) : query
  )
