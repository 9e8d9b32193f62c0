/**
 * The combination of settings into one `Config`. Each setting is a plain value or a `Config`.
 */
import * as Config from "effect/Config"

/** The depth of the deepest setting, which is `ca` in the `ssl` of an element of `readers`. */
const maxDepth = 3

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype

const holdsConfig = (value: unknown, depth: number): boolean => {
  if (Config.isConfig(value)) return true
  if (depth === 0) return false
  if (Array.isArray(value)) return value.some((member) => holdsConfig(member, depth - 1))
  return isRecord(value) && Object.values(value).some((member) => holdsConfig(member, depth - 1))
}

const combine = (value: unknown, depth: number): Config.Config<unknown> => {
  if (Config.isConfig(value)) return value
  // a value without a `Config` is not copied: TLS options have members that a copy would lose
  if (!holdsConfig(value, depth)) return Config.succeed(value)
  if (Array.isArray(value)) return Config.all(value.map((member) => combine(member, depth - 1)))
  const members = Object.entries(value as Readonly<Record<string, unknown>>)
  return Config.all(Object.fromEntries(members.map(([name, member]) => [name, combine(member, depth - 1)])))
}

/** Combines settings into one `Config`. `A` is the type of its result. */
export const configured = <A>(settings: unknown): Config.Config<A> =>
  combine(settings, maxDepth + 1) as Config.Config<A>
