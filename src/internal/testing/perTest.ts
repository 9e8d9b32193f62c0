/**
 * The provision of a layer to each test of a group of `@effect/vitest`, which is not imported: the
 * functions that declare the tests are an argument.
 */
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"

/** Function whose arguments and result are passed through. */
type AnyFunction = (...args: ReadonlyArray<unknown>) => unknown

const isFunction = (value: unknown): value is AnyFunction => typeof value === "function"

/** The members of an `it` that declare tests with effects. */
const testers: ReadonlySet<string | symbol> = new Set(["effect", "scoped", "live", "scopedLive"])

/**
 * Wraps a function that declares tests, its members, such as `only`, and the functions that it
 * returns, such as `each(cases)`: `body` replaces the functions of the tests.
 */
const wrap = (declare: AnyFunction, body: (test: AnyFunction) => AnyFunction): AnyFunction =>
  new Proxy(declare, {
    apply: (target, self, args: ReadonlyArray<unknown>) => {
      const result = Reflect.apply(
        target,
        self,
        args.map((arg) => (isFunction(arg) ? body(arg) : arg))
      )
      return isFunction(result) ? wrap(result, body) : result
    },
    get: (target, key) => {
      const member: unknown = Reflect.get(target, key)
      return isFunction(member) ? wrap(member, body) : member
    }
  })

/** Returns an `it` that builds a layer for each test, and provides it to the effect of the test. */
export const perTest = <It extends object, L extends Layer.Layer.Any>(it: It, layer: L): It => {
  const body =
    (test: AnyFunction): AnyFunction =>
    (...args) => {
      const effect = test(...args)
      // the cast: the group provides what its tests require. The scope of a test is closed before the
      // layer, because its finalizers may use the database
      return Effect.isEffect(effect) ? Effect.provide(Effect.scoped(effect as Effect.Effect<unknown>), [layer]) : effect
    }
  return new Proxy(it, {
    get: (target, key) => {
      const member: unknown = Reflect.get(target, key)
      return testers.has(key) && isFunction(member) ? wrap(member, body) : member
    }
  })
}
