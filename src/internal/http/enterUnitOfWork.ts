/**
 * Effects that enter and leave the unit of work of a request. They set the transaction slot in the
 * context of the fiber.
 */
import { appendPreResponseHandler } from "@effect/platform/HttpApp"
import type { RouteContext } from "@effect/platform/HttpRouter"
import type { HttpServerResponse } from "@effect/platform/HttpServerResponse"
import { TransactionConnection } from "@effect/sql/SqlClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FiberRef from "effect/FiberRef"
import { slotOf } from "../transaction/transactionSlot.js"
import type { Unit } from "../unitOfWork/unit.js"
import { Route } from "./routeContextTag.js"

const slot = TransactionConnection.key

/** Effects that run before and after an app, which runs in a unit. */
export interface UnitEntry {
  readonly enter: Effect.Effect<void>
  readonly leave: Effect.Effect<void>
}

/** Returns a context with the transaction slot of another one. */
const withSlotOf = (outside: Context.Context<never>, inside: Context.Context<never>): Context.Context<never> => {
  const all = new Map(inside.unsafeMap)
  if (outside.unsafeMap.has(slot)) all.set(slot, outside.unsafeMap.get(slot))
  else all.delete(slot)
  return Context.unsafeMake(all)
}

/** Returns a context with a unit in its transaction slot. */
const inUnit = (outside: Context.Context<never>, unit: Unit): Context.Context<never> =>
  Context.add(outside, TransactionConnection, slotOf(outside, unit))

/** Makes the entry of an app that does not send its response. */
const withoutSending = (outside: Context.Context<never>, unit: Unit): UnitEntry => ({
  enter: FiberRef.set(FiberRef.currentContext, inUnit(outside, unit)),
  leave: FiberRef.set(FiberRef.currentContext, outside)
})

/** Function that ends a unit before a response is sent. The response decides the outcome. */
export type EndBefore = (response: HttpServerResponse) => Effect.Effect<HttpServerResponse>

/**
 * Makes the entry around a whole server, which sends the response inside of the app. The unit ends
 * before the response is sent, so the body and all later code run outside of the unit.
 */
const aroundServer = (outside: Context.Context<never>, unit: Unit, end: EndBefore): UnitEntry => {
  const without = FiberRef.update(FiberRef.currentContext, (inside) => withSlotOf(outside, inside))
  const endHere: EndBefore = (response) =>
    Effect.suspend(() =>
      // the end must not be interrupted, even if an app around this one has made it interruptible
      unit.hasEnded ? Effect.succeed(response) : Effect.uninterruptible(Effect.zipLeft(end(response), without))
    )
  return {
    enter: Effect.zipRight(
      appendPreResponseHandler((_, response) => endHere(response)),
      FiberRef.set(FiberRef.currentContext, inUnit(outside, unit))
    ),
    leave: FiberRef.set(FiberRef.currentContext, outside)
  }
}

/**
 * Checks if an app is the handler of a route itself, outside of any transaction. A router makes the
 * context of the handler for one request, and drops the context right after the handler.
 */
export const isRouteHandler = (context: Context.Context<never>, app: unknown): boolean => {
  const routed: RouteContext | undefined = context.unsafeMap.get(Route.key)
  return routed !== undefined && routed.route.handler === app && !context.unsafeMap.has(slot)
}

/** Leaves the unit of a route's handler. Fibers that the handler has forked stay in the unit. */
const leaveRoute: Effect.Effect<void> = FiberRef.update(FiberRef.currentContext, Context.omit(TransactionConnection))

/** Makes the entry of a route's handler. */
export const routeEntry = (outside: Context.Context<never>, unit: Unit): UnitEntry => ({
  enter: FiberRef.set(FiberRef.currentContext, inUnit(outside, unit)),
  leave: leaveRoute
})

/** Makes the entry of an app that is not the handler of a route itself. */
export const unitEntry = (outside: Context.Context<never>, unit: Unit, end: EndBefore): UnitEntry =>
  // the response of a route's handler is sent outside of the handler
  outside.unsafeMap.has(Route.key) ? withoutSending(outside, unit) : aroundServer(outside, unit, end)
