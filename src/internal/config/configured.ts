/**
 * Settings of which some come from `Config` and others are plain values.
 */
import * as Config from "effect/Config"

/**
 * A record each member of which is given, or comes from `Config`.
 *
 * @since 0.2.0
 * @category models
 */
export type Configured<A> = { readonly [K in keyof A]: A[K] | Config.Config<A[K]> }

/** The deepest nesting of settings: a reader of the list, its TLS, the certificates of that. */
const deepest = 3

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype

const holdsConfig = (value: unknown, depth: number): boolean => {
  if (Config.isConfig(value)) return true
  if (depth === 0) return false
  if (Array.isArray(value)) return value.some((member) => holdsConfig(member, depth - 1))
  return isRecord(value) && Object.values(value).some((member) => holdsConfig(member, depth - 1))
}

const all = (value: unknown, depth: number): Config.Config<unknown> => {
  if (Config.isConfig(value)) return value
  // a value without any is not copied: options of TLS have members that a copy would lose
  if (!holdsConfig(value, depth)) return Config.succeed(value)
  if (Array.isArray(value)) return Config.all(value.map((member) => all(member, depth - 1)))
  const members = Object.entries(value as Readonly<Record<string, unknown>>)
  return Config.all(Object.fromEntries(members.map(([name, member]) => [name, all(member, depth - 1)])))
}

/** Makes one `Config` of settings. `A` is what they are when all of it is read. */
export const configured = <A>(settings: unknown): Config.Config<A> => all(settings, deepest + 1) as Config.Config<A>
