/**
 * How the fiber of a request gets into its unit of work, and out of it: by what its context has in the transaction slot. To change a fiber's
 * context costs a request that touches no database more than all the rest of a unit of work, so it is done only where somebody could tell.
 */
import { appendPreResponseHandler } from "@effect/platform/HttpApp"
import type { RouteContext } from "@effect/platform/HttpRouter"
import type { HttpServerResponse } from "@effect/platform/HttpServerResponse"
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FiberRef from "effect/FiberRef"
import { slotOf } from "../transaction/contextSlot.js"
import type { Unit } from "../unitOfWork/unitOfWork.js"
import { Route } from "./routeTag.js"

const slot = TransactionConnection.key

export interface UnitEntry {
  readonly enter: Effect.Effect<void>
  readonly leave: Effect.Effect<void>
}

/** A context with what another one has in the transaction slot. */
const withSlotOf = (outside: Context.Context<never>, inside: Context.Context<never>): Context.Context<never> => {
  const all = new Map(inside.unsafeMap)
  if (outside.unsafeMap.has(slot)) all.set(slot, outside.unsafeMap.get(slot))
  else all.delete(slot)
  return Context.unsafeMake(all)
}

const inUnit = (outside: Context.Context<never>, unit: Unit): Context.Context<never> =>
  Context.add(outside, TransactionConnection, slotOf(outside, unit))

/** For an app that does not send its response. */
const throughAnother = (outside: Context.Context<never>, unit: Unit): UnitEntry => ({
  enter: FiberRef.set(FiberRef.currentContext, inUnit(outside, unit)),
  leave: FiberRef.set(FiberRef.currentContext, outside)
})

/** Ends a unit by the response, before that is sent. */
export type EndBefore = (response: HttpServerResponse) => Effect.Effect<HttpServerResponse>

/**
 * Around a whole server the response is sent inside of the app: there the unit ends before that, and what comes after it, the body and
 * whoever is around, has no part in it.
 */
const aroundServer = (outside: Context.Context<never>, unit: Unit, end: EndBefore): UnitEntry => {
  const without = FiberRef.update(FiberRef.currentContext, (inside) => withSlotOf(outside, inside))
  const endHere: EndBefore = (response) =>
    // what is around may have made this interruptible, which an end in the middle is not
    unit.hasEnded ? Effect.succeed(response) : Effect.uninterruptible(Effect.zipLeft(end(response), without))
  return {
    enter: Effect.zipRight(
      appendPreResponseHandler((_, response) => endHere(response)),
      FiberRef.set(FiberRef.currentContext, inUnit(outside, unit))
    ),
    leave: FiberRef.set(FiberRef.currentContext, outside)
  }
}

/**
 * Enters by the context that there is, where an app is the handler of a route itself, and tells whether it is: a router makes a context for
 * the handler of each request, which nobody else has before, and takes it away right after it.
 */
export const enterInPlace = (context: Context.Context<never>, app: unknown, unit: Unit): boolean => {
  const routed: RouteContext | undefined = context.unsafeMap.get(Route.key)
  if (routed === undefined || routed.route.handler !== app || context.unsafeMap.has(slot)) return false
  context.unsafeMap.set(slot, slotOf(context, unit))
  return true
}

/** Leaves what was entered in place, for what is still to be done there. Forks keep the context with the unit. */
export const leaveInPlace: Effect.Effect<void> = FiberRef.update(
  FiberRef.currentContext,
  Context.omit(TransactionConnection)
)

/** The way for any other app. */
export const unitEntry = (outside: Context.Context<never>, unit: Unit, end: EndBefore): UnitEntry =>
  // what a route's handler answers with is not sent inside of it
  outside.unsafeMap.has(Route.key) ? throughAnother(outside, unit) : aroundServer(outside, unit, end)
