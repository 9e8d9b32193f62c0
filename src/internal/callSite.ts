/**
 * Where in the program something was written: noted down only while somebody asks for it, for it costs a microsecond or two.
 */
import { fileURLToPath } from "node:url"
import * as Context from "effect/Context"

const ours = fileURLToPath(new URL("..", import.meta.url))

const isForeign = (line: string): boolean =>
  !line.includes(ours) && !/node_modules[\\/](@effect[\\/]|effect[\\/]|effect-db[\\/])|\(?node:/.test(line)

let followers = 0

/** From now on call sites are noted down, until the returned function is called. */
export const followCallSites = (): (() => void) => {
  followers++
  return () => {
    followers--
  }
}

/** A place in the program; it is put into words only when somebody reads it. */
export class CallSite {
  private readonly stack: string = ""

  constructor() {
    Error.captureStackTrace(this, CallSite)
  }

  /** Function, file, line and column of the nearest caller outside of libraries. */
  get place(): string | undefined {
    return this.stack
      .split("\n")
      .slice(1)
      .find(isForeign)
      ?.trim()
      .replace(/^at (async )?/, "")
      .replace("file://", "")
  }
}

/** Where this is called from. */
export const callSite = (): CallSite | undefined => (followers === 0 ? undefined : new CallSite())

/** Where a part is written that has no label, to name it if it fails: noted down for each, for it is seldom a statement's worth. */
export const siteOfPart = (label: string | undefined): CallSite | undefined =>
  label === undefined ? new CallSite() : undefined

/** Where what is running was written, where its way leads through others who do not pass that on. */
export class CurrentSite extends Context.Reference<CurrentSite>()("effect-db/internal/CurrentSite", {
  defaultValue: (): CallSite | undefined => undefined
}) {}
