/**
 * Where in the program something was written: noted down only while somebody asks for it, for it costs a microsecond or two.
 */
import { fileURLToPath } from "node:url"
import * as Context from "effect/Context"

const ours = fileURLToPath(new URL("../..", import.meta.url))

const isForeign = (line: string): boolean =>
  !line.includes(ours) && !/node_modules[\\/](@effect[\\/]|effect[\\/]|effect-db[\\/])|\(?node:/.test(line)

let followers = 0

/** From now on call sites are noted down, until the returned function is called. */
export const recordCallSites = (): (() => void) => {
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

/** Notes where a part without a label is written, to name it if it fails: for each, since it costs a small part of one statement. */
export const callSiteOfPart = (label: string | undefined): CallSite | undefined =>
  label === undefined ? new CallSite() : undefined

/** Where what is running was written, where its way leads through others who do not pass that on. */
export class CurrentSite extends Context.Reference<CurrentSite>()("effect-db/internal/CurrentSite", {
  defaultValue: (): CallSite | undefined => undefined
}) {}

/**
 * Puts the program's own frames, from here outward, into the stack of an error whose own was made where the server's answer was read.
 *
 * To be called in an `async` function after an `await`: V8 then finds the functions that await it. That costs nothing before there is an error.
 */
export const trace = (error: Error): void => {
  if (traced.has(error)) return
  traced.add(error)
  const here: { stack?: string } = {}
  Error.captureStackTrace(here, trace)
  const frames = (here.stack ?? "").split("\n").slice(1).filter(isForeign)
  const stack = error.stack ?? ""
  const at = stack.indexOf("\n    at ")
  if (frames.length === 0) return
  const [head, rest] = at < 0 ? [stack, ""] : [stack.slice(0, at), stack.slice(at)]
  error.stack = `${head}\n${frames.join("\n")}${rest}`
}

/** An error passes every `await` between its statement and where it is caught. */
const traced = new WeakSet<Error>()
